import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from descent_book.run.new_chapter import create
from descent_book.run.project import RefusedError, chapters

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path) -> Path:
    for name in ("notebooks", "book", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "drafts", "images"))
    for name in ("_toc.yml", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "lib"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


def test_a_new_chapter_passes_every_structure_test_and_its_output_is_what_it_computes(project):
    written = create(project, "my_chapter")
    assert [str(path.relative_to(project)) for path in written] == [
        "notebooks/my_chapter.ipynb",
        "notebooks/claims/my_chapter.yml",
        "notebooks/presets/quick/my_chapter.yml",
        "notebooks/presets/paper/my_chapter.yml",
        "notebooks/audits/my_chapter.yml",
        "_toc.yml",
    ]
    assert sorted(chapters(project)) == sorted([*chapters(ROOT), "my_chapter"])
    text = written[0].read_text(encoding="utf-8")
    assert "new_chapter" not in text
    assert "# My chapter" in text
    structure = pytest_in(project, "tests/house/test_notebooks.py", "-k", "my_chapter or contents")
    assert structure.returncode == 0, structure.stdout
    assert " passed" in structure.stdout
    audit = pytest_in(project, "--collect-only", "tests/audits/test_parameters_matter.py", "-k", "my_chapter")
    assert audit.returncode == 0, audit.stdout
    for parameter in ("seed", "sizes", "shape", "runs"):
        assert f"test_a_parameter_changes_what_is_recorded[my_chapter-{parameter}]" in audit.stdout
    tried = pytest_in(project, "tests/audits/test_parameters_matter.py", "-k", "my_chapter and tried")
    assert tried.returncode == 0, tried.stdout
    run = pytest_in(project, "--nbval-lax", "--nbval-current-env", "notebooks/my_chapter.ipynb")
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "NAME='': expected 3 to 40 of a-z, 0-9 and _, a letter first"),
        ("My chapter", "NAME='My chapter': expected"),
        ("../x", "expected 3 to 40"),
        ("saddles", "NAME='saddles': there is a page of that name"),
        ("notation", "NAME='notation': there is a page of that name"),
    ],
)
def test_a_name_that_will_not_do_is_refused_and_nothing_written(project, name, message):
    before = sorted(project.rglob("*"))
    with pytest.raises(RefusedError, match=f"^{message}" if message[0] == "N" else message):
        create(project, name)
    assert sorted(project.rglob("*")) == before


def test_the_command_says_what_it_wrote_and_refuses_with_2(project):
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
        program = [sys.executable, "-m", "descent_book.run.new_chapter", "--root", str(project), *arguments]
        return subprocess.run(program, env=variables, capture_output=True, text=True)

    assert command("another_one").stdout.splitlines()[0] == "wrote notebooks/another_one.ipynb"
    again = command("another_one")
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("refused: NAME='another_one': there is a page of that name")
