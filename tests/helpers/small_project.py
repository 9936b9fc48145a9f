"""Projects of a few tiny chapters, for the tests of the runner."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

LIBRARY = Path(__file__).parents[2] / "lib"

IMPORTS = """import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field"""

PARAMETERS = """preset = "quick"  #@param {type:"string"}
seed = 0  #@param {type:"integer"}
dataset = "digits"  #@param ["digits", "mnist"]
epochs = 2  #@param {type:"integer"}
sizes = [1, 2]  #@param {type:"raw"}
meeting = ""  #@param {type:"string"}
scheduler = ""  #@param {type:"string"}
results_dir = ""  #@param {type:"string"}
figures_dir = ""  #@param {type:"string"}"""

SETTINGS = """class Settings(BaseModel, extra="forbid", frozen=True):
    preset: str
    seed: int = Field(ge=0)
    dataset: Literal["digits", "mnist"]
    epochs: int = Field(ge=1, le=100)
    sizes: list[int]
    meeting: str
    scheduler: str
    results_dir: str
    figures_dir: str


settings = Settings(**{name: globals()[name] for name in Settings.model_fields})"""

REGISTERED = """count:
  kind: check
  sentence: The count is that of the epochs
  source: "2"
  unit: run of the chapter
  accepted: [1, null]
  from: the epochs
  judged_at: {quick: , paper: , custom: }
"""
CLAIM = {
    "id": "first.count",
    "preset": "quick",
    "measured": {"value": 2.0, "low": 2.0, "high": 2.0, "units": 1, "level": 1.0},
    "nulls": {},
    "verdict": "holds",
}

CLAIMS = f"""claim = json.loads({json.dumps(CLAIM)!r})
value = float(settings.epochs)
measured = {{**claim["measured"], "value": value, "low": value, "high": value}}
claim |= {{"id": "NAME.count", "preset": settings.preset, "measured": measured}}
if settings.results_dir:
    text = json.dumps({{"chapter": "NAME", "preset": settings.preset, "claims": [claim]}})
    Path(settings.results_dir, "claims.json").write_text(text)"""


def write_chapter(root: Path, name: str, body: str = "print(settings.epochs)", heading: str = "The work") -> Path:
    """`notebooks/<name>.ipynb`: the parts of every chapter, and one code cell of its own; its claim is registered."""
    cells = [
        new_markdown_cell(f"# {name}"),
        new_code_cell(IMPORTS, metadata={"tags": ["imports"]}),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(SETTINGS, metadata={"tags": ["settings"]}),
        new_markdown_cell(f"Words.\n\n## {heading}"),
        new_code_cell(body),
        new_code_cell(CLAIMS.replace("NAME", name)),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    path = root / "notebooks" / f"{name}.ipynb"
    (path.parent / "claims").mkdir(parents=True, exist_ok=True)
    (path.parent / "claims" / f"{name}.yml").write_text(REGISTERED)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "x"}}), path)
    return path


def write_project(root: Path, **bodies: str) -> Path:
    """A project with an introduction and one chapter for each keyword: `name=source of its own cell`."""
    (root / "book").mkdir(parents=True)
    (root / "book" / "intro.md").write_text("# Introduction\n\nWords.\n")
    (root / "requirements.txt").write_text("nothing==1\n")
    entries = "".join(f"  - file: {name}\n" for name in bodies)
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: intro\nchapters:\n{entries}")
    for name, body in bodies.items():
        write_chapter(root, name, body)
    return root


def write_preset(root: Path, preset: str, name: str, text: str) -> None:
    path = root / "notebooks" / "presets" / preset / f"{name}.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def command(root: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "descent_book.run.edition", arguments[0], "--root", str(root), *arguments[1:]]


def environment(library: Path = LIBRARY) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}  # the bar is looked at
    return {**kept, "PYTHONPATH": str(library)}


def edition(root: Path, *arguments: str, library: Path = LIBRARY, timeout: float = 3600) -> tuple[int, str, float]:
    """Run `python -m descent_book.run.edition` from an unrelated folder: exit status, all that it said, seconds."""
    start = time.monotonic()
    done = subprocess.run(
        command(root, *arguments),
        cwd=root.parent,
        env=environment(library),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout + done.stderr, time.monotonic() - start


def read(path: Path) -> Any:
    return json.loads(path.read_text())
