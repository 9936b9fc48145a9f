"""Chapters executed by papermill, each in a process of its own, several at once under one progress bar.

A chapter that worked is kept whole; what was written of one that failed is kept apart.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any, cast

from tqdm import tqdm

from descent.repro.files import atomic_path, check_writable, write_json
from descent_book.run.notebook import INJECTED, as_text, cleaned, seal, tags
from descent_book.run.project import NEUTRAL_PARAMETERS

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_FOLDERS = {"DESCENT_DATA", "PYTHONPATH"}
_HEADING = re.compile(r"^#+\s+(.+?)\s*$", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_GROUPED = re.compile(r"^ +\| (?! |Traceback)(.+)$", re.MULTILINE)  # an exception of a group, less its traceback
_SAID = 700  # letters of an error at its start, where it says what was wrong, and at its end, where it says what to do


@dataclass(frozen=True)
class Job:
    """A chapter to run."""

    chapter: str
    notebook: Path  # its source
    size: int  # the number of its code cells
    inject: Mapping[str, Any]  # the parameters that differ from the notebook's own, as papermill is to inject them
    parameters: Mapping[str, Any]  # all of them, as they are noted in the result
    output: Path  # where the executed notebook goes
    results: Path  # where its record and claims go
    key: str  # digest of everything that the run depends on
    depends: Mapping[str, Any]  # the parts of the key, as the edition keeps them to say later what differs
    timeout: int  # seconds that a cell may take
    cores: int  # threads that the chapter may use
    root: Path  # the project's folder, no trace of which may stay in an output

    @property
    def failed(self) -> Path:
        """Where the notebook goes when the chapter fails."""
        return self.root / "_build" / "failed" / f"{self.chapter}.ipynb"


@dataclass(frozen=True)
class Started:
    """A code cell has begun; `number` counts code cells from 1."""

    chapter: str
    number: int
    heading: str


@dataclass(frozen=True)
class Outcome:
    """How a chapter ended: `error` is empty when it worked, else it names the cell and the error."""

    chapter: str
    seconds: float
    error: str = ""


def run_jobs(jobs: Sequence[Job], limit: int) -> list[Outcome]:
    """Run jobs in processes of their own, at most `limit` at once, under one progress bar.

    Every chapter runs to its end, whatever happens to the others. An interrupt ends all of them.
    """
    waiting = list(jobs)
    running: dict[Connection, BaseProcess] = {}
    outcomes: list[Outcome] = []
    finished: dict[str, int] = {}
    sizes = {job.chapter: job.size for job in jobs}
    form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} cells, {elapsed}"
    bar = tqdm(total=sum(sizes.values()), bar_format=form, dynamic_ncols=True, file=sys.stderr)
    with bar, _ended_together(running):
        while waiting or running:
            while waiting and len(running) < limit:
                receiver, process = _start(waiting.pop(0))
                running[receiver] = process
            for ready in wait(list(running), timeout=1):
                receiver = cast(Connection, ready)
                event = _receive(receiver, running[receiver])
                if isinstance(event, Started):
                    finished[event.chapter] = event.number - 1
                    heading = event.heading or "start"
                    bar.set_description(f"{event.chapter}: {heading} (cell {event.number})", refresh=False)
                else:
                    finished[event.chapter] = sizes[event.chapter]
                    outcomes.append(event)
                    running.pop(receiver).join()
                bar.n = sum(finished.values())
                bar.refresh()
            if sys.stderr.isatty():
                bar.refresh()  # the clock goes on during a long cell
    return outcomes


def _start(job: Job) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work_on_job, args=(job, sender), name=job.chapter)
    process.start()
    sender.close()  # so that the worker's death is seen as the end of the pipe
    return receiver, process


def _receive(receiver: Connection, process: BaseProcess) -> Started | Outcome:
    try:
        event: Started | Outcome = receiver.recv()
    except EOFError:
        process.join()
        return Outcome(process.name, 0.0, f"its process ended with status {process.exitcode}, without a word")
    return event


@contextmanager
def _ended_together(running: Mapping[Connection, BaseProcess]) -> Iterator[None]:
    """Let no worker outlive the block; a plain `kill` counts as an interrupt."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join(10)
            process.kill()


def environment(cores: int) -> dict[str, str]:
    """What the kernel's environment adds: no progress bars in outputs, inline figures, no more threads than `cores`.

    A smaller number of threads that the caller has set already is kept; of a list, one number for each level of nested
    threads, the first counts. What is no number is left out.
    """
    asked = {name: os.environ.get(name, "").partition(",")[0].strip() for name in _THREAD_VARIABLES}
    most = {
        name: int(text) if text.isdecimal() and len(text) < 10 and int(text) else cores for name, text in asked.items()
    }
    allowed = {name: str(min(cores, number)) for name, number in most.items()}
    backend = "module://matplotlib_inline.backend_inline"
    return {"DESCENT_CORES": str(cores), "TQDM_DISABLE": "1", "MPLBACKEND": backend, **allowed}


