"""One chapter, executed by papermill in a process of its own: kept whole when it works, as an artefact when not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any

from descent_book.run.notebook import as_text, seal
from descent_book.run.project import NEUTRAL_PARAMETERS

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_SCRATCH_CELL = re.compile(r"\S*ipykernel_\d+/\d+\.py")
# a bar of tqdm that was asked for by name: TQDM_DISABLE is a default only
_BAR = re.compile(r"\r?[^\r\n|]*\d+%\|[^|\r\n]*\| [^\[\r\n]+\[[^\]\r\n]*\]\n?")
_OF_THE_MOMENT = re.compile(r"^.*UserWarning: A worker stopped while some jobs .*\n +warnings\.warn\(\n", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """A chapter to run.

    Attributes:
        notebook: its source.
        inject: the parameters that differ from the notebook's own, as papermill is to inject them.
        parameters: all of them, as they are noted in the result.
        output, results, failed: where the executed notebook, its record and claims, or the failed notebook go.
        key: content hash of everything the run depends on.
        depends: the parts of the key, as the edition keeps them to say later what differs.
        timeout: seconds that a cell may take.
        cores: threads that the chapter may use.
        root: the project's folder, no trace of which may stay in an output.
    """

    chapter: str
    notebook: Path
    inject: Mapping[str, Any]
    parameters: Mapping[str, Any]
    output: Path
    results: Path
    failed: Path
    key: str
    depends: Mapping[str, Any]
    timeout: int
    cores: int
    root: Path


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
    claims: list[dict[str, Any]] = field(default_factory=list)


def environment(cores: int) -> dict[str, str]:
    """What the kernel's environment adds: no progress bars in outputs, inline figures, no more threads than `cores`.

    A smaller number of threads that the caller has set already is kept.
    """
    allowed = {name: str(min(cores, int(os.environ.get(name) or cores))) for name in _THREAD_VARIABLES}
    backend = "module://matplotlib_inline.backend_inline"
    return {"DESCENT_CORES": str(cores), "TQDM_DISABLE": "1", "MPLBACKEND": backend, **allowed}


def code_cells(notebook: Path) -> int:
    """The number of code cells of a notebook."""
    return sum(cell["cell_type"] == "code" for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"])


def work_on_job(job: Job, connection: Connection) -> None:
    """The body of a worker process: run the job, send `Started` for each cell and an `Outcome` at the end."""
    os.setsid()  # an interrupt at the terminal goes to the runner, which ends its workers itself
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    Thread(target=_end_with_the_runner, daemon=True).start()
    os.environ.update(environment(job.cores))
    connection.send(execute(job, connection.send))


def _end_with_the_runner() -> None:
    """A runner that is killed cannot end its workers: each sees to it, and ends its kernel as at an interrupt."""
    if runner := parent_process():
        wait([runner.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def execute(job: Job, report: Callable[[Started], None]) -> Outcome:
    """Run a chapter in a scratch folder; move results and notebook to their places when every cell has run.

    Everything is written before anything takes its name, and the notebook takes its own last: a full disk leaves all as
    it was, and a run cut short at any moment leaves the old key in place, and so is repeated.
    """
    start, last = time.monotonic(), Started(job.chapter, 0, "")

    def remember(event: Started) -> None:
        nonlocal last
        last = event
        report(event)

    with tempfile.TemporaryDirectory(prefix="descent-") as scratch:
        raw, results = Path(scratch) / "raw.ipynb", Path(scratch) / "results"
        try:
            results.mkdir()
            _run(job, raw, results, remember)
            claims = _claims(results)
            seconds = round(time.monotonic() - start, 1)
            _publish(job, raw, results, {"seconds": seconds, "claims": claims})
        except Exception as error:  # whatever went wrong, the other chapters go on and the runner says it
            where = f"cell {last.number} ({last.heading!r})" if last.number else "before the first cell"
            _keep_failed(job, raw)
            return Outcome(job.chapter, time.monotonic() - start, f"{where}: {_one_line(error)}")
    return Outcome(job.chapter, seconds, claims=claims)


def _run(job: Job, raw: Path, results: Path, report: Callable[[Started], None]) -> None:
    from descent_book.run.kernel import run_notebook

    parameters = {**job.inject, "results_dir": str(results)}
    run_notebook(
        job.notebook, raw, parameters, job.timeout, lambda n, heading: report(Started(job.chapter, n, heading))
    )


def _claims(results: Path) -> list[dict[str, Any]]:
    """The claims that the chapter has written.

    Raises:
        FileNotFoundError: it has written none, which a chapter that ran to its end has done.
    """
    file = results / "claims.json"
    if not file.is_file():
        raise FileNotFoundError("the chapter ran but wrote no claims.json in its results_dir")
    claims: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["claims"]
    return claims


def _publish(job: Job, raw: Path, results: Path, measured: Mapping[str, Any]) -> None:
    from descent.repro.files import atomic_path
    from descent.repro.records import provenance

    notebook = cleaned(json.loads(raw.read_text(encoding="utf-8")), _hidden(job, raw.parent))
    notebook["metadata"]["descent"] = {
        "key": job.key,
        "depends": job.depends,
        "preset": job.parameters["preset"],
        "parameters": {name: value for name, value in job.parameters.items() if name not in NEUTRAL_PARAMETERS},
        **measured,
        "provenance": provenance(job.parameters.get("seed")),
    }
    text = as_text(seal(notebook))
    try:
        with ExitStack() as places:  # it closes the first last
            places.enter_context(atomic_path(job.output)).write_text(text, encoding="utf-8")
            for file in sorted(results.iterdir()):
                shutil.copyfile(file, places.enter_context(atomic_path(job.results / file.name)))
    except OSError as error:
        kept = f"{job.output.parent} and {job.results} are as they were"
        raise OSError(f"not kept, {error.strerror or error}: {kept}") from error
    job.failed.unlink(missing_ok=True)


def _keep_failed(job: Job, raw: Path) -> None:
    from descent.repro.files import write_json

    if raw.is_file():
        # papermill was cut off while writing, or the disk is full: then the message alone has to do
        with suppress(ValueError, OSError):
            write_json(job.failed, cleaned(json.loads(raw.read_text(encoding="utf-8")), _hidden(job, raw.parent)))


def _one_line(error: Exception) -> str:
    """Name and message of an error, without the traceback that papermill puts in its text."""
    name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return f"{name}: {' '.join(str(text).split())}"[:400]


def _hidden(job: Job, scratch: Path) -> dict[str, str]:
    """Folders of this machine and what stands for them in an output; the longest first."""
    folders = {str(job.root): ".", str(scratch): "<scratch>", sys.prefix: "<env>", str(Path.home()): "~"}
    if data := os.environ.get("DESCENT_DATA"):
        folders[data.rstrip("/")] = "data"
    return {path: folders[path] for path in sorted(folders, key=len, reverse=True) if len(path) > 1}


def cleaned(notebook: dict[str, Any], hidden: Mapping[str, str]) -> dict[str, Any]:
    """An executed notebook without anything of the run's time and place, so that equal runs give equal files.

    papermill's metadata, timings and widget state go; the injected cell loses the parameters that only say where to
    write or to compute, and goes when it has no other; the folders named in `hidden` are replaced in text outputs.
    Progress bars go too, and joblib's warning that it replaced a worker process, which depends on the moment.
    """
    notebook["metadata"] = {k: v for k, v in notebook["metadata"].items() if k in ("kernelspec", "language_info")}
    kept = []
    for cell in notebook["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k not in ("papermill", "execution")}
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["id"] = "injected-parameters"
            lines = "".join(cell["source"]).splitlines(keepends=True)
            cell["source"] = [line for line in lines if line.split(" = ")[0] not in NEUTRAL_PARAMETERS]
            if not any("=" in line for line in cell["source"]):
                continue
        if "outputs" in cell:
            neutral = [_neutral(output, hidden) for output in cell["outputs"]]
            cell["outputs"] = [output for output in neutral if output.get("text") != ""]
        kept.append(cell)
    notebook["cells"] = kept
    return notebook


def _neutral(output: dict[str, Any], hidden: Mapping[str, str]) -> dict[str, Any]:
    """An output with the folders replaced in its text; images and plotly's data stay as they are."""
    data = {k: _replaced(v, hidden) if k.startswith("text/") else v for k, v in output.get("data", {}).items()}
    text: dict[str, Any] = {k: _replaced(output[k], hidden) for k in ("text", "traceback", "evalue") if k in output}
    if output.get("name") == "stderr":
        said = "".join(text["text"])
        rest = _BAR.sub("", _OF_THE_MOMENT.sub("", said))
        if rest != said or not rest.strip():  # a bar ends with a line break by itself
            text["text"] = rest if rest.strip() else ""
    return {**output, **text, **({"data": data} if "data" in output else {})}


def _replaced(text: Any, hidden: Mapping[str, str]) -> Any:
    if isinstance(text, list):
        return [_replaced(line, hidden) for line in text]
    text = _SCRATCH_CELL.sub("<cell>", text)
    for path, word in hidden.items():
        text = re.sub(rf"(?<![\w/]){re.escape(path)}(?![\w-])", word.replace("\\", r"\\"), text)
    return text
