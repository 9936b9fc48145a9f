"""Tests that hold a promise are found, and what they measured is kept and shown."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_project import environment, read

from descent_book.pages.tables import MANY, gathered, measured_text

TESTS = Path(__file__).parents[1]
PROMISES = yaml.safe_load((TESTS.parent / "book" / "promises.yml").read_text())
SAMPLE = """
import pytest

@pytest.mark.promise("R1", "R4")
@pytest.mark.parametrize("size", [1, 3])
def test_sizes(size, record_property):
    record_property("sizes, bytes", size)
    assert size < LIMIT

@pytest.mark.promise("R4")
def test_late(request):
    request.addfinalizer(lambda: 1 / LATE)

@pytest.mark.promise("R5")
def test_elsewhere():
    pytest.skip("not on this machine")

def test_of_nothing():
    pass
"""

CHAPTERS = """
import pytest

@pytest.mark.promise("R2")
@pytest.mark.parametrize("way", [1, 2])
@pytest.mark.parametrize("chapter", ["grokking", "saddles"])
def test_chapters(chapter, way, record_property):
    record_property("ways", way)
    assert way < LIMIT
"""
GROKKING, SADDLES = (f"test_sample.py::test_chapters[{chapter}]" for chapter in ("grokking", "saddles"))


def audited(
    folder: Path, limit: int, late: int = 1, only: str = "test", sample: str = SAMPLE
) -> dict[str, dict[str, object]]:
    """What is kept after a session over the sample, in a folder with this project's plugin."""
    for name in ("conftest.py", "helpers/nbval_results.py", "helpers/small_project.py"):
        shutil.copy(TESTS / name, folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  promise(*identities): held\n")
    (folder / "test_sample.py").write_text(f"LIMIT, LATE = {limit}, {late}\n{sample}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--promises", "kept.json", "-k", only]
    subprocess.run(command, cwd=folder, env=environment(), capture_output=True)
    kept: dict[str, dict[str, object]] = read(folder / "kept.json")
    return kept


def test_what_was_measured_is_kept_case_by_case(tmp_path: Path) -> None:
    kept = audited(tmp_path, limit=3, late=0)
    assert set(kept) == {f"test_sample.py::{name}" for name in ("test_sizes", "test_late", "test_elsewhere")}
    sizes = kept["test_sample.py::test_sizes"]
    assert sizes["promises"] == ["R1", "R4"]
    assert (sizes["passed"], sizes["failed"], sizes["skipped"]) == (1, 1, 0)
    assert sizes["measured"] == {"sizes, bytes": [1, 3]}
    assert kept["test_sample.py::test_late"]["failed"] == 1, "an error after the test is a failure of it"
    assert kept["test_sample.py::test_elsewhere"]["skipped"] == 1
    again = audited(tmp_path, limit=4, only="sizes")
    assert again["test_sample.py::test_sizes"]["passed"] == 2
    assert again["test_sample.py::test_late"] == kept["test_sample.py::test_late"], "tests not run keep their entry"
    renamed = SAMPLE.replace("test_late", "test_later")
    assert set(audited(tmp_path, limit=4, only="sizes", sample=renamed)) == {
        f"test_sample.py::{name}" for name in ("test_sizes", "test_elsewhere")
    }


def test_a_session_that_is_interrupted_replaces_only_what_came_to_its_end(tmp_path: Path) -> None:
    kept = audited(tmp_path, limit=2, sample=CHAPTERS)
    stop = 'if (chapter, way) == ("saddles", 2): raise KeyboardInterrupt'
    again = audited(tmp_path, limit=3, sample=CHAPTERS.replace("assert way < LIMIT", stop))
    assert again[SADDLES] == kept[SADDLES], "one of its two cases was not reached"
    assert [(each[GROKKING]["passed"], each[GROKKING]["failed"]) for each in (kept, again)] == [(1, 1), (2, 0)]


def test_a_chapter_replaces_its_own_entry_only(tmp_path: Path) -> None:
    kept = audited(tmp_path, limit=3, sample=CHAPTERS)
    assert list(kept) == [GROKKING, SADDLES]
    assert all((entry["passed"], entry["measured"]) == (2, {"ways": [1, 2]}) for entry in kept.values())
    again = audited(tmp_path, limit=2, only="saddles", sample=CHAPTERS)
    assert again[GROKKING] == kept[GROKKING]
    assert (again[SADDLES]["passed"], again[SADDLES]["failed"]) == (1, 1)
    whole = {"test_sample.py::test_chapters": again.pop(GROKKING)}
    (tmp_path / "kept.json").write_text(json.dumps(whole))
    assert list(audited(tmp_path, limit=3, only="saddles", sample=CHAPTERS)) == [SADDLES], "of all chapters, and older"


def test_every_promise_is_held_by_a_test_and_no_test_names_another() -> None:
    sources = [path.read_text() for path in TESTS.rglob("test_*.py") if path.name != Path(__file__).name]
    marks = re.findall(r"mark\.promise\(([^)]*)\)", "\n".join(sources))
    assert {name for mark in marks for name in re.findall(r'"(R\d+)"', mark)} == set(PROMISES)


@pytest.mark.parametrize(
    ("values", "text"),
    [([2.0], "n: 2"), ([3, 1, 2], "n: 1 to 3"), ([1, 1], "n: 1"), (["b", "a", "b"], "n: a, b"), ([True], "n: True")],
)
def test_values_are_shown_as_a_range_or_as_words(values: list[object], text: str) -> None:
    assert measured_text("n", values) == text


def test_many_cases_of_one_kind_are_shown_as_their_range() -> None:
    few = {f"saddles, way {case}: difference": [case] for case in range(MANY)}
    many = {f"saddles, part {case}: values": [case, 9] for case in range(MANY + 1)}
    other = {"grokking, part 0: values": [3], "seconds, in all": [1], "part 1: values": [2]}
    expected = few | {f"saddles, {MANY + 1} cases: values": [n for case in range(MANY + 1) for n in (case, 9)]} | other
    assert gathered(few | many | other) == expected