def work_on_job(job: Job, connection: Connection) -> None:
    """The body of a worker process: run the job, send `Started` for each cell and an `Outcome` at the end."""
    os.setsid()  # an interrupt at the terminal goes to the runner, which ends its workers itself
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    Thread(target=_end_with_the_runner, daemon=True).start()
    try:
        os.environ.update(environment(job.cores), DESCENT_CHAPTERS=str(job.notebook.parent))
        for name in _FOLDERS & os.environ.keys():  # the kernel runs in another folder
            given = filter(None, os.environ[name].split(os.pathsep))
            os.environ[name] = os.pathsep.join(str(Path(folder).expanduser().absolute()) for folder in given)
        with _home():
            outcome = execute(job, connection.send)
    except Exception as error:  # no folder for scratch files, for one
        outcome = Outcome(job.chapter, 0.0, f"before the first cell: {_one_line(error)}")
    connection.send(outcome)


@contextmanager
def _home() -> Iterator[None]:
    """Folders of its own where the user's cannot be written to: else no kernel starts, and matplotlib warns."""
    try:
        usable = Path.home().is_absolute() and os.access(Path.home(), os.W_OK | os.X_OK)
    except RuntimeError:  # of a user whom the machine does not know
        usable = False
    with tempfile.TemporaryDirectory(prefix="descent-home-") as own:
        if not usable:
            os.environ["HOME"] = own
        home, caches = Path.home(), ("CACHE", "CONFIG")
        drawing = [
            Path(os.environ.get(f"XDG_{kind}_HOME") or home / f".{kind.lower()}", "matplotlib") for kind in caches
        ]
        for name, usual in (("MPLCONFIGDIR", drawing), ("IPYTHONDIR", [home / ".ipython"])):
            try:
                for folder in [os.environ[name]] if os.environ.get(name) else usual:
                    check_writable(name, folder)
            except ValueError:
                os.environ[name] = str(Path(own, name))
        yield


