"""A table keeps its columns whatever stands in its cells, and the settings' own reading of a parameter decides."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from descent.repro.files import check_writable
from descent.repro.scorecard import Scorecard
from descent.repro.tables import markdown_table, number_text

CLAIM = """sum:
  kind: check
  sentence: The sum is as expected
  source: "|a| + |b|"
  unit: run
  accepted: [0, 10]
  from: the sizes
  judged_at: {quick: }
"""


def columns(table: str) -> list[list[str]]:
    """The cells of each line, as a reader of Markdown splits them."""
    return [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.split("\n")
    ]


@pytest.mark.parametrize(
    "text", ["|λ|", "a|b|c", "|", r"a \| b", "two\nlines", "two\r\nlines", "`x|y`", "$|a|$", "ends in |"]
)
def test_a_cell_stays_one_cell(text: str) -> None:
    found = columns(markdown_table(("one", "two"), [(text, "next"), ("first", text)]))
    assert [len(row) for row in found] == [2] * 4
    assert found[2][1] == "next"
    assert found[3][0] == "first"
    assert found[2][0] == " ".join(text.split()).replace("\\|", "|")


@pytest.mark.parametrize("row", [("a",), ("a", "b", "c"), "ab", ()])
def test_a_row_of_another_length_is_refused(row: object) -> None:
    """Cells beyond the header vanish when the table is drawn."""
    with pytest.raises(ValueError, match=rf"row {re.escape(repr(row))}: expected 2 cells, one for each of one, two"):
        markdown_table(("one", "two"), [("a", "b"), row])  # type: ignore[list-item]


@pytest.mark.parametrize("spread", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_spread_that_is_no_number_leaves_three_digits(spread: float) -> None:
    assert number_text(92.53, spread) == "92.5"
    assert number_text(float("nan"), spread) == "nan"


class Settings(BaseModel, extra="forbid", frozen=True):
    preset: str
    seed: int
    rate: float
    sizes: list[int]
    results_dir: str = ""
    figures_dir: str = ""


@pytest.fixture
def chapter(tmp_path: Path) -> Path:
    for name, text in {
        "claims/c.yml": CLAIM,
        "presets/quick/c.yml": "preset: quick\nseed: 0\nrate: 1.0\nsizes: [1, 2]\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


GIVEN = {"preset": "quick", "seed": "0", "rate": 1, "sizes": (1, "2")}


def test_a_number_that_came_as_text_is_not_a_change(chapter: Path) -> None:
    card = Scorecard("c", Settings(**GIVEN), dict(GIVEN), chapter)
    assert card.judge("sum", [3.0]).verdict == "holds"
    assert card.preset == "quick"


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 1), ("seed", "1"), ("rate", 1.5), ("sizes", [2, 1]), ("rate", "fast"), ("sizes", None)]
)
def test_a_parameter_that_was_changed_afterwards_is_noticed(chapter: Path, name: str, value: object) -> None:
    cells = dict(GIVEN)
    card = Scorecard("c", Settings(**GIVEN), cells, chapter)
    cells[name] = value
    with pytest.raises(
        ValueError,
        match=rf"{name}=.* was changed after `settings` took .*; run the cell of `settings` and every cell below it",
    ):
        card.judge("sum", [3.0])


@pytest.mark.parametrize("name", ["results_dir", "figures_dir"])
def test_a_folder_that_cannot_be_written_to_is_refused_when_the_chapter_begins(chapter: Path, name: str) -> None:
    (chapter / "file").write_text("")
    for folder in (chapter / "file", chapter / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(ValueError, match=rf"{name}='{folder}': nothing can be written there \(.*\); name another"):
            Scorecard("c", Settings(**{**GIVEN, name: str(folder)}), {}, chapter)
    place = chapter / "new folder" / "below"
    Scorecard("c", Settings(**{**GIVEN, name: str(place)}), {}, chapter)
    assert list(place.iterdir()) == []


def test_a_full_or_closed_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="output='/dev/null': nothing can be written there"):
        check_writable("output", "/dev/null")
    check_writable("output", tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
