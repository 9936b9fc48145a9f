"""Small books for tests/book: their sources, and how they are built."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import yaml
from nbformat import v4

from descent.repro.claims import Claim
from descent_book.pages.figures import PLOTLY
from descent_book.run.chapter import Chapter
from descent_book.run.project import chapters

ROOT = Path(__file__).parents[2]
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGPQiFoAAAHQASMcErYsAAAAAElFTkSuQmCC")
PNG64 = base64.b64encode(PNG).decode()
PROVENANCE = {"python": "3.11.0", "torch": "2.9", "commit": "abc123", "machine": "x86_64", "threads": 2}
PARAMETERS = {
    "gradient_svd": [{"name": "rate", "meaning": "of SGD", "accepted": "number", "values": {"quick": "`0.1`"}}]
}
STANDING = {
    "gradient_svd": {"commit": "abc123+", "differs": ["fit differs", "the data resnet/a.npz differ"]},
    "saddles": {"commit": "def456", "differs": []},
}
SAVES = 'save_figure(figure, settings.figures_dir, "one-dot")\nshow()'
Change = Callable[[Path, nbformat.NotebookNode], None]


class Build(NamedTuple):
    code: int
    log: str
    html: Path


def estimate(value: float, low: float | None = None, high: float | None = None, units: int = 1) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "units": units, "level": 0.95}


def claim(identity: str, **other: Any) -> dict[str, Any]:
    """A claim that was judged "not reproduced"; `other` is measured or registered of it instead."""
    registered = {
        "id": identity,
        "kind": "replication",
        "cite": "baker2022gradientsvd",
        "sentence": "About 92.5 values of $G$ lie above 0.1 of the largest.",
        "source": "92.5 ± 11.6",
        "unit": "training run",
        "accepted": [80.9, 104.1],
        "accepted_from": "the source's deviation",
        "null": "Gaussian rows of the same norms",
        "judged_at": {"paper": None},
        "amended": [{"date": "2026-11-26", "reason": "the mean alone decided before"}],
    }
    measured = {"measured": estimate(113.2, 108.6, 117.8, 10), "nulls": {"Gaussian": estimate(400, 399, 401, 10)}}
    registered |= {name: value for name, value in other.items() if name in Claim.model_fields}
    measured |= {name: value for name, value in other.items() if name not in Claim.model_fields}
    return {"claim": registered, "preset": "paper", **measured}


def scorecard(*claims: dict[str, Any]) -> dict[str, Any]:
    chapter = {
        "claims": list(claims),
        "since": [],
        "seconds": 754.2,
        "provenance": PROVENANCE | {"cpu_capability": "AVX2"},
    }
    return {"preset": "paper", "chapters": {"gradient_svd": chapter}}


def output(**data: Any) -> nbformat.NotebookNode:
    return v4.new_output("display_data", data={key.replace("__", "/"): value for key, value in data.items()})


def plotly(text: str = "A path that winds upwards") -> nbformat.NotebookNode:
    figure = {"data": [{"type": "scatter", "y": [1, 3, 2], "name": "</script>"}], "layout": {"height": 320}}
    return v4.new_output(
        "display_data", data={PLOTLY: figure, "image/png": PNG64, **({"text/plain": text} if text else {})}
    )


def cell(*outputs: nbformat.NotebookNode, code: str = "show()", **metadata: Any) -> nbformat.NotebookNode:
    return v4.new_code_cell(code, outputs=list(outputs), execution_count=1, metadata=metadata)


def notebook(*claims: str) -> nbformat.NotebookNode:
    """An executed chapter with a picture, two interactive figures, a table of these claims and mathematics."""
    picture = {"figure": {"caption": "A drawn caption.", "name": "fig-drawn"}, "image": {"alt": "One dot"}}
    rows = "\n".join(f"| `{name}` | reproduced |" for name in claims)
    table = output(text__markdown=f"| claim | verdict |\n| --- | --- |\n{rows}", text__plain="a")
    cells = [
        v4.new_markdown_cell("# A chapter\n\nThe count of $\\sigma_i$."),
        cell(output(image__png=PNG64, text__plain="<Figure size 1x1>"), code=SAVES, mystnb=picture),
        cell(output(image__png=PNG64, text__plain="A falling curve")),
        cell(plotly(), mystnb={"figure": {"caption": "A live caption.", "name": "fig-live"}}),
        cell(plotly('Quotes "here" & <there>')),
        cell(table),
    ]
    return v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT / "lib"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": paths, "NO_COLOR": "1"}


def build(source: Path) -> Build:
    """The book's own command on a source folder."""
    command = [Path(sys.executable).parent / "jupyter-book", "build", source, "--path-output", source.parent]
    options = ["-W", "-n", "--keep-going"]
    run = subprocess.run([*command, *options], capture_output=True, text=True, env=environment())
    return Build(run.returncode, run.stdout + run.stderr, source.parent / "_build/html")


