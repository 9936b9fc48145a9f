"""Change the code of a room in small ways, one at a time, and say which changes its tests do not notice.

`make mutate ROOM=spectra` runs `python tests/helpers/mutate.py spectra`; with `--since REVISION` only the lines that
differ from it count. The work is done in `_build/mutants/ROOM`, by mutmut, which changes the bodies and the default
values of functions: it drops arguments, adds one to numbers, swaps operators, puts None in the place of a value.
Messages of errors are left as they are; constants of modules and classes are not reached.

A change that is known to be harmless, or that nothing can notice, stands in `tests/mutants.yml` with the reason.
"""

from __future__ import annotations

import ast
import difflib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import click
import yaml

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "lib" / "descent"
KNOWN = ROOT / "tests" / "mutants.yml"
# what tests read beside the code; they run two folders below, as if in a checkout
BESIDE = ("_toc.yml", "_config.yml", "book", "data", "notebooks", "benchmarks", "README.md", "requirements.txt")
SETTINGS = r"""
[tool.mutmut]
source_paths = ["descent"]
only_mutate = ["descent/{room}/*.py"]
do_not_mutate_patterns = ['^\s*raise ', 'Error\(', '^\s*f?"', 'message = ', 'expected = ']
pytest_add_cli_args = ["-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = ["tests/{room}"]
also_copy = ["descent_book"]
use_setproctitle = false
"""


# what decides no result: arguments of `zip`, where lengths are equal, and of progress bars; types in `cast`, None for
# the type in `astype`, which is float64 again, None for no bias, and the letters of an `einsum`, small or capital; and
# the comma that is left where a last argument is taken out
NEUTRAL = re.compile(
    r",? ?\b(strict|desc|disable|unit|mininterval|total|initial)=[^,()]*"
    r"|(?<=\bcast\()[^,]*|(?<=\.astype\()(np\.float64|float|None)(?=\))|(?<=\bbias=)(False|None)"
    r'|(?<=\beinsum\()"[^"]*"|, (?=\))'
)


class Survivor(NamedTuple):
    """A change that no test noticed: in which function, and the lines that differ, as they were and as they became."""

    function: str
    was: str
    becomes: str


def lay_out(room: str) -> Path:
    """A folder with the packages at its top, as mutmut wants them, the room's tests, and links to what they read."""
    folder = ROOT / "_build" / "mutants" / room
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "mutants").mkdir(parents=True)
    compiled = shutil.ignore_patterns("__pycache__")
    for package in ("descent", "descent_book"):
        shutil.copytree(ROOT / "lib" / package, folder / package, ignore=compiled)
    for part in ("helpers", room):
        shutil.copytree(ROOT / "tests" / part, folder / "tests" / part, ignore=compiled)
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    for name in BESIDE:
        for place in (folder, folder / "mutants"):
            (place / name).symlink_to(ROOT / name)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(text + SETTINGS.format(room=room), encoding="utf-8")
    return folder


def lines_since(revision: str, path: Path) -> dict[int, str]:
    """The lines of a file that differ from a revision, by their numbers from 1."""
    name = path.relative_to(ROOT).as_posix()
    before = subprocess.run(["git", "show", f"{revision}:{name}"], cwd=ROOT, capture_output=True, text=True).stdout
    now = path.read_text(encoding="utf-8").splitlines()
    same = difflib.SequenceMatcher(None, before.splitlines(), now, autojunk=False)
    changed = [range(low, high) for kind, _, _, low, high in same.get_opcodes() if kind != "equal"]
    return {line + 1: now[line].strip() for part in changed for line in part}


def functions(body: list[ast.stmt], within: str = "") -> Iterator[tuple[ast.FunctionDef, str]]:
    """Functions and methods with the names that mutmut gives them."""
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield node, f"xǁ{within}ǁ{node.name}" if within else f"x_{node.name}"
        elif isinstance(node, ast.ClassDef):
            yield from functions(node.body, node.name)


def changed_functions(revision: str, room: str) -> list[str]:
    """The functions of a room that differ from a revision, as patterns for mutmut."""
    patterns = []
    for path in sorted((LIBRARY / room).glob("*.py")):
        lines = lines_since(revision, path)
        module = ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts)
        for node, name in functions(ast.parse(path.read_text(encoding="utf-8")).body):
            if lines.keys() & set(range(node.lineno, (node.end_lineno or 0) + 1)):
                patterns.append(f"{module}.{name}__mutmut_*")
    return patterns


