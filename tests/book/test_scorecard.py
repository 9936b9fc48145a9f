"""Judged claims keep their type from a chapter's file to the pages, and anything else is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from small_project import CLAIM, REGISTERED, edition, write_project

from descent.checkout import project_root
from descent.repro.files import write_json
from descent.repro.scorecard import Scorecard
from descent_book.run.notebook import seal
from descent_book.run.project import chapters, claims_folder
from descent_book.run.scorecard import ChapterResult, EditionScorecard, read_claims

ROOT = project_root()
CHAPTERS = chapters(ROOT)
RESULT = {"claims": [CLAIM], "seconds": 1.0, "provenance": {"torch": "2", "threads": 2, "device": None}}


def with_ends(**other: float) -> dict[str, Any]:
    return {**CLAIM, "measured": {**CLAIM["measured"], **other}}


FAULTS = {
    "not JSON": ("{", "Invalid JSON"),
    "of another kind": ("[]", "Input should be"),
    "without a field": ({**CLAIM, "preset": None}, "claims.0.preset: Input should be a valid string"),
    "with one more": ({**CLAIM, "colour": 1}, "claims.0.colour: Extra inputs are not permitted"),
    "unknown verdict": ({**CLAIM, "verdict": "maybe"}, "claims.0.verdict: Input should be 'not reproduced', 'not"),
    "NaN": (with_ends(value=float("nan")), "claims.0.measured.value: Input should be a finite number"),
    "endless": (with_ends(high=float("inf")), "claims.0.measured.high: Input should be a finite number"),
    "no unit": (with_ends(units=0), "claims.0.measured.units: Input should be greater than or equal to 1"),
}  # fmt: skip


class Settings(BaseModel):
    preset: str = "quick"


def test_claims_are_read_as_they_were_saved(tmp_path: Path) -> None:
    for file, text in (("claims/first.yml", REGISTERED), ("presets/quick/first.yml", "preset: quick\n")):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
    card = Scorecard("first", Settings(), folder=tmp_path)
    card.judge("count", [1.5, 2.5])
    card.save(tmp_path)
    assert [each.model_dump(mode="json") for each in read_claims(tmp_path / "claims.json")] == [
        card.claims["count"].as_dict()
    ]
    judged = ChapterResult(claims=read_claims(tmp_path / "claims.json"), seconds=1, provenance={})
    assert judged.judged(tmp_path / "claims", "first").claims == [card.claims["count"]]


@pytest.mark.promise("R4")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_without_claims_is_refused_by_its_name_and_field(tmp_path: Path, fault: str) -> None:
    content, said = FAULTS[fault]
    claims = content if isinstance(content, str) else json.dumps([content])
    card, whole = tmp_path / "claims.json", tmp_path / "scorecard.json"
    card.write_text(claims if isinstance(content, str) else f'{{"chapter": "a", "preset": "b", "claims": {claims}}}')
    with pytest.raises(ValueError, match=r"^claims\.json: no claims of a chapter \(") as caught:
        read_claims(card)
    assert said in str(caught.value)
    result = f'{{"claims": {claims}, "seconds": 1, "provenance": {{}}}}'
    if not isinstance(content, str) and fault not in ("NaN", "endless"):  # which a note cannot hold
        notebook = executed(tmp_path, json.loads(result))
        with pytest.raises(ValueError, match=r"first\.ipynb: the runner's note: ") as caught:
            ChapterResult.of(notebook)
        assert said in str(caught.value)
    whole.write_text("[]")
    with pytest.raises(ValueError, match=r"scorecard\.json: no scorecard of an edition \("):
        EditionScorecard.read(whole)


def executed(folder: Path, notes: dict[str, Any]) -> Path:
    write_json(folder / "first.ipynb", seal({"cells": [], "metadata": {"descent": notes}}))
    return folder / "first.ipynb"


def test_a_note_that_is_not_the_runners_is_refused_by_the_name_of_the_notebook(tmp_path: Path) -> None:
    assert ChapterResult.of(executed(tmp_path, {"key": "k", **RESULT})) == ChapterResult(**RESULT)
    path = executed(tmp_path, {"key": "k", "claims": [], "provenance": {}})
    with pytest.raises(ValueError, match=r"first\.ipynb: the runner's note: seconds: Field required; make it again"):
        EditionScorecard.collect(tmp_path, "quick", ["first"], tmp_path)
    path.unlink()
    assert ChapterResult.of(path) is None


def test_a_chapter_that_writes_something_else_as_its_claims_fails(tmp_path: Path) -> None:
    root = write_project(tmp_path / "p", first="1")
    notebook = root / "notebooks/first.ipynb"
    notebook.write_text(notebook.read_text().replace('\\"claims\\": [claim]', '\\"claims\\": [{}]'))
    status, said, _ = edition(root, "run")
    assert status == 1
    assert (
        "FAILED first, cell 5 ('The work'): ValueError: claims.json: no claims of a chapter (claims.0.id: Field" in said
    )
    assert not (root / "_build/editions/quick/first.ipynb").exists()


def test_the_published_scorecard_is_that_of_its_notebooks_to_the_byte(tmp_path: Path) -> None:
    published = ROOT / "book" / "scorecard.json"
    scorecard = EditionScorecard.collect(ROOT / "book", "paper", CHAPTERS, claims_folder(ROOT))
    assert scorecard == EditionScorecard.read(published)
    write_json(tmp_path / "scorecard.json", scorecard.model_dump(mode="json"))
    assert (tmp_path / "scorecard.json").read_bytes() == published.read_bytes()