def _end_with_the_runner() -> None:
    """End this worker and its kernel, as at an interrupt, when the runner is killed and cannot do it."""
    if runner := multiprocessing.parent_process():
        wait([runner.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def execute(job: Job, report: Callable[[Started], None]) -> Outcome:
    """Run a chapter in a scratch folder; move results and notebook to their places when every cell has run.

    Everything is written before any file takes its name, and the notebook takes its own last: a full disk leaves all as
    it was, and a run cut short at any moment leaves the old key in place, so that the run is repeated.
    """
    start, last = time.monotonic(), Started(job.chapter, 0, "")

    def remember(number: int, heading: str) -> None:
        nonlocal last
        origin.result()  # what it refuses ends the run before the first cell
        last = Started(job.chapter, number, heading)
        report(last)

    with tempfile.TemporaryDirectory(prefix="descent-") as scratch:
        raw, results = Path(scratch) / "raw.ipynb", Path(scratch) / "results"
        try:
            results.mkdir()
            with ThreadPoolExecutor(1) as pool:  # its three seconds pass while the kernel starts
                origin = pool.submit(_origin, job)
                run_notebook(job.notebook, raw, {**job.inject, "results_dir": str(results)}, job.timeout, remember)
            claims = _claims(results)
            seconds = round(time.monotonic() - start, 1)
            _publish(job, raw, results, {"seconds": seconds, "claims": claims, "provenance": origin.result()})
        except Exception as error:  # whatever went wrong, the other chapters go on and the runner says it
            where = f"cell {last.number} ({last.heading!r})" if last.number else "before the first cell"
            if last.number:  # else nothing of it has run
                _keep_failed(job, raw)
            return Outcome(job.chapter, time.monotonic() - start, f"{where}: {_one_line(error, raw)}")
    return Outcome(job.chapter, seconds)


def run_notebook(
    notebook: Path, output: Path, parameters: Mapping[str, Any], timeout: int, report: Callable[[int, str], None]
) -> None:
    """Execute `notebook` with `parameters` in a kernel of this very interpreter and in the folder of `output`.

    papermill writes `output` as the run goes on; it is left behind, as far as it came, when a cell fails, such as one
    that takes more than `timeout` seconds. Before each code cell `report` is called with its number, from 1, and the
    heading above it.

    Raises:
        Exception: papermill's PapermillExecutionError for a failing cell; nbclient's for a timeout or a dead kernel.
    """
    import papermill

    number, heading = 0, ""

    def cell_start(cell: Any, cell_index: int) -> None:
        nonlocal number, heading
        if cell.cell_type == "code" and INJECTED not in tags(cell):
            number += 1
            report(number, heading)
        elif headings := _HEADING.findall(cell.source):
            heading = headings[-1]

    with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
        papermill.execute_notebook(
            notebook,
            output,
            dict(parameters),
            kernel_name="python3",
            language="python",
            kernel_manager_class=_kernels_of_this_interpreter(Path(sockets)),
            on_cell_start=cell_start,
            progress_bar=False,
            execution_timeout=timeout,
            record_timing=False,
            cwd=output.parent,
        )


def _kernels_of_this_interpreter(sockets: Path) -> type:
    """A class of kernel managers that start this interpreter, whatever kernels the machine has registered.

    The kernel is spoken to through files in the folder `sockets`, of this run alone: a TCP port that was free when it
    was chosen can be taken by another run before the kernel binds it, and the kernel dies. Windows has ports only, and
    so has a folder whose name is too long for a socket.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(AsyncKernelManager):
        def __init__(self, **options: Any) -> None:
            short = len(os.fsencode(sockets)) <= 80  # a socket's name has 103 bytes at most, its end about 15
            transport = "ipc" if short and os.name != "nt" else "tcp"
            super().__init__(transport=transport, connection_file=str(sockets / "kernel.json"), **options)

        @property
        def kernel_spec(self) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=40"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    return ThisInterpreter


def _claims(results: Path) -> list[dict[str, Any]]:
    """The claims that the chapter has written, as plain JSON.

    Raises:
        FileNotFoundError: it has written none, which a chapter that ran to its end has done.
        ValueError: the file holds something else.
    """
    from descent_book.run.scorecard import read_claims

    file = results / "claims.json"
    if not file.is_file():
        raise FileNotFoundError("the chapter ran but wrote no claims.json in its results_dir: did a sys.exit() end it?")
    return [claim.model_dump(mode="json") for claim in read_claims(file)]


def _origin(job: Job) -> dict[str, Any]:
    from descent.repro.records import provenance  # here, for it imports torch

    return {**provenance(job.parameters.get("seed"))}


def _publish(job: Job, raw: Path, results: Path, measured: Mapping[str, Any]) -> None:
    notebook = cleaned(json.loads(raw.read_text(encoding="utf-8")), _hidden(job, raw.parent))
    notebook["metadata"]["descent"] = {
        "key": job.key,
        "depends": job.depends,
        "preset": job.parameters["preset"],
        "parameters": {name: value for name, value in job.parameters.items() if name not in NEUTRAL_PARAMETERS},
        **measured,
    }
    text = as_text(seal(notebook))
    try:
        with ExitStack() as places:  # it closes the first last
            places.enter_context(atomic_path(job.output)).write_text(text, encoding="utf-8")
            for file in sorted(each for each in results.rglob("*") if each.is_file()):
                shutil.copyfile(file, places.enter_context(atomic_path(job.results / file.relative_to(results))))
    except OSError as error:
        kept = f"{job.output.parent} and {job.results} are as they were"
        raise OSError(f"not kept, {error.strerror or error}: {kept}") from error
    if job.failed.is_file():  # where the checkout is read-only, not even what is not there can be removed
        job.failed.unlink()


def _keep_failed(job: Job, raw: Path) -> None:
    if raw.is_file():
        # When papermill was cut off while writing, or the disk is full, the message alone has to do.
        with suppress(ValueError, OSError):
            write_json(job.failed, cleaned(json.loads(raw.read_text(encoding="utf-8")), _hidden(job, raw.parent)))


def _one_line(error: Exception, raw: Path | None = None) -> str:
    """Name, message and notes of an error, without papermill's traceback; of a long one its start and its end.

    A group of exceptions is no error to papermill: it stands in the last output of the notebook `raw`.
    """
    text = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
    notes = _COLOUR.sub("", "\n".join(getattr(error, "traceback", []))).split(text)[1:][-1:]
    if text == "CellExecutionError: " and raw is not None:
        cells = json.loads(raw.read_text(encoding="utf-8"))["cells"]
        written = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])][-1:]
        text = "; ".join(_GROUPED.findall("".join(map("".join, written)))) or text
    said = " ".join("".join([text, *notes]).split())
    return said if len(said) <= 2 * _SAID else f"{said[:_SAID]} [...] {said[-_SAID:]}"


def _hidden(job: Job, scratch: Path) -> dict[str, str]:
    """Folders of this machine and what stands for them in an output; the longest first."""
    folders = {str(job.root): ".", str(scratch): "<scratch>", sys.prefix: "<env>"}
    with suppress(RuntimeError):  # there is none
        folders[str(Path.home())] = "~"
    if data := os.environ.get("DESCENT_DATA"):
        folders[str(Path(data).expanduser().absolute())] = "data"
    told = [path for path in folders if len(path) > 1 and Path(path).is_absolute()]
    return {path: folders[path] for path in sorted(told, key=len, reverse=True)}
