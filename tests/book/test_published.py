"""The published edition as committed: whole, of the chapters of the contents, with the seeds behind its headlines."""

import base64
import io
import json
import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from small_project import read

from descent.checkout import project_root
from descent_book.run.notebook import read_executed
from descent_book.run.project import chapters

ROOT = project_root()
CHAPTERS = chapters(ROOT)
SCORECARD = read(ROOT / "book" / "scorecard.json")["chapters"]


def seeds_and_spreads(claims: list[dict[str, Any]]) -> tuple[list[int], list[str]]:
    """The seeds of the claims that have several, and the claims among these whose spread is missing."""
    several = [claim for claim in claims if claim["seeds"] > 1]
    lacking = [each["id"] for each in several if not (math.isfinite(each["spread"]) and each["spread"] >= 0)]
    return [claim["seeds"] for claim in several], lacking


def test_every_chapter_is_published_and_no_other() -> None:
    assert {path.stem for path in (ROOT / "book").glob("*.ipynb")} == set(CHAPTERS) == set(SCORECARD)


@pytest.mark.promise("R4")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_published_chapter_is_as_the_runner_wrote_it(chapter: str) -> None:
    path = ROOT / "book" / f"{chapter}.ipynb"
    noted = read_executed(path)["metadata"]["descent"]
    assert "sha256" in noted
    assert noted["claims"] == SCORECARD[chapter]["claims"]


@pytest.mark.promise("R14")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_measures_over_seeds_and_says_how_far_they_lie_apart(chapter: str, record_property: Any) -> None:
    claims = SCORECARD[chapter]["claims"]
    seeds, lacking = seeds_and_spreads(claims)
    record_property(
        f"{chapter}: claims over several seeds", f"{len(seeds)} of {len(claims)}, at most {max(seeds)} seeds"
    )
    assert max(seeds) >= 5
    assert lacking == []


def test_a_spread_that_is_missing_is_found() -> None:
    claims = [{"id": "a", "seeds": 5, "spread": math.nan}, {"id": "b", "seeds": 1, "spread": math.nan}]
    assert seeds_and_spreads(claims) == ([5], ["a"])


def edges_with_ink(png: bytes) -> list[str]:
    """The edges of a picture on white that something dark touches: what stands there is cut off."""
    grey = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    edges = {"top": grey[0], "bottom": grey[-1], "left": grey[:, 0], "right": grey[:, -1]}
    return [name for name, pixels in edges.items() if (pixels < 200).any()]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_picture_is_cut_off(chapter: str) -> None:
    cells = json.loads((ROOT / "book" / f"{chapter}.ipynb").read_text())["cells"]
    found = [
        (number, base64.b64decode("".join(output["data"]["image/png"])))
        for number, cell in enumerate(cells)
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert found
    assert {number: edges for number, png in found if (edges := edges_with_ink(png))} == {}


def test_a_title_that_is_cut_off_is_found() -> None:
    for top, expected in ((0.85, []), (0.97, ["top"])):
        figure = plt.figure()
        figure.add_axes((0.2, 0.2, 0.7, top - 0.2)).set_title("a title")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        plt.close(figure)
        assert edges_with_ink(buffer.getvalue()) == expected
