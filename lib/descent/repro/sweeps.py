"""Compute a function at many points, on this machine or on a Dask cluster, with the same bits on both.

The points are computed in shards, and each finished shard is kept, so that a killed sweep can go on.
"""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import tempfile
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from tqdm import tqdm

from descent.repro.files import exclusive_folder
from descent.repro.machine import cores, keep_freed_memory
from descent.repro.numbers import refuse_masks
from descent.repro.records import Record, agrees, provenance
from descent.repro.seeding import deterministic

if TYPE_CHECKING:
    from distributed import Client

Points = NDArray[Any]
Values = dict[str, NDArray[Any]]
PointTask = Callable[[Points], Mapping[str, NDArray[Any]]]
Finished = tuple[int, Values, Mapping[str, Any]]
RECOMPUTED = 1e-5  # of a value: what it may differ when its point is computed again, alone
ROUNDING = 16  # the same of the point's largest value, in last bits: what sums that cancel may differ
_NOTHING = np.array("nothing")
PATIENCE = 4.0  # seconds to wait for each answer, of which there are at most two before an error
_ADDRESS = re.compile(r"tcp://(?P<host>\[[\da-fA-F:.]+\]|[\w.-]+):(?P<port>\d{1,5})")
_ONE_AT_A_TIME = Lock()  # thread counts belong to the process: threads of one worker take turns


class SweepError(RuntimeError):
    """A shard could not be computed; the message names its first point. The finished shards are kept."""


@dataclass(frozen=True)
class Sweep:
    """Where and how a sweep runs. Only `shard_size` changes the result, and that in the last bits.

    Attributes:
        scheduler: "" for processes on this machine, or the "tcp://host:port" of a Dask scheduler.
        folder: where finished shards are kept, so that a killed sweep goes on from them; None or "" keeps nothing.
        recompute: whether up to three points of the shards in `folder`, one from their middle, are computed again
            before they are used, and compared, since the key may not say all: False where a point takes very long, or
            other processors went before, or where values are small differences of large ones in float32.
        shard_size: points that a worker computes at once; the last shard may be smaller.
        progress: text before a progress bar; None shows none.
        workers: processes on this machine; None takes as many as `cores()`. On a cluster it is not used.

    Raises:
        ValueError: `shard_size` or `workers` is no whole number of at least 1, or `scheduler` has another form.
    """

    scheduler: str = ""
    folder: str | Path | None = None
    shard_size: int = 64
    progress: str | None = None
    workers: int | None = None
    recompute: bool = True

    def __post_init__(self) -> None:
        counts = (self.shard_size, 1 if self.workers is None else self.workers)
        if not all(isinstance(each, (int, np.integer)) and each >= 1 for each in counts):
            raise ValueError(f"shard_size={self.shard_size!r}, workers={self.workers!r}: expected at least 1 each")
        if self.scheduler:
            host_and_port(self.scheduler)


