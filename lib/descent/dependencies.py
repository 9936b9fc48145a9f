"""What results depend on: the files of this library behind a chapter's imports, and the pins of the library's needs."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "descent"


def modules_imported(source: str) -> set[str]:
    """The modules of this library that Python source imports, anywhere in it; lines of IPython magic do not count."""
    plain = re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)
    found = set()
    for node in ast.walk(ast.parse(plain)):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, _, module = node.module.partition(".")
            if package == PACKAGE:
                found |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith(f"{PACKAGE}.")}
    return found


def files_behind(sources: Iterable[str], library: Path) -> list[Path]:
    """The modules in the folder `library` that the sources reach through imports, sorted, and the package's own file.

    A name that is no module (`from descent import __version__`) is passed over: it is the package file's.
    """
    waiting = set().union(*map(modules_imported, sources))
    found = {library / "__init__.py"}
    while waiting:
        path = library / f"{waiting.pop()}.py"
        if path.is_file() and path not in found:
            found.add(path)
            waiting |= modules_imported(path.read_text(encoding="utf-8"))
    return sorted(found)


def pins(root: Path) -> list[str]:
    """The exact versions in `requirements.txt` of what `[project] dependencies` of `pyproject.toml` names, sorted.

    Tools of tests and of the build do not count, nor do comments and hashes; without `pyproject.toml` every pin counts.
    """
    text = (root / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = {
        re.split(r"\s+(?:#|--hash)", line)[0].strip() for line in text.splitlines() if "==" in line and line[0] != "#"
    }
    if not (project := root / "pyproject.toml").is_file():
        return sorted(lines)
    needed = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    names = {_name(requirement) for requirement in needed}
    return sorted(line for line in lines if _name(line) in names)


def _name(requirement: str) -> str:
    """The normalised name of a distribution, from a requirement."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()  # type: ignore[index]
