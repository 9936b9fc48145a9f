"""The published edition as committed: whole, of the chapters of the contents, with the seeds behind its headlines."""

import math
from typing import Any

import pytest

from descent.outputs import read_executed
from descent.project import chapters, project_root
from small_project import read

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