def sweep(task: PointTask, points: Points, how: Sweep, key: str) -> Values:
    """Compute `task` at every point, shard by shard, each with one thread and deterministic kernels.

    The result is the same to the last bit whatever the number of workers, their order and the scheduler, as long as all
    workers have the same versions and the same kind of processor.

    Args:
        task: `task(points (s, k)) -> {name: (s, ...)}`. It must depend on the points alone, and on no global generator,
            setting or file that another process lacks. It is sent to each worker process once, so it may hold a model.
        points: `(n, k)`, such as grid points, or seeds as `(n, 1)`.
        how: where the sweep runs, and what is kept.
        key: says what is swept, such as a digest of model, directions and grid; shards of another key are refused.

    Returns:
        `{name: (n, ...)}` in the order of the points. NaN and infinities are results like any other.

    Raises:
        ValueError: there are no points, `how.folder` holds shards of another key or of other points, or of another
            value at a point that is computed again; points are masked; shards gave other names, shapes or kinds of
            values; or a worker of the cluster has several threads, of which it would use one.
        TypeError: the task cannot be sent to another process.
        SweepError: the task raised, gave arrays of another length, with a mask or of Python objects, or its worker was
            killed, on a cluster again and again.
        InUseError: another sweep is writing to `how.folder`.
        ConnectionError: the scheduler cannot be reached, has no worker, or was lost during the sweep.
        ImportError: a scheduler is named and the package `distributed` is not installed.

    Example:
        >>> points = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 5.0]])
        >>> sweep(lambda part: {"product": part[:, 0] * part[:, 1]}, points, Sweep(workers=1), key="products")
        {'product': array([ 2., 12.,  0.])}
    """
    refuse_masks(points, "points")
    points, folder = np.asarray(points), Path(how.folder) if how.folder else None
    if points.ndim != 2 or len(points) == 0:
        raise ValueError(f"points of shape {points.shape}: expected (n, k), at least one point")
    shards = {n: points[at : at + how.shard_size] for n, at in enumerate(range(0, len(points), how.shard_size))}
    with exclusive_folder(folder), tqdm(total=len(points), desc=how.progress, disable=how.progress is None,
                                            unit="point", mininterval=0.5) as bar:  # fmt: skip
        done, damaged = _finished(shards, folder, key)
        if done and folder is not None and how.recompute:
            _compare_points(task, shards, done, folder)
        missing = {number: part for number, part in shards.items() if number not in done}
        bar.n = bar.initial = sum(len(shards[number]) for number in done)
        if damaged:
            bar.set_postfix_str(f"damaged and computed again: {', '.join(damaged[:3])}{', ...' * (len(damaged) > 3)}")
        with closing(_on_cluster(task, missing, how) if how.scheduler else _on_this_machine(task, missing, how)) as new:
            for number, values, origin in new:
                if folder is not None:
                    settings = {"key": key, **_description(shards[number], values)}
                    Record("sweep", values, settings, origin).save(_path(folder, number))
                done[number] = values
                bar.update(len(shards[number]))
    return _joined(done)


def _path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npz"


