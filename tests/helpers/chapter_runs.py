"""A chapter of this book, run by itself in a process whose environment the audits choose."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil

from descent.checkout import project_root
from descent_book.run.chapter import Chapter
from descent_book.run.project import chapters, notebook_path
from descent_book.run.scorecard import Measurement, read_claims
from descent_book.run.worker import environment

ROOT = project_root()
CHAPTERS = chapters(ROOT)
LIMIT_S = 3600  # for one chapter at quick on a machine that does other work too
PROGRAM = """import sys
from pathlib import Path
from descent_book.run.worker import run_notebook
notebook, folder = map(Path, sys.argv[1:])
run_notebook(notebook, folder / "raw.ipynb", {"results_dir": str(folder)}, 3600, lambda *_: None)"""
_ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \|", re.MULTILINE)


def begin(chapter: str, folder: Path, threads: int, before: tuple[str, ...] = (), **variables: str) -> subprocess.Popen:
    """Start it at preset quick, on so many threads; `before` are words of a command that runs this one."""
    folder.mkdir(parents=True, exist_ok=True)
    mine = {**os.environ, **environment(threads), "PYTHONPATH": str(ROOT / "lib"), **variables}
    mine |= {name: str(threads) for name in mine if name.endswith("_NUM_THREADS")}
    command = [*before, sys.executable, "-c", PROGRAM, str(notebook_path(ROOT, chapter)), str(folder)]
    return subprocess.Popen(command, env=mine, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def claims(
    chapter: str, folder: Path, threads: int, before: tuple[str, ...] = (), **variables: str
) -> list[Measurement]:
    """Run it to its end; the claims that it has judged."""
    process = begin(chapter, folder, threads, before, **variables)
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, said[-3000:]
    return read_claims(folder / "claims.json")


def stored_verdicts(chapter: str) -> dict[str, str]:
    """Claim, without the chapter's name -> verdict, from the outputs that the chapter's source keeps for nbval."""
    found = {}
    for cell in Chapter.read(ROOT, chapter).cells:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/markdown", output.get("text", ""))
            found |= dict(_ROW.findall("".join(text)))
    return {name: verdict.strip() for name, verdict in found.items() if name}


def memory(process: psutil.Process) -> int:
    """Resident bytes of a process and all below it; what they share counts for each, so it is an upper bound."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:  # it ended in the meantime
            continue
    return total


def peak(process: subprocess.Popen) -> int:
    """The largest `memory` of a run, looked at ten times a second until it ends."""
    watched, largest = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            largest = max(largest, memory(watched))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    return largest
