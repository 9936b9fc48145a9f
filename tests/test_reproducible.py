"""Two runs of a chapter on this machine give the same bytes."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from descent.edition import is_current, plan
from descent.project import chapters
from small_project import edition

ROOT = Path(__file__).parents[1]


def digests(results: Path, chapter: str) -> list[str]:
    kept = ["claims.json", f"{chapter}.npz"]
    assert sorted(path.name for path in results.iterdir()) == kept
    return [hashlib.sha256((results / file).read_bytes()).hexdigest() for file in kept]


@pytest.mark.parametrize("chapter", chapters(ROOT))
def test_two_quick_runs_give_bit_identical_records_and_claims(tmp_path: Path, chapter: str) -> None:
    """One of them is the quick edition where `make book` has just made it, beside other chapters and on fewer cores."""
    (made,) = plan(ROOT, [chapter], "quick", {}, None)
    folders = [tmp_path / "first"] if is_current(made) else [tmp_path / "first", tmp_path / "second"]

    def run(folder: Path) -> None:
        status, said, _ = edition(ROOT, "run", "--chapter", chapter, "--force", "--output", str(folder))
        assert status == 0, said

    with ThreadPoolExecutor(2) as both:  # at once: how busy the machine is changes no bit
        list(both.map(run, folders))
    found = [digests(folder / "results" / chapter, chapter) for folder in folders]
    if is_current(made):
        found.append(digests(made.results, chapter))
    assert found[0] == found[1]
