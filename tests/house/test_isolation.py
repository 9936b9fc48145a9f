"""No test is touched by what another one left in the process."""

import shutil
import subprocess
import sys
from pathlib import Path

from small_project import environment

TESTS = Path(__file__).parents[1]
SAMPLE = """
import os
import sys

import matplotlib.pyplot as plt
import pytest

FOUND = {
    "style": lambda: plt.rcParams["figure.constrained_layout.use"],
    "figure": lambda: plt.get_fignums(),
    "variable": lambda: "LEFT" in os.environ,
    "path": lambda: "left" in sys.path,
}

@pytest.mark.parametrize("left", [*FOUND, *FOUND])
def test_of_a_clean_process(left):
    found = FOUND[left]()
    plt.rcParams["figure.constrained_layout.use"] = True
    plt.figure()
    os.environ["LEFT"] = "1"
    sys.path.append("left")
    assert not found
"""


def test_what_a_test_leaves_behind_does_not_reach_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    outcomes = []
    for helpers in ((), ("conftest.py", "helpers/nbval_results.py", "helpers/small_project.py")):
        for name in helpers:
            shutil.copy(TESTS / name, tmp_path)
        ran = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        outcomes.append(ran.stdout.strip().splitlines()[-1].partition(" in ")[0])
    assert outcomes == ["7 failed, 1 passed", "8 passed"], "without the fixture all but the first see what was left"
