"""No test is touched by what another one left in the process."""

import shutil
import subprocess
import sys
from pathlib import Path

from small_project import environment

TESTS = Path(__file__).parent
SAMPLE = """
import matplotlib.pyplot as plt
import pytest

@pytest.mark.parametrize("turn", range(2))
def test_a_test_that_leaves_its_style_and_a_figure(turn):
    assert not plt.rcParams["figure.constrained_layout.use"]
    assert not plt.get_fignums()
    plt.rcParams["figure.constrained_layout.use"] = True
    plt.figure()
"""


def test_a_style_and_a_figure_do_not_reach_the_next_test(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    outcomes = []
    for helpers in ((), ("conftest.py", "nbval_results.py", "small_project.py")):
        for name in helpers:
            shutil.copy(TESTS / name, tmp_path)
        ran = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
        outcomes.append(ran.stdout.strip().splitlines()[-1].partition(" in ")[0])
    assert outcomes == ["1 failed, 1 passed", "2 passed"], "without the fixture the second one sees what the first left"
