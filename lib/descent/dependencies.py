"""Which files of this library a chapter's results depend on: what it imports, and what that imports."""

from __future__ import annotations

import ast
import re
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
