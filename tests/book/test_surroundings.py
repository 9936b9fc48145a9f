"""The runner on machines that are not as expected: the edition is the same, or one sentence says why there is none.

No home, a home that cannot be written to, odd numbers of threads, relative folders, other locales and colours, and
folders with any letters in their names.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_project import LIBRARY, command, environment, read, write_project

from descent_book.run.worker import environment as kernel_environment

BODY = """import matplotlib.pyplot as plt
from descent.checkout import data_folder
print(os.environ["OMP_NUM_THREADS"], data_folder(), "a relative word and ~ stay")
plt.plot([1, 2])
plt.close()"""
NOBODY = """import pwd
def unknown(number):
    raise KeyError(number)
pwd.getpwuid = unknown"""


def run(root: Path, *arguments: str, without: tuple[str, ...] = (), **variables: str) -> tuple[int, str]:
    """Exit status of the runner in the folder above `root`, and all that it said."""
    asked = {name: value for name, value in (environment() | variables).items() if name not in without}
    done = subprocess.run(command(root, "run", *arguments), cwd=root.parent, env=asked, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def printed(root: Path) -> list[str]:
    cells = read(root / "_build/editions/quick/first.ipynb")["cells"]
    return ["".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", [])]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_project(tmp_path / "p", first=BODY)


@pytest.fixture
def nobody(tmp_path: Path) -> str:
    """A path for Python on which the machine does not know who runs it."""
    folder = tmp_path / "nobody"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(NOBODY)
    return os.pathsep.join([str(LIBRARY), str(folder)])


PLAIN = ["1 DATA a relative word and ~ stay\n"]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
CASES: dict[str, dict[str, str]] = {
    "a home that is not there, and threads for each level": {"HOME": "/proc/nowhere", "OMP_NUM_THREADS": "1,2"},
    "a relative home, and threads that are no number": {
        "HOME": "relative",
        "OMP_NUM_THREADS": "many",
        "MKL_NUM_THREADS": "-1",
        "OPENBLAS_NUM_THREADS": "0",
    },
    "a home that is a file, no colours, and a locale that is not there": {
        "HOME": "/etc/passwd",
        "NO_COLOR": "1",
        "LC_ALL": "xx_YY.UTF-8",
    },
    "colours everywhere, and a terminal of ASCII": {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", **ASCII},
    "no folders for matplotlib and IPython": {"MPLCONFIGDIR": "/proc/nowhere", "IPYTHONDIR": "/proc/nowhere"},
    "caches that are a file": {"XDG_CACHE_HOME": "/etc/passwd", "IPYTHONDIR": "/etc/passwd"},
    "no folder for settings": {"XDG_CONFIG_HOME": "/proc/nowhere"},
    "a long number of cores, taken from threads": {"OMP_NUM_THREADS": "9" * 5000},
    "no home, and no folder for scratch files": {"HOME": "", "TMPDIR": "/proc/nowhere"},
    "a relative path for Python, and no asserts": {"PYTHONPATH": "", "PYTHONOPTIMIZE": "1"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_edition_is_the_same(case: str, root: Path, tmp_path: Path) -> None:
    relative = {"PYTHONPATH": os.path.relpath(LIBRARY, tmp_path)} if "PYTHONPATH" in CASES[case] else {}
    status, said = run(root, **{"DESCENT_CORES": "1", **CASES[case], **relative})
    assert status == 0, said
    assert "first.count  2  holds" in said
    (line,) = printed(root)
    assert [line.replace(line.split()[1], "DATA")] == PLAIN


def test_a_user_whom_the_machine_does_not_know(root: Path, nobody: str) -> None:
    status, said = run(root, without=("HOME",), PYTHONPATH=nobody, DESCENT_CORES="1")
    assert status == 0, said
    assert len(printed(root)) == 1


@pytest.mark.parametrize("given", ["../relative/", "."])
def test_a_relative_data_folder_is_that_of_the_caller(root: Path, tmp_path: Path, given: str) -> None:
    status, said = run(root, DESCENT_DATA=given, DESCENT_CORES="1")
    assert status == 0, said
    assert printed(root) == ["1 data a relative word and ~ stay\n"]


def test_a_data_folder_in_a_home_that_nobody_has_is_refused(root: Path, nobody: str) -> None:
    status, said = run(root, without=("HOME",), PYTHONPATH=nobody, DESCENT_DATA="~/data")
    assert status == 1
    assert "FAILED first, before the first cell: RuntimeError: Could not determine home directory" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("variables", "arguments", "status", "sentence"),
    [
        ({"DESCENT_CORES": "many"}, [], 2, "refused: DESCENT_CORES='many': expected a positive integer"),
        ({"DESCENT_CORES": "²"}, [], 2, "refused: DESCENT_CORES='²': expected a positive integer"),
        ({"DESCENT_CORES": "0"}, [], 2, "refused: DESCENT_CORES='0': expected a positive integer"),
        ({"DESCENT_CORES": "9" * 5000}, [], 2, "expected a positive integer of at most nine digits"),
        ({"DESCENT_CORES": "-1"}, [], 2, "refused: DESCENT_CORES='-1': expected a positive integer"),
        ({"DESCENT_DEVICE": "gpu"}, [], 1, "before the first cell: ValueError: DESCENT_DEVICE='gpu': expected one of"),
        ({}, ["-p", "results_dir", "/proc/x"], 2, "refused: results_dir='/proc/x': nothing can be written there"),
        ({}, ["-p", "figures_dir", "/etc/passwd/x"], 2, "figures_dir='/etc/passwd/x': nothing can be written there"),
        ({}, ["--output", "/proc/x"], 2, "refused: output='/proc/x': nothing can be written there"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_cell(
    root: Path, variables: dict[str, str], arguments: list[str], status: int, sentence: str
) -> None:
    found, said = run(root, *arguments, **variables)
    assert (found, "Traceback" in said) == (status, False), said
    assert sentence in said
    assert not list((root / "_build").rglob("first.ipynb"))


@pytest.mark.parametrize("name", ["a [b] %20 é 'q' (x)+$&", "two\nlines", "-p *\\"])
def test_a_project_may_lie_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    root = write_project(tmp_path / name, first="print(Path.cwd(), settings.results_dir)")
    status, said = run(root, DESCENT_CORES="1")
    assert status == 0, said
    assert printed(root) == ["<scratch> \n"] or printed(root) == ["<scratch> <scratch>/results\n"]
    assert str(tmp_path) not in (root / "_build/editions/quick/first.ipynb").read_text()


def test_a_line_of_a_million_letters_is_kept(tmp_path: Path) -> None:
    root = write_project(tmp_path / "p", first="print('1' * 1_000_000, file=sys.stderr)")
    status, said = run(root, DESCENT_CORES="1")
    assert status == 0, said
    assert printed(root) == ["1" * 1_000_000 + "\n"]


def test_a_long_error_keeps_its_start_and_its_end(tmp_path: Path) -> None:
    long = "raise RuntimeError('weights.npz is not in data: ' + 'x ' * 9_000 + 'to do without: put it in data/old')"
    root = write_project(tmp_path / "p", first=long)
    status, said = run(root, DESCENT_CORES="1")
    assert status == 1
    (line,) = [line for line in said.splitlines() if line.startswith("FAILED")]
    assert line.startswith("FAILED first, cell 4 ('The work'): RuntimeError: weights.npz is not in data: x x")
    assert line.endswith("x to do without: put it in data/old (kept: _build/failed/first.ipynb)")
    assert len(line) < 1_600


def test_a_kernel_that_ends_by_itself_is_named(tmp_path: Path) -> None:
    root = write_project(tmp_path / "p", first="os._exit(0)")
    status, said = run(root, DESCENT_CORES="1")
    assert status == 1
    assert "FAILED first, cell 4 ('The work'): DeadKernelError" in said
    assert "Traceback" not in said


def test_the_threads_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"4,2": 3, "2,4": 2, " 1 ": 1, "": 3, "many": 3, "0": 3, "-2": 3, "1.5": 3, "²": 3, ",2": 3, "99": 3}
    for given, number in expected.items():
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert kernel_environment(3)["OMP_NUM_THREADS"] == str(number), given


def test_jupyter_book_in_a_checkout_says_what_builds_the_book(tmp_path: Path) -> None:
    for name in ("_config.yml", "_toc.yml"):
        (tmp_path / name).write_bytes((LIBRARY.parent / name).read_bytes())
    program = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(tmp_path)]
    done = subprocess.run(program, env=environment(), capture_output=True, text=True)
    assert done.returncode != 0
    assert "`make html` builds the published edition, `make book` runs the chapters first" in done.stdout + done.stderr
