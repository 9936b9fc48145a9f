"""The published edition as committed: whole, of the chapters of the contents, with the seeds behind its headlines."""

import base64
import io
import json
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from small_project import read

from descent.checkout import project_root
from descent.repro.claims import Claim
from descent_book.run.notebook import read_executed
from descent_book.run.project import chapters
from descent_book.run.scorecard import Measurement

ROOT = project_root()
CHAPTERS = chapters(ROOT)
SCORECARD = read(ROOT / "book" / "scorecard.json")["chapters"]


def units_and_intervals(claims: list[dict[str, Any]]) -> tuple[list[int], list[str]]:
    """The units of the claims that have several, and the claims among these without an interval though six would do."""
    several = [each for each in claims if each["measured"] and each["measured"]["units"] > 1]
    enough = [each for each in several if each["measured"]["units"] >= 6]
    lacking = [each["claim"]["id"] for each in enough if None in (each["measured"]["low"], each["measured"]["high"])]
    return [each["measured"]["units"] for each in several], lacking


def test_every_chapter_is_published_and_no_other() -> None:
    assert {path.stem for path in (ROOT / "book").glob("*.ipynb")} == set(CHAPTERS) == set(SCORECARD)


@pytest.mark.promise("R4")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_published_chapter_is_as_the_runner_wrote_it(chapter: str) -> None:
    path = ROOT / "book" / f"{chapter}.ipynb"
    noted = read_executed(path)["metadata"]["descent"]
    assert "sha256" in noted
    judged = {each["claim"]["id"]: each for each in SCORECARD[chapter]["claims"]}
    kept = ("preset", "measured", "nulls")
    for each in noted["claims"]:  # an interval ends where the quantity can, as is registered today
        claim = Claim(**judged[each["id"]]["claim"])
        expected = Measurement(**each).judged_by(claim).model_dump(mode="json")
        assert [judged[each["id"]][name] for name in kept] == [expected[name] for name in kept]
        now, then = (part and part["value"] for part in (expected["measured"], each["measured"]))
        assert now == then  # None of what cannot be tested here


@pytest.mark.promise("R14")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_measures_over_units_and_says_how_sure_that_is(chapter: str, record_property: Any) -> None:
    claims = SCORECARD[chapter]["claims"]
    units, lacking = units_and_intervals(claims)
    record_property(f"{chapter}: claims over several units", f"{len(units)} of {len(claims)}, at most {max(units)}")
    assert max(units) >= 5
    assert lacking == []


def test_an_interval_that_is_missing_is_found() -> None:
    def claim(name: str, units: int, low: float | None) -> dict[str, Any]:
        return {"claim": {"id": name}, "measured": {"units": units, "low": low, "high": 1.0}}

    claims = [claim("a", 6, None), claim("b", 1, None), claim("c", 7, 0.0), {"claim": {"id": "d"}, "measured": None}]
    assert units_and_intervals(claims) == ([6, 7], ["a"])


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
