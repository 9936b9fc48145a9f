"""Two runs of a chapter on this machine give the same bytes."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from descent.project import chapters
from small_project import edition

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("chapter", chapters(ROOT))
def test_two_quick_runs_give_bit_identical_records_and_claims(tmp_path, chapter):
    def run(name):
        options = ["--chapter", chapter, "--force", "--output", str(tmp_path / name)]
        return edition(ROOT, "run", *options)

    with ThreadPoolExecutor(2) as both:  # at once: how busy the machine is changes no bit
        for status, said, _ in both.map(run, ("first", "second")):
            assert status == 0, said
    digests = []
    for name in ("first", "second"):
        results = tmp_path / name / "results" / chapter
        kept = ["claims.json", f"{chapter}.npz"]
        assert sorted(path.name for path in results.iterdir()) == kept
        digests.append([hashlib.sha256((results / file).read_bytes()).hexdigest() for file in kept])
    assert digests[0] == digests[1]
