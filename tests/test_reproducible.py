"""Two runs of a chapter on this machine, each on as many threads, give the same bytes."""

import hashlib
from pathlib import Path

import pytest

from descent.edition import described, is_current, plan
from descent.project import chapters
from descent.records import provenance
from small_project import edition

ROOT = Path(__file__).parents[1]
ALL = ("run", "--force", "--cell-timeout", "600")  # beside other tests a cell may take some minutes


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The results of two runs of all chapters; one of them is the quick edition where `make book` has just made it."""
    made = plan(ROOT, [], "quick", {}, None)
    now = provenance()["commit"]  # which is in every record
    current = all(is_current(job) and described(job.output)["provenance"]["commit"] == now for job in made)
    folders = [tmp_path_factory.mktemp(name) for name in (("again",) if current else ("first", "second"))]
    for folder in folders:
        status, said, _ = edition(ROOT, *ALL, "--output", str(folder), timeout=2400)
        assert status == 0, said
    return [folder / "results" for folder in folders] + [made[0].results.parent] * current


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
