"""Through plain papermill, every parameter of every chapter changes what the chapter records; none of the runs fails.

One chapter: `pytest tests/audits/test_parameters_matter.py -k saddles`; minutes for each.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_settings import RECORD_NOTHING, audit_settings

from descent.repro.records import FIGURE_FORMATS, Record
from descent_book.run.chapter import Chapter
from descent_book.run.project import chapters
from descent_book.run.scorecard import read_claims
from descent_book.run.worker import environment, run_notebook

ROOT = Path(__file__).parents[2]
CHAPTERS = {name: Chapter.read(ROOT, name) for name in chapters(ROOT)}
AUDITS = {name: audit_settings(chapter) for name, chapter in CHAPTERS.items()}
CHANGES = [(name, parameter) for name, audit in AUDITS.items() for parameter in audit.other]
Recorded = dict[str, Any]


def run(chapter: str, folder: Path, **values: Any) -> Recorded:
    """What the chapter leaves at these settings, as papermill runs it: arrays by name, and each claim's numbers."""
    known = CHAPTERS[chapter]
    known.settings(**{**known.defaults, **values})
    folder.mkdir(parents=True)
    given = {"preset": "small", **values, "results_dir": str(folder)}
    run_notebook(known.path, folder / "ran.ipynb", given, 600, lambda number, heading: None)
    recorded: Recorded = {}
    for path in sorted(folder.glob("*.npz")):
        recorded |= {f"{path.stem}.{key}": value for key, value in Record.load(path).values.items()}
    for claim in read_claims(folder / "claims.json"):
        recorded[f"{claim.id}.verdict"] = claim.verdict
        for name, found in {"measured": claim.measured, **claim.nulls}.items():
            recorded |= {
                f"{claim.id}.{name}.{key}": value for key, value in (found.model_dump() if found else {}).items()
            }
    return recorded


def differing(one: Recorded, other: Recorded) -> list[str]:
    """The names under which two runs recorded different things; NaN equals NaN."""
    return sorted(
        name
        for name in set(one) | set(other)
        if name not in one or name not in other or not same(np.asarray(one[name]), np.asarray(other[name]))
    )


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == other.dtype.kind == "f")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recorded]:
    """A chapter -> what it records at its cheapest settings; each runs once."""
    known: dict[str, Recorded] = {}

    def of(chapter: str) -> Recorded:
        if chapter not in known:
            folder = tmp_path_factory.mktemp(chapter)
            known[chapter] = run(chapter, folder / "run", **AUDITS[chapter].small, figures_dir=str(folder / "figures"))
            figures = sorted(path.name for path in (folder / "figures").iterdir())
            known[chapter]["figures_dir"] = figures
        return known[chapter]

    return of


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(len(os.sched_getaffinity(0))).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_parameter_is_tried_or_named_with_the_reason(chapter: str) -> None:
    assert set(CHAPTERS[chapter].defaults) - set(RECORD_NOTHING) == set(AUDITS[chapter].other)


@pytest.mark.promise("R8")
@pytest.mark.parametrize(("chapter", "parameter"), CHANGES)
def test_a_parameter_changes_what_is_recorded(
    chapter: str,
    parameter: str,
    small: Callable[[str], Recorded],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    base, changed_settings = AUDITS[chapter].with_parameter(parameter)
    before = small(chapter) if base == AUDITS[chapter].small else run(chapter, tmp_path / "before", **base)
    after = run(chapter, tmp_path / "run", **changed_settings)
    changed = differing({name: value for name, value in before.items() if name != "figures_dir"}, after)
    record_property(f"{chapter}, {parameter}: recorded values that it changes", len(changed))
    assert changed, f"{parameter} changes nothing that {chapter} records"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_each_figure_is_kept_in_every_format_and_the_preset_is_a_label(
    chapter: str, small: Callable[[str], Recorded], tmp_path: Path
) -> None:
    before = small(chapter)
    figures = before["figures_dir"]
    stems = {Path(name).stem for name in figures}
    assert stems
    assert figures == sorted(f"{stem}.{suffix}" for stem in stems for suffix in FIGURE_FORMATS)
    after = run(chapter, tmp_path / "run", **{**AUDITS[chapter].small, "preset": "mine"})
    unlike = [name for name in differing({k: v for k, v in before.items() if k != "figures_dir"}, after)]
    assert unlike == [], "the same settings under another name record something else"
