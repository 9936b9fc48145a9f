"""A new chapter from the template: `python -m descent_book.run.new_chapter NAME`, or `make chapter NAME=name`.

The template runs and has every part that `tests/house/test_notebooks.py` asks for; its author replaces it part by part.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import yaml

from descent.checkout import project_root
from descent.repro.files import write_atomic, write_json
from descent_book.run.chapter import Chapter
from descent_book.run.notebook import tags
from descent_book.run.project import (
    HELP,
    NEUTRAL_PARAMETERS,
    ROOT_OPTION,
    RefusedError,
    chapters,
    claims_folder,
    notebook_path,
    refusing,
)

TEMPLATE = Path(__file__).with_name("new_chapter.ipynb")
PLACEHOLDER = "new_chapter"
NAME = re.compile(r"[a-z][a-z0-9_]{2,39}")
LAST_PART = "  - caption: Results and evidence\n"  # new chapters stand before it
PRESET = "preset: paper\nsizes: [50, 100, 200, 400, 800]\nruns: 20\n"
CLAIMS = """\
# What the chapter claims, registered before it is measured. `book/how_to_read.md` says how each is judged.
edge:
  kind: replication
  sentence: The largest eigenvalue of a large matrix of noise lies at the upper edge (over the edge)
  cite: marchenko1967
  source: (1 + √q)²
  unit: matrix, each of its own noise
  accepted: [0.9, 1.1]
  from: "ours: a tenth"
  null: entries with heavy tails, which have no such edge
  judged_at: {quick: , paper: }
falls:
  kind: finding
  sentence: The distance of the largest eigenvalue from the edge falls as a power of the size
  source: -2/3, the power of its fluctuations
  unit: run, with a matrix of each size
  accepted: [-1.2, -0.2]
  from: "ours: two thirds by less than a half"
  null: the same distances, with the sizes in a random order in each run
  judged_at: {quick: , paper: }
"""
AUDIT = """\
# The cheapest settings at which the chapter still measures everything, and one other value for every parameter.
small: {sizes: [10, 20], runs: 2}
other: {seed: 1, sizes: [10, 30], shape: 0.4, runs: 3}
"""


def create(root: Path, name: str) -> list[Path]:
    """Write the notebook, its preset `paper`, its audit settings and `_toc.yml`; give these files, in this order.

    The set-up cell is that of the other chapters, so that it stays the same in all.

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
    title = name.replace("_", " ").capitalize()
    text = TEMPLATE.read_text(encoding="utf-8").replace("# New chapter", f"# {title}")
    text = text.replace(PLACEHOLDER.replace("_", "-"), name.replace("_", "-")).replace(PLACEHOLDER, name)
    notebook = json.loads(text)
    (known,) = (cell for cell in Chapter.read(root, chapters(root)[0]).notebook["cells"] if "setup" in tags(cell))
    (setup,) = (cell for cell in notebook["cells"] if "setup" in tags(cell))
    setup["source"] = known["source"]
    write_json(notebook_path(root, name), notebook)
    defaults = Chapter.read(root, name).defaults
    quick = {each: value for each, value in defaults.items() if each not in NEUTRAL_PARAMETERS}
    files = {
        claims_folder(root) / f"{name}.yml": CLAIMS,
        root / "notebooks" / "presets" / "quick" / f"{name}.yml": yaml.safe_dump(quick, sort_keys=False),
        root / "notebooks" / "presets" / "paper" / f"{name}.yml": PRESET,
        root / "notebooks" / "audits" / f"{name}.yml": AUDIT,
        contents: listed.replace(LAST_PART, f"  - caption: {title}\n    chapters:\n      - file: {name}\n{LAST_PART}"),
    }
    for path, content in files.items():
        write_atomic(path, content)
    return [notebook_path(root, name), *files]


@click.command(context_settings=HELP)
@click.argument("name")
@ROOT_OPTION
@refusing(RefusedError)
def main(name: str, root: str | None) -> None:
    """Write a new chapter from the template, and add it to _toc.yml."""
    project = project_root(root)
    for path in create(project, name):
        click.echo(f"wrote {path.relative_to(project)}")
    click.echo(f"now replace it part by part; make book runs it, make store CHAPTER={name} keeps its checked output")


if __name__ == "__main__":
    main()
