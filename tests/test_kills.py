"""Killed by signal 9 at a random moment and started again, a long run ends with the bytes of one left alone.

Training with recorded gradients has its twenty kills in `test_training`; the other twenties are in the audit.
"""

from pathlib import Path

import pytest

from kills import RUNS, killed, killed_editions


@pytest.mark.promise("R3")
@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    assert killed(RUNS[name], tmp_path, kills=2) >= 1


@pytest.mark.promise("R3")
def test_a_killed_runner_leaves_nothing_that_counts_and_no_process(tmp_path: Path) -> None:
    assert killed_editions(tmp_path, kills=1) == 1