def build_all(sources: dict[str, Path]) -> dict[str, Build]:
    """The same command on many source folders, faster."""
    command = [sys.executable, Path(__file__).with_name("build_books.py"), *sources.values()]
    run = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    codes = json.loads(run.stdout)
    return {
        name: Build(codes[str(source)], (source.parent / "log").read_text(), source.parent / "_build/html")
        for name, source in sources.items()
    }


def small_book(folder: Path, change: Change) -> Path:
    """The source of a one-page book with one chapter and the real configuration, changed in one respect."""
    source = folder / "source"
    source.mkdir(parents=True)
    for path in (ROOT / "_config.yml", ROOT / "book/references.bib"):
        shutil.copy(path, source)
    (source / "_toc.yml").write_text("format: jb-book\nroot: intro\nchapters:\n  - file: gradient_svd\n")
    (source / "intro.md").write_text(
        "# Start\n\n{cite:p}`lecun1998`\n\n```{scorecard}\n```\n\n```{bibliography}\n```\n\n```{registrations}\n```\n"
    )
    (source / "parameters.json").write_text(json.dumps(PARAMETERS))
    (source / "scorecard.json").write_text(json.dumps(scorecard(claim("gradient_svd.count"))))
    chapter = notebook("count")
    change(source, chapter)
    nbformat.write(chapter, source / "gradient_svd.ipynb")
    return source


def real_book(folder: Path) -> Path:
    """The source of the real pages, with a stand-in chapter and a scorecard that holds every claim that they quote."""
    source = folder / "source"
    shutil.copytree(ROOT / "book", source, ignore=shutil.ignore_patterns("*.ipynb", "scorecard.json"))
    known = {name: [row._asdict() for row in Chapter.read(ROOT, name).parameters()] for name in chapters(ROOT)}
    (source / "parameters.json").write_text(json.dumps(known))
    (source / "standing.json").write_text(json.dumps(STANDING))
    for name in ("_config.yml", "_toc.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, source)
    cards = yaml.safe_load((source / "cards.yml").read_text())
    cards["gradient_svd"]["figures"] = ["fig-drawn"]
    (source / "cards.yml").write_text(yaml.safe_dump(cards, sort_keys=False, allow_unicode=True))
    (source / "images").mkdir(exist_ok=True)
    (source / "images/intro.png").write_bytes(PNG)
    text = "".join(path.read_text() for path in [*source.glob("*.md"), source / "cards.yml"])
    quoted = sorted({match.partition(":")[0] for match in re.findall(r"\{claim\}`([^`]+)`", text)})
    claims = [claim(identity) for identity in quoted]
    claims.append(
        claim("gradient_svd.toy", kind="check", accepted=[10, 10], measured=estimate(10, 10, 10, 3), nulls={})
    )
    (source / "scorecard.json").write_text(json.dumps(scorecard(*claims)))
    for name in chapters(ROOT):
        picture = {"figure": {"caption": "A picture.", "name": cards[name]["figures"][0]}, "image": {"alt": "One dot"}}
        shown = cell(output(image__png=PNG64), mystnb=picture)
        python = {"language_info": {"name": "python"}}
        plain = v4.new_notebook(cells=[v4.new_markdown_cell("# Another chapter"), shown], metadata=python)
        names = [each["claim"]["id"].partition(".")[2] for each in claims]
        nbformat.write(notebook(*names) if name == "gradient_svd" else plain, source / f"{name}.ipynb")
    return source


def write_page(text: str) -> Change:
    def change(source: Path, chapter: nbformat.NotebookNode) -> None:
        (source / "intro.md").write_text(f"{(source / 'intro.md').read_text()}\n{text}\n")

    return change


def add_cell(*outputs: nbformat.NotebookNode) -> Change:
    return lambda source, chapter: chapter.cells.append(cell(*outputs))


def undocumented(source: Path, chapter: nbformat.NotebookNode) -> None:
    (row,) = PARAMETERS["gradient_svd"]
    (source / "parameters.json").write_text(json.dumps({"gradient_svd": [row | {"meaning": ""}]}))
    write_page("```{parameters}\n```")(source, chapter)


def promised(**held: list[str]) -> Change:
    """Promises R1 and R2 on a page; `held` maps each of some tests to the promises that it holds."""

    def change(source: Path, chapter: nbformat.NotebookNode) -> None:
        (source / "promises.yml").write_text("R1: Two runs give `equal` bytes.\nR2: So do three.\n")
        tests = {
            f"tests/test_runs.py::{name}": {
                "promises": names,
                "passed": 3,
                "failed": 1,
                "skipped": 0,
                "machine": {"commit": "abc"},
            }
            | {"measured": {"runs": [2, 30]}}
            for name, names in held.items()
        }
        (source / "promises.json").write_text(json.dumps(tests))
        write_page("```{promises}\n```")(source, chapter)

    return change


def judged_nowhere(source: Path, chapter: nbformat.NotebookNode) -> None:
    claims = [claim("gradient_svd.count"), claim("gradient_svd.lost")]
    (source / "scorecard.json").write_text(json.dumps(scorecard(*claims)))


def not_executed(source: Path, chapter: nbformat.NotebookNode) -> None:
    chapter.cells[1].execution_count = None
