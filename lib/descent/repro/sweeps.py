"""A function over many points, in shards that are kept, on this machine or on a Dask cluster, the same bits on both."""

from __future__ import annotations

import hashlib
import tempfile
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import cloudpickle
import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from tqdm import tqdm

from descent.repro.cluster import connected_client, host_and_port
from descent.repro.files import exclusive_folder
from descent.repro.machine import cores, keep_freed_memory
from descent.repro.records import Record, provenance
from descent.repro.seeding import deterministic

Points = NDArray[Any]
Values = dict[str, NDArray[Any]]
PointTask = Callable[[Points], Mapping[str, NDArray[Any]]]
Finished = tuple[int, Values, Mapping[str, Any]]
_ONE_AT_A_TIME = Lock()  # thread counts belong to the process, so a worker of several threads takes turns


class SweepError(RuntimeError):
    """A shard could not be computed; names its first point. The finished shards are kept."""


@dataclass(frozen=True)
class Sweep:
    """Where and how a sweep runs; nothing here changes its result but, in the last bits, `shard_size`.

    Attributes:
        scheduler: "" for processes of this machine, or a Dask scheduler's "tcp://host:port".
        folder: keeps each finished shard, from which a killed sweep goes on; None keeps nothing.
        shard_size: points that a worker takes at once; the last shard may be smaller.
        progress: text before a progress bar; None shows none.
        workers: processes on this machine; None takes `seeding.cores()`. A cluster has the workers that it has.
    """

    scheduler: str = ""
    folder: Path | None = None
    shard_size: int = 64
    progress: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.shard_size < 1 or (self.workers is not None and self.workers < 1):
            raise ValueError(f"shard_size={self.shard_size}, workers={self.workers}: expected at least 1 each")
        if self.scheduler:
            host_and_port(self.scheduler)


def sweep(task: PointTask, points: Points, how: Sweep, key: str) -> Values:
    """Compute `task` at every point, shard by shard, each with one thread and deterministic kernels.

    The result is the same to the last bit whatever the number of workers, their order or the scheduler, as long as all
    workers have the same versions and kind of processor.

    Args:
        task: `task(points (s, k)) -> {name: (s, ...)}`, a function of the points alone: no global generator, default or
            file that another process would lack. It travels to each worker process once, so it may hold a model.
        points: `(n, k)`, such as grid points, or seeds as `(n, 1)`.
        how: where it runs, what is kept.
        key: says what is swept, such as a digest of model, directions and grid; a shard of another key is refused.

    Returns:
        `{name: (n, ...)}` in the order of the points. NaN and infinities are results like others.

    Raises:
        ValueError: no points, or `how.folder` holds shards of another key or of other points.
        SweepError: the task raised, gave arrays of another length, or its worker died again and again.
        InUseError: another sweep is writing to `how.folder`.
        ConnectionError: the scheduler cannot be reached, has no worker, or was lost on the way.
        ImportError: a scheduler is named and the package `distributed` is not installed.
    """
    if points.ndim != 2 or len(points) == 0:
        raise ValueError(f"points of shape {points.shape}: expected (n, k), at least one point")
    shards = {n: points[at : at + how.shard_size] for n, at in enumerate(range(0, len(points), how.shard_size))}
    with exclusive_folder(how.folder), tqdm(total=len(points), desc=how.progress, disable=how.progress is None,
                                            unit="point", mininterval=0.5) as bar:  # fmt: skip
        done, damaged = _kept(shards, how.folder, key)
        missing = {number: part for number, part in shards.items() if number not in done}
        bar.n = bar.initial = sum(len(shards[number]) for number in done)
        if damaged:
            bar.set_postfix_str(f"damaged and computed again: {', '.join(damaged[:3])}{', ...' * (len(damaged) > 3)}")
        with closing(_on_cluster(task, missing, how) if how.scheduler else _on_this_machine(task, missing, how)) as new:
            for number, values, origin in new:
                if how.folder is not None:
                    settings = {"key": key, **_marks(shards[number], values)}
                    Record("sweep", values, settings, origin).save(_path(how.folder, number))
                done[number] = values
                bar.update(len(shards[number]))
    return _joined(done)


def _path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.npz"


