"""`make check` looks at the folders of one room, which exist, and refuses any other room by name."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = sorted(path.parent.name for path in (ROOT / "lib" / "descent").glob("*/__init__.py"))


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "READY=Makefile", *arguments]  # nothing is to be installed
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}  # of the make that runs the tests
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("room", [*ROOMS, "book", "house"])
def test_a_room_is_checked_in_the_folders_of_its_code_and_its_tests(room: str) -> None:
    said = make("-n", "check", f"ROOM={room}").stdout
    folders = set(re.findall(r"(?:lib|tests)/\w[\w/]*", said))
    code = {"book": {"lib/descent_book"}, "house": set()}.get(room, {f"lib/descent/{room}"})
    assert folders == {*code, f"tests/{room}"}
    assert all((ROOT / folder).is_dir() for folder in folders)
    assert ("mypy" in said) == bool(code)


@pytest.mark.parametrize("room", ["spectre", "", "spectra plots x", "../data"])
def test_a_room_that_there_is_not_is_refused_with_those_that_there_are(room: str) -> None:
    done = make("check", f"ROOM={room}")
    assert done.returncode == 2
    assert f"ROOM={room}: expected one of {' '.join(ROOMS)} book house" in done.stderr
    assert done.stdout == ""
