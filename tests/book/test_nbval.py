"""What `pytest --nbval-lax` compares: a claim of every chapter, so that a number that is no longer so is found."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from descent import checkout
from descent.repro.records import provenance
from descent_book.run import new_chapter
from descent_book.run.chapter import Chapter
from descent_book.run.notebook import processor

ROOT = checkout.project_root()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def checked(path: Path) -> list[dict[str, Any]]:
    """The cells that nbval compares: tagged, and executed."""
    return [
        cell
        for cell in json.loads(path.read_text())["cells"]
        if "nbval-check-output" in cell["metadata"].get("tags", []) and cell["execution_count"] is not None
    ]


def markdown(cell: dict[str, Any]) -> str:
    return "".join("".join(output.get("data", {}).get("text/markdown", "")) for output in cell["outputs"])


def nbval(folder: Path, *arguments: str | Path) -> tuple[int, str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run([*command, *arguments], cwd=folder, env=variables, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_table_of_claims_with_verdicts_is_compared_in_every_chapter(path: Path) -> None:
    tables = [markdown(cell) for cell in checked(path)]
    assert any("| verdict |" in table and table.count("\n") >= 2 for table in tables)


def with_measured(change: Callable[[float], float]) -> tuple[str, str]:
    """The text of the template of a chapter, which is quick, with another number in its stored claim; that number."""
    true = json.loads(new_chapter.TEMPLATE.read_text())
    (cell,) = checked(new_chapter.TEMPLATE)
    (row,) = (line for line in markdown(cell).splitlines() if line.startswith("| `edge` |"))
    measured, rest = row.split(" | ")[2].split(" ", 1)
    text = json.dumps(true, ensure_ascii=False)
    assert text.count(f"{measured} {rest} |") == 2  # as Markdown and as plain text
    planted = f"{change(float(measured)):.3f}"
    return text.replace(f"{measured} {rest} |", f"{planted} {rest} |"), planted


@pytest.fixture
def registered(tmp_path: Path) -> None:
    """What the template registers, beside the notebooks that are made of it."""
    quick = dict(Chapter(ROOT, "new_chapter", json.loads(new_chapter.TEMPLATE.read_text())).defaults)
    files = {"claims/new_chapter.yml": new_chapter.CLAIMS, "presets/quick/new_chapter.yml": yaml.safe_dump(quick)}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)


@pytest.mark.usefixtures("registered")
def test_a_wrong_number_planted_in_a_stored_claim_is_found_and_the_right_one_passes(tmp_path: Path) -> None:
    """In the template of a chapter, less the figures: the cells before the claim in both copies, then the claim."""
    for name, error in (("true", 0.0), ("false", 0.001)):
        text, planted = with_measured(lambda measured, error=error: measured + error)  # type: ignore[misc]
        (tmp_path / f"{name}.ipynb").write_text(text)
    status, said = nbval(tmp_path, "true.ipynb", "false.ipynb")
    failed = [line for line in said.splitlines() if line.startswith("FAILED")]
    assert status == 1, said
    assert len(failed) == 1
    assert failed[0].startswith("FAILED false.ipynb")
    assert planted in said


@pytest.mark.usefixtures("registered")
def test_a_number_stored_on_another_processor_may_differ_as_far_as_r2_goes(tmp_path: Path) -> None:
    """What is stored on this kind of processor is compared digit by digit, as where it is not said."""
    shutil.copy(ROOT / "notebooks" / "conftest.py", tmp_path)
    elsewhere, here = "another one", processor(provenance())
    for name, factor, stored_on in (("near", 1.2, elsewhere), ("far", 3, elsewhere), ("here", 1.2, here)):
        text, _ = with_measured(lambda measured, factor=factor: factor * measured)  # type: ignore[misc]
        notebook = json.loads(text)
        notebook["metadata"]["checked_on"] = stored_on
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(notebook))
    status, said = nbval(tmp_path, "near.ipynb", "far.ipynb", "here.ipynb")
    assert status == 1, said
    failed = [line.partition("::")[0] for line in said.splitlines() if line.startswith("FAILED")]
    assert failed == ["FAILED far.ipynb", "FAILED here.ipynb"], said


def test_pytest_by_itself_collects_every_cell_of_every_chapter() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "notebooks" in settings["testpaths"], "so that `pytest --nbval-lax` alone finds them"
    status, said = nbval(ROOT, "--collect-only", "notebooks")
    assert status == 0, said
    for path in NOTEBOOKS:
        code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert said.count(f"notebooks/{path.name}::") == len(code)
