"""Two runs of a chapter on this machine give the same bytes."""

import hashlib
from pathlib import Path

import pytest

from descent.project import chapters
from small_project import edition

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("chapter", chapters(ROOT))
def test_two_quick_runs_give_bit_identical_records_and_claims(tmp_path, chapter):
    digests = []
    for name in ("first", "second"):
        output = tmp_path / name
        options = ["--chapter", chapter, "--force", "--output", str(output)]
        status, said, _ = edition(ROOT, "run", *options)
        assert status == 0, said
        results = output / "results" / chapter
        kept = ["claims.json", f"{chapter}.npz"]
        assert sorted(path.name for path in results.iterdir()) == kept
        digests.append([hashlib.sha256((results / file).read_bytes()).hexdigest() for file in kept])
    assert digests[0] == digests[1]