def mutmut(folder: Path, *arguments: str, until: float | None = None) -> tuple[int, str]:
    """The exit status of mutmut and what it said; at the time `until` it is ended, as what it found so far is kept."""
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "mutants"), os.environ.get("PYTHONPATH", "")])}
    # a process that mutmut forks waits for ever for threads of OpenMP, which the one before it has started
    found |= {"OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "mutmut", *arguments]
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=folder, env=found, **told) as process:
        try:
            said, _ = process.communicate(timeout=until and max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            return 0, said
    return process.returncode, said


def survivors(folder: Path) -> Iterator[Survivor]:
    """What mutmut found in a folder, a change of a line that no test runs among them."""
    for line in mutmut(folder, "results")[1].splitlines():
        name, _, state = line.strip().partition(": ")
        if state in ("survived", "no tests", "suspicious") and "__mutmut_" in name:
            shown = mutmut(folder, "show", name)[1].splitlines()
            was, becomes = (
                " ".join(each[1:].strip() for each in shown if each.startswith(sign) and not each.startswith(3 * sign))
                for sign in "-+"
            )
            function = re.sub(r"\.x[_ǁ](?=[^.]*$)", ".", name.partition("__mutmut_")[0]).replace("ǁ", ".")
            yield Survivor(function, was, becomes)


def states(folder: Path, room: str) -> dict[str, int | None]:
    """The changes that mutmut has laid out in a folder, and with which status their tests ended; None is not tried."""
    notes = sorted((folder / "mutants" / "descent" / room).glob("*.meta"))
    return {key: code for each in notes for key, code in json.loads(each.read_text())["exit_code_by_key"].items()}


def reasons() -> dict[Survivor, str]:
    """What is known of survivors, and why each stays."""
    known = yaml.safe_load(KNOWN.read_text(encoding="utf-8")) or {}
    return {
        Survivor(name, each["was"], each["becomes"]): each["why"] for name, several in known.items() for each in several
    }


def look_at(room: str, since: str | None, jobs: int, until: float | None, sample: int | None) -> bool:
    """Say what survives in a room; whether every change that does has a reason."""
    chosen = changed_functions(since, room) if since else []
    if since and not chosen:
        return True
    folder = lay_out(room)
    if sample:
        mutmut(folder, "run", "nothing by this name")  # lays all changes out, and tries none
        every = list(states(folder, room))
        chosen = random.Random(0).sample(every, min(sample, len(every)))
    status, said = mutmut(folder, "run", "--max-children", str(jobs), *chosen, until=until)
    if status:
        click.echo(f"{said[-6000:]}\n{room}: mutmut ended with status {status}", err=True)
        sys.exit(2)
    found = {each for each in survivors(folder) if NEUTRAL.sub("", each.was) != NEUTRAL.sub("", each.becomes)}
    known = reasons()
    if since:
        lines = {line for path in (LIBRARY / room).glob("*.py") for line in lines_since(since, path).values()}
        found = {each for each in found if any(line and line in each.was for line in lines)}
    for each in sorted(found - known.keys()):
        click.echo(f"{each.function}\n- {each.was}\n+ {each.becomes}\n")
    new, count = len(found - known.keys()), sum(code is not None for code in states(folder, room).values())
    share = f"{1 - new / count:.1%}" if count else "-"
    words = f"{len(found)} of {count:,} changes go unnoticed, {len(found) - new} with a reason in {KNOWN.name}"
    click.echo(f"{room}: {words}; {share} noticed or harmless")
    return not found - known.keys()


@click.command()
@click.argument("rooms", nargs=-1)
@click.option("--since", help="Only lines that differ from this revision; without a room, of all rooms.")
@click.option("--jobs", default=1, show_default=True, help="Processes at once.")
@click.option("--limit", type=float, help="Seconds, after which what was found so far counts.")
@click.option("--sample", type=int, help="So many changes of a room, drawn at random, the same ones in every run.")
def main(rooms: Sequence[str], since: str | None, jobs: int, limit: float | None, sample: int | None) -> None:
    """Say which small changes of ROOMS no test notices; status 1 where there is one without a reason."""
    until = time.monotonic() + limit if limit else None
    every = sorted(path.parent.name for path in LIBRARY.glob("*/__init__.py"))
    if not rooms and not since:
        raise click.UsageError(f"name a room, one of {', '.join(every)}, or --since REVISION")
    if since and sample:
        raise click.UsageError("--sample draws from all changes of a room: expected it without --since")
    looked = [look_at(room, since, jobs, until, sample) for room in rooms or every]
    sys.exit(0 if all(looked) else 1)


if __name__ == "__main__":
    main()
