"""Plain papermill, without the runner: a wrong value stops before any compute, a wrong name is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from descent import checkout
from descent_book.run import new_chapter

ROOT = checkout.project_root()


def papermill(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", new_chapter.TEMPLATE, folder / "out.ipynb", "-k", "python3"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], cwd=folder, env=variables, capture_output=True, text=True)


@pytest.mark.promise("R8")
def test_a_wrong_value_names_the_parameter_and_what_it_may_be_before_anything_is_measured(tmp_path: Path) -> None:
    run = papermill(tmp_path, "-p", "runs", "1")
    assert run.returncode == 1
    assert "1 validation error for Settings" in run.stderr
    assert "runs\n  Input should be greater than or equal to 2" in run.stderr
    assert "input_value=1" in run.stderr
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    settings = next(number for number, cell in enumerate(cells) if "settings" in cell["metadata"]["tags"])
    later = [cell["execution_count"] for cell in cells[settings + 1 :] if cell["cell_type"] == "code"]
    assert later
    assert set(later) == {None}


def test_a_wrong_name_is_said_by_papermill_and_refused_only_by_the_runner(tmp_path: Path) -> None:
    """papermill warns and goes on: the page on running says so, and `tests/book/test_edition.py` holds the refusal."""
    run = papermill(tmp_path, "-p", "runz", "3", "--prepare-only")
    assert run.returncode == 0
    assert "Passed unknown parameter: runz" in run.stderr
