"""The library's rooms: which may use which, how large they are, and that nothing public is unused."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIB = ROOT / "lib"
SOURCES = {path.relative_to(LIB).as_posix(): path for path in sorted(LIB.rglob("*.py")) if "egg-info" not in str(path)}
MODULES = {name: path for name, path in SOURCES.items() if path.name != "__init__.py"}
DOORS = sorted(path.parent.name for path in (LIB / "descent").glob("*/__init__.pyi"))


def contracts(root: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", root / "pyproject.toml"]
    environment = {"PYTHONPATH": str(root / "lib"), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def test_the_contracts_between_rooms_are_kept():
    done = contracts(ROOT)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("descent/plots/lines.py", "from descent.landscape.surface import LossSurface"),
        ("descent/repro/files.py", "from descent.data.datasets import Dataset"),
        ("descent/training/loop.py", "from descent_book.run.project import pages"),
        ("descent_book/run/worker.py", "from descent.spectra.fourier_modulo_p import gini"),
    ],
)
def test_an_arrow_that_the_contracts_forbid_is_found(tmp_path, module, line):
    shutil.copytree(LIB, tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    path = tmp_path / "lib" / module
    path.write_text(path.read_text() + f"\n{line}\n")
    done = contracts(tmp_path)
    assert done.returncode != 0
    assert "BROKEN" in done.stdout


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function's code, without its signature and its docstring."""
    code = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - code[0].lineno + 1 if code else 0


def code_lines(path: Path) -> int:
    """Lines of code alone: without docstrings, comments and blank lines."""
    source = path.read_text()
    words: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            words |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(1 for number, line in lines if number not in words and line.strip() and line.strip()[0] != "#")


def test_sizes_stay_readable():
    assert len(MODULES) <= 100  # a chapter adds at most three, a language model two more
    sizes = {name: code_lines(path) for name, path in SOURCES.items()}
    proper = [name for name in sizes if name.startswith("descent/") and "/experiments/" not in name]
    assert sum(sizes[name] for name in proper) < 5_900
    assert sum(sizes.values()) < 13_800
    assert {name: count for name, count in sizes.items() if count > 310} == {}
    long = [
        f"{name}.{node.name}: {body_lines(node)} lines, {len(node.args.args)} arguments"
        for name, path in SOURCES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and (body_lines(node) > 40 or len([a for a in node.args.args if a.arg not in ("self", "cls")]) > 5)
    ]
    assert long == []


def test_no_public_name_is_defined_twice():
    where: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(name)
    entries = {"main", "setup"}  # of programs and of Sphinx extensions, by convention
    assert {name: places for name, places in where.items() if len(places) > 1 and name not in entries} == {}


def callers() -> str:
    """All code that may use a door: the library, notebooks and benchmarks, less the doors themselves."""
    notebooks = [*ROOT.glob("notebooks/*.ipynb"), LIB / "descent_book" / "run" / "new_chapter.ipynb"]
    cells = [cell["source"] for path in notebooks for cell in json.loads(path.read_text())["cells"]]
    sources = [path.read_text() for path in (*SOURCES.values(), *ROOT.glob("benchmarks/*.py"))]
    return "\n".join([*sources, *("".join(cell) for cell in cells)])


@pytest.mark.parametrize("room", DOORS)
def test_every_name_of_a_door_has_a_caller_outside_the_tests(room):
    stub = (LIB / "descent" / room / "__init__.pyi").read_text()
    names = [alias.name for node in ast.parse(stub).body for alias in node.names]
    text = callers()
    unused = [name for name in names if len(re.findall(rf"\b{name}\b", text)) < 2]  # its definition is one
    assert unused == []