def _marks(points: Points, values: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What a shard's file says of its points and arrays, to be compared when it is read."""
    digest = hashlib.sha256(f"{points.dtype} {points.shape} ".encode() + points.tobytes()).hexdigest()
    return {"points": digest, "names": sorted(values)}


def _kept(shards: Mapping[int, Points], folder: Path | None, key: str) -> tuple[dict[int, Values], list[str]]:
    """The shards that an earlier run finished, and the names of damaged files, which are to be computed again."""
    done: dict[int, Values] = {}
    damaged: list[str] = []
    if folder is None:
        return done, damaged
    for unfinished in folder.glob(".shard-*.tmp*"):  # what a kill left half written
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
        if (found := record.settings.get("key")) != key:
            raise ValueError(f"{folder}: {path.name} is of key {found!r}, expected {key!r}; name another folder")
        marks = _marks(part, record.values)
        if record.settings.get("points") != marks["points"]:
            raise ValueError(f"{folder}: {path.name} holds other points or another shard_size; name another folder")
        if record.settings.get("names") != marks["names"]:  # damage to the archive's table of contents hides arrays
            damaged.append(path.name)
            continue
        done[number] = dict(record.values)
    return done, damaged


def _joined(done: Mapping[int, Values]) -> Values:
    parts = [done[number] for number in sorted(done)]
    for number, part in enumerate(parts):
        if set(part) != set(parts[0]):
            raise ValueError(f"shard {number} gave {sorted(part)}, shard 0 {sorted(parts[0])}: expected the same names")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _run(task: PointTask, number: int, points: Points) -> Finished:
    """One shard, in whatever process this is."""
    first = points[0].tolist()
    with _ONE_AT_A_TIME, deterministic(1):
        try:
            given = task(np.array(points))  # a copy: writable and contiguous, whichever way it came
            values = {name: np.array(value) for name, value in given.items()}
            for name, value in values.items():
                if value.shape[:1] != (len(points),):
                    raise ValueError(f"{name!r} of shape {value.shape}: expected ({len(points)}, ...), a row per point")
        except Exception as error:
            failure = SweepError(_complaint(number, first, error))
            failure.add_note(traceback.format_exc())  # a cause would not survive the way between processes
            raise failure from None
        return number, values, _origin()


def _complaint(number: int, first: object, error: Exception) -> str:
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
        warnings.filterwarnings("ignore", message="A worker stopped")  # joblib replaced one whose memory had grown
        warnings.filterwarnings("ignore", message=".* You could benefit from adjusting")  # shards that a failure ended
        path = Path(folder, "task")
        path.write_bytes(cloudpickle.dumps(task))
        calls = (delayed(_run_stored)(path, number, part) for number, part in shards.items())
        pool = Parallel(workers, backend="loky", return_as="generator_unordered", batch_size=1, max_nbytes=None)
        with closing(pool(calls)) as finished:
            for shard in finished:
                if isinstance(shard, SweepError):
                    raise shard
                yield shard


def _run_stored(path: Path, number: int, points: Points) -> Finished | SweepError:
    """A failure is a result here: joblib would raise it at once, and drop the shards that were finished before it."""
    try:
        return _run_in_worker(_stored(path), number, points)
    except SweepError as failure:
        return failure


@lru_cache(maxsize=1)
def _stored(path: Path) -> PointTask:
    task: PointTask = cloudpickle.loads(path.read_bytes())  # of this process's own folder, written a moment before
    return task


def _run_in_worker(task: PointTask, number: int, points: Points) -> Finished:
    keep_freed_memory()
    return _run(task, number, points)


def _on_cluster(task: PointTask, shards: Mapping[int, Points], how: Sweep) -> Generator[Finished]:
    """The shards on a Dask cluster, which gives those of a lost worker to another.

    The task is itself a result on the cluster: workers pass it on, and it is made again when all that had it are lost.
    """
    if not shards:
        return
    with connected_client(how.scheduler) as client:
        import dask
        from distributed import as_completed

        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):  # a model goes once
            stored = client.submit(cloudpickle.loads, cloudpickle.dumps(task), pure=False)
        numbers = {
            client.submit(_run_in_worker, stored, number, part, pure=False): number for number, part in shards.items()
        }
        for future in as_completed(list(numbers), loop=client.loop):
            number = numbers.pop(future)
            try:
                if future.status != "finished":  # a failure may overtake what was finished before it
                    yield from [other.result() for other in numbers if other.status == "finished"]
                finished: Finished = future.result()
            except SweepError:
                raise
            except CancelledError as error:
                raise ConnectionError(f"{how.scheduler}: the scheduler was lost; run again to go on") from error
            except Exception as error:  # a worker that lacks a package, or that died again and again
                raise SweepError(_complaint(number, shards[number][0].tolist(), error)) from error
            yield finished
