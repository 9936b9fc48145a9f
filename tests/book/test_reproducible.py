"""Two runs of a chapter on this machine, each on as many threads, give the same bytes."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbval_results import kept_in
from small_project import edition

from descent.repro.records import provenance
from descent_book.run.edition import is_current, plan
from descent_book.run.notebook import runner_notes
from descent_book.run.project import chapters

ROOT = Path(__file__).parents[2]
ALL = ("run", "--force", "--cell-timeout", "600")  # beside other tests a cell may take some minutes


def quick_edition() -> list[Path]:
    """The results of the quick edition, where `make book` has made it of this code and on as many threads."""
    made = plan(ROOT, [], "quick", {}, None)
    like_now = [{**provenance(), "seed": job.parameters["seed"]} for job in made]  # which is in every record
    if all(is_current(job) for job in made) and [runner_notes(job.output)["provenance"] for job in made] == like_now:
        return [made[0].results.parent]
    return []


def checked_run(run: str) -> list[Path]:
    """The results of nbval's run of all chapters in this very test run, where it has come to its end."""
    folder = kept_in(run)
    return [folder] * all((folder / chapter / "claims.json").is_file() for chapter in chapters(ROOT))


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str) -> Iterator[list[Path]]:
    """The results of two runs of all chapters: those that there are, and as many more as it takes."""
    there = quick_edition() + checked_run(testrun_uid)
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")[len(there) :]]
    for folder in folders:
        status, said, _ = edition(ROOT, *ALL, "--output", str(folder))
        assert status == 0, said
    yield there + [folder / "results" for folder in folders]
    shutil.rmtree(kept_in(testrun_uid), ignore_errors=True)


@pytest.mark.promise("R1")
@pytest.mark.parametrize("chapter", chapters(ROOT))
def test_two_quick_runs_give_bit_identical_records_and_claims(twice: list[Path], chapter: str) -> None:
    kept = ["claims.json", f"{chapter}.npz"]
    for results in twice:
        assert sorted(path.name for path in (results / chapter).iterdir()) == kept
    first, second = (
        [hashlib.sha256((results / chapter / name).read_bytes()).hexdigest() for name in kept] for results in twice
    )
    assert first == second
