"""A new chapter from the template: `python -m descent_book.run.new_chapter NAME`, or `make chapter NAME=name`.

The template runs, and has every part that `tests/house/test_notebooks.py` asks for; it is to be replaced part by part.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from descent.checkout import ProjectError, project_root
from descent.repro.files import write_atomic, write_json
from descent_book.run.chapter import RefusedError, cells
from descent_book.run.project import chapters, notebook_path

TEMPLATE = Path(__file__).with_name("new_chapter.ipynb")
PLACEHOLDER = "new_chapter"
NAME = re.compile(r"[a-z][a-z0-9_]{2,39}")
LAST_PART = "  - caption: Results and evidence\n"  # new chapters stand before it


def create(root: Path, name: str) -> list[Path]:
    """Write the notebook and its preset `paper`, and add the chapter to `_toc.yml`.

    The set-up cell is the other chapters' own, so that it stays the same in all.

    Returns:
        The files written, `_toc.yml` last.

    Raises:
        RefusedError: the name is not one, is taken, or `_toc.yml` has no part before which the chapter could stand.
    """
    if not NAME.fullmatch(name):
        raise RefusedError(f"NAME={name!r}: expected 3 to 40 of a-z, 0-9 and _, a letter first, as in gradient_svd")
    contents = root / "_toc.yml"
    listed = contents.read_text(encoding="utf-8")
    if notebook_path(root, name).exists() or f"- file: {name}\n" in listed:
        raise RefusedError(f"NAME={name!r}: there is a page of that name; take another")
    if LAST_PART not in listed:
        raise RefusedError(f"_toc.yml: expected the line {LAST_PART.strip()!r}, before which the chapter would stand")
    text = TEMPLATE.read_text(encoding="utf-8")
    titled = text.replace("# New chapter", f"# {name.replace('_', ' ').capitalize()}")
    notebook = json.loads(
        titled.replace(PLACEHOLDER.replace("_", "-"), name.replace("_", "-")).replace(PLACEHOLDER, name)
    )
    (setup,) = (cell for cell in notebook["cells"] if "setup" in cell["metadata"].get("tags", []))
    setup["source"] = _setup_of(notebook_path(root, chapters(root)[0])).splitlines(keepends=True)
    preset = root / "notebooks" / "presets" / "paper" / f"{name}.yml"
    write_json(notebook_path(root, name), notebook)
    write_atomic(preset, b"preset: paper\nsizes: [50, 100, 200, 400, 800]\nruns: 20\n")
    entry = f"  - caption: {name.replace('_', ' ').capitalize()}\n    chapters:\n      - file: {name}\n"
    write_atomic(contents, listed.replace(LAST_PART, entry + LAST_PART).encode())
    return [notebook_path(root, name), preset, contents]


def _setup_of(notebook: Path) -> str:
    (source,) = (cell["source"] for cell in cells(notebook) if "setup" in cell["metadata"].get("tags", []))
    return str(source)


def main() -> int:
    """The command; 2 where the name is refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--root", default=None, help="the project's folder, where it is not this package's checkout")
    given = parser.parse_args()
    try:
        root = project_root(given.root)
        for path in create(root, given.name):
            print(f"wrote {path.relative_to(root)}")
    except (RefusedError, ProjectError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    print(f"now replace it part by part; make book runs it, make store CHAPTER={given.name} keeps its checked output")
    return 0


if __name__ == "__main__":
    sys.exit(main())