def _description(points: Points, values: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What the file of a shard says of its points and arrays; compared when the file is read."""
    digest = hashlib.sha256(f"{points.dtype} {points.shape} ".encode() + points.tobytes()).hexdigest()
    return {"points": digest, "names": sorted(values)}


def _finished(shards: Mapping[int, Points], folder: Path | None, key: str) -> tuple[dict[int, Values], list[str]]:
    """The shards that an earlier run finished, and the names of damaged files, whose shards are computed again."""
    done: dict[int, Values] = {}
    damaged: list[str] = []
    if folder is None:
        return done, damaged
    for unfinished in folder.glob(".shard-*.tmp*"):  # left half written by a kill
        unfinished.unlink()
    for number, part in shards.items():
        path = _path(folder, number)
        if not path.exists():
            continue
        try:
            record = Record.load(path)
        except ValueError:
            damaged.append(path.name)
            continue
        if not agrees(record.settings, "key", key):
            stored = record.settings.get("key")
            raise ValueError(f"{folder}: {path.name} is of key {stored!r}, expected {key!r}; name another folder")
        expected = _description(part, record.values)
        if record.settings.get("points") != expected["points"]:
            raise ValueError(f"{folder}: {path.name} holds other points or another shard_size; name another folder")
        if record.settings.get("names") != expected["names"]:  # damage to the table of contents hides arrays
            damaged.append(path.name)
            continue
        done[number] = dict(record.values)
    return done, damaged


def _compare_points(task: PointTask, shards: Mapping[int, Points], done: Mapping[int, Values], folder: Path) -> None:
    """Compute up to three kept points again: what the key does not say may have changed."""
    kept, places = _joined(done), [(number, row) for number in sorted(done) for row in range(len(shards[number]))]
    for at, (number, row) in [(at, places[at]) for at in _telling(kept)]:
        anew = _run(task, number, shards[number][row : row + 1])[1]
        for name in {**kept, **anew}:
            was, now = kept[name][at : at + 1] if name in kept else _NOTHING, anew.get(name, _NOTHING)
            if not _close(was, now):
                where = f"{_path(folder, number).name} has {name} {was} at {shards[number][row].tolist()}, now {now}"
                advice = "if a point's value depends on the others of its shard, give recompute=False"
                raise ValueError(
                    f"{folder}: {where}; if another task or precision filled it, name another folder; {advice}"
                )


def _telling(kept: Values) -> list[int]:
    """A point in the middle, and the first and the last one of other values, if there are any.

    They are of those points at which every value is finite and as many names as possible are not zero.
    """
    size = len(next(iter(kept.values())))
    numbers = [each.reshape(size, -1) for each in kept.values() if each.dtype.kind in "fciub" and each.size]
    finite = np.all([np.isfinite(each).all(1) for each in numbers] or np.ones((1, size)), 0)
    ranks = finite * sum([each.any(1) for each in numbers], np.ones(size, int))
    good = np.flatnonzero(ranks == ranks.max()).tolist()
    middle = min(good, key=lambda at: abs(at - size // 2))
    other = [at for at in good if any(each[at].tobytes() != each[middle].tobytes() for each in kept.values())] or good
    return sorted({middle, other[0], other[-1]})


def _close(was: NDArray[Any], now: NDArray[Any]) -> bool:
    kinds = (was.dtype.kind, now.dtype.kind)  # texts are as wide as the widest of a shard
    alike = was.shape == now.shape and (was.dtype == now.dtype or kinds in (("U", "U"), ("S", "S")))
    if not alike or kinds[0] not in "fc":
        return alike and bool(np.array_equal(was, now))
    margin = ROUNDING * np.finfo(was.dtype).eps * np.abs(was[np.isfinite(was)]).max(initial=0)
    return np.allclose(now, was, RECOMPUTED, margin, equal_nan=True)


def _joined(done: Mapping[int, Values]) -> Values:
    forms = {n: sorted((name, each.dtype.kind, each.shape[1:]) for name, each in done[n].items()) for n in sorted(done)}
    first = min(forms)
    for number, form in forms.items():
        if form != forms[first]:
            why = f"shard {number} gave {form}, shard {first} {forms[first]}"
            raise ValueError(f"{why}: expected the same names, kinds and shapes")
    return {name: np.concatenate([done[number][name] for number in forms]) for name in done[first]}


def _run(task: PointTask, number: int, points: Points) -> Finished:
    """Compute one shard in this process."""
    first = points[0].tolist()
    with _ONE_AT_A_TIME, deterministic(1):
        try:
            results = task(np.array(points))  # a copy, so that it is writable and contiguous
            for name, value in results.items():
                refuse_masks(value, repr(name))
            values = {name: np.array(value) for name, value in results.items()}
            if not values:
                raise ValueError("the task gave no values")
            for name, value in values.items():
                if value.dtype.hasobject:
                    raise ValueError(f"{name!r} holds Python objects: expected numbers or text")
                if value.shape[:1] != (len(points),):
                    raise ValueError(f"{name!r} of shape {value.shape}: expected ({len(points)}, ...), a row per point")
        except (Exception, SystemExit) as error:
            failure = SweepError(_complaint(number, first, error))
            failure.add_note(traceback.format_exc())  # a cause is lost between processes
            raise failure from None
        return number, values, _origin()


def _complaint(number: int, first: object, error: BaseException) -> str:
    return f"shard {number}, whose first point is {first}: {type(error).__name__}: {error}"


@cache
def _origin() -> Mapping[str, Any]:
    return provenance()


def _on_this_machine(task: PointTask, shards: Mapping[int, Points], how: Sweep) -> Generator[Finished]:
    workers = min(how.workers or cores(), len(shards))
    if workers <= 1:
        yield from (_run(task, number, part) for number, part in shards.items())
        return
    with tempfile.TemporaryDirectory(prefix="descent-sweep-") as folder, warnings.catch_warnings():
        # joblib warns when it replaces a worker whose memory has grown, and when shards end because another failed
        warnings.filterwarnings("ignore", message="A worker stopped|.* You could benefit from adjusting")
        path = Path(folder, "task")
        path.write_bytes(_packed(task))
        calls = (delayed(_run_stored)(path, number, part) for number, part in shards.items())
        pool = Parallel(workers, backend="loky", return_as="generator_unordered", batch_size=1, max_nbytes=None)
        try:
            with closing(pool(calls)) as finished:
                for shard in finished:
                    if isinstance(shard, SweepError):
                        raise shard
                    yield shard
        except BrokenProcessPool as error:
            begun = [f"shard {each}, whose first point is {shards[each][0].tolist()}" for each in _begun(path)]
            why = "a worker was killed, as where memory is short; fewer workers need less"
            raise SweepError(f"{' or '.join(begun)}: {why}") from error


def _packed(task: PointTask) -> bytes:
    try:
        return cloudpickle.dumps(task)  # type: ignore[no-any-return]
    except Exception as error:  # each kind of object has its own
        why = f"the task cannot be sent to another process ({error})"
        raise TypeError(f"{why}; let it make locks, files and the like itself, or give workers=1") from error


def _begun(path: Path) -> list[int]:
    """The shards that workers have begun and not ended; `_run_stored` leaves a file for each beside the task."""
    return sorted(int(each.name) for each in path.parent.iterdir() if each != path)


def _run_stored(path: Path, number: int, points: Points) -> Finished | SweepError:
    """As `_run`, but a failure is returned: joblib would raise it at once, and drop shards that are finished."""
    begun = path.with_name(str(number))
    begun.touch()
    try:
        return _run_in_worker(_stored(path), number, points)
    except SweepError as failure:
        return failure
    except Exception as error:  # such as a package that the worker lacks
        return SweepError(_complaint(number, points[0].tolist(), error))
    finally:
        begun.unlink()


@lru_cache(maxsize=1)
def _stored(path: Path) -> PointTask:
    task: PointTask = cloudpickle.loads(path.read_bytes())  # written a moment ago by the process that started this one
    return task


def _run_in_worker(task: PointTask, number: int, points: Points) -> Finished:
    keep_freed_memory()
    return _run(task, number, points)


def _on_cluster(task: PointTask, shards: Mapping[int, Points], how: Sweep) -> Generator[Finished]:
    """Compute the shards on a Dask cluster, which gives those of a lost worker to another.

    The task is itself a result on the cluster: workers pass it on, and it is sent again if all that had it are lost.
    """
    if not shards:
        return
    with connected_client(how.scheduler) as client:
        import dask
        from distributed import as_completed

        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):  # the task is sent once
            stored = client.submit(cloudpickle.loads, _packed(task), pure=False)
        numbers = {
            client.submit(_run_in_worker, stored, number, part, pure=False): number for number, part in shards.items()
        }
        for future in as_completed(list(numbers), loop=client.loop):
            number = numbers.pop(future)
            try:
                if future.status != "finished":  # a failure may arrive before earlier results
                    yield from [other.result() for other in numbers if other.status == "finished"]
                finished: Finished = future.result()
            except SweepError:
                raise
            except CancelledError as error:
                raise ConnectionError(f"{how.scheduler}: the scheduler was lost; run again to go on") from error
            except Exception as error:  # a worker lacks a package, or died again and again
                raise SweepError(_complaint(number, shards[number][0].tolist(), error)) from error
            yield finished


def host_and_port(scheduler: str) -> tuple[str, int]:
    """The host and the port in "tcp://host:port", where an IPv6 host stands in brackets."""
    match = _ADDRESS.fullmatch(scheduler)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(f"scheduler={scheduler!r}: expected 'tcp://host:port', such as 'tcp://10.0.0.1:8786', or ''")
    return match["host"].strip("[]"), int(match["port"])


@contextmanager
def connected_client(scheduler: str) -> Iterator[Client]:
    """A client of the cluster at "tcp://host:port", closed after the block."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f"scheduler={scheduler!r} needs the package distributed: pip install distributed") from error
    try:
        _greet(*host_and_port(scheduler))
        client = Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except OSError as error:
        raise ConnectionError(
            f"{scheduler}: no Dask scheduler can be reached ({error}); check that `dask scheduler` runs there,"
            " that host and port are right and that no firewall is between"
        ) from error
    with _silent("distributed.client"), client:  # who waits for a result learns of a lost scheduler
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise ConnectionError(
                f"{scheduler}: the scheduler has no worker; start one: dask worker {scheduler} --nthreads 1"
            ) from error
        if several := [f"{worker} has {count}" for worker, count in client.nthreads().items() if count > 1]:
            raise ValueError(f"{scheduler}: worker {several[0]} threads, expected 1: dask worker ... --nthreads 1")
        yield client


@contextmanager
def _silent(name: str) -> Iterator[None]:
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


def _greet(host: str, port: int) -> None:
    """Wait for the first bytes that a Dask scheduler sends to a new connection: the length of its greeting.

    The client of Dask instead retries with log messages, and waits for ever on a port that accepts and says nothing.
    """
    with socket.create_connection((host, port), PATIENCE) as probe:
        probe.settimeout(PATIENCE)
        if not 0 < int.from_bytes(probe.recv(8), "little") < 2**20:
            raise OSError("what answers there does not speak as one")
