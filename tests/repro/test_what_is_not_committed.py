"""Provenance says which commit, and by "+" that files were not as committed; entries of records keep their names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from descent.repro import records
from descent.repro.records import Record, provenance, uncommitted


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A committed folder with a file of each kind."""
    for name in (
        "lib/a.py",
        "notebooks/b.ipynb",
        "data/records/c.npz",
        "data/mnist/d.gz",
        "requirements.txt",
        "README.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "all")
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("name", "decides"),
    [
        ("lib/a.py", True),
        ("lib/new.py", True),
        ("notebooks/b.ipynb", True),
        ("data/records/c.npz", True),
        ("data/checkpoints/new.safetensors", True),
        ("requirements.txt", True),
        ("data/mnist/d.gz", False),
        ("README.md", False),
        ("tests/new.py", False),
    ],
)
def test_what_decides_a_result_and_is_not_committed_is_listed(checkout: Path, name: str, decides: bool) -> None:
    assert uncommitted(checkout) == []
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).write_text("changed")
    assert uncommitted(checkout) == ([name] if decides else [])


@pytest.mark.parametrize(("changed", "mark"), [([], ""), (["lib/a.py"], "+")])
def test_the_commit_has_a_plus_where_something_is_not_committed(
    changed: list[str], mark: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = {
        "--full-name": "lib/descent/repro/records.py",
        "--short=12": "0123456789ab",
        "--show-toplevel": str(tmp_path),
    }
    monkeypatch.setattr(records, "_git", lambda folder, *arguments: told[arguments[1]])
    monkeypatch.setattr(records, "uncommitted", lambda root: changed if root == tmp_path else ["asked elsewhere"])
    assert provenance(3)["commit"] == f"0123456789ab{mark}"


def test_outside_of_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_git", lambda *_: None)
    assert provenance()["commit"] is None
    assert provenance()["seed"] is None
    assert provenance(0)["seed"] == 0


@pytest.mark.parametrize(
    "name", ["__record__", "file", "allow_pickle", "", "a.npy", ".npy", "a\0b", "a\nb", "\ud800", 3]
)
def test_an_entry_may_not_have_a_name_of_the_file_format(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"an entry may not be called .*: the file format uses that name"):
        Record("r", {"fine": np.ones(2), name: np.zeros(3)}).save(tmp_path / "r.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["args", "kwds", "arr_0", "a/b", "/a", "../a", "a\\b", ".", "σ", "a b", "self", "x" * 300]
)
def test_any_other_name_comes_back(name: str, tmp_path: Path) -> None:
    values = {name: np.arange(3.0), "other": np.arange(2)}
    Record("r", values).save(tmp_path / "r.npz")
    found = Record.load(tmp_path / "r.npz").values
    assert set(found) == set(values)
    assert all(np.array_equal(found[each], values[each]) for each in values)


def test_a_mask_is_not_lost_silently(tmp_path: Path) -> None:
    masked = np.ma.masked_invalid([1.0, np.nan])
    with pytest.raises(ValueError, match="r: 'm' is a masked array: expected the numbers that count"):
        Record("r", {"m": masked}).save(tmp_path / "r.npz")


@pytest.mark.parametrize("masked", [[np.ma.masked_equal([1, 2], 2)], [[np.ma.masked]], (np.ma.ones(1),)])
def test_a_mask_within_a_list_is_not_lost_silently(masked: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="r: 'm' is a masked array: expected the numbers that count"):
        Record("r", {"m": masked}).save(tmp_path / "r.npz")  # type: ignore[dict-item]


# --- the repository of somebody else


def commit_said(package: Path, **variables: str) -> str:
    """What a process that imports the library from a folder names as its commit."""
    asked = {**os.environ, "PYTHONPATH": str(package), **variables}
    script = "from descent.repro.records import provenance; print(provenance()['commit'])"
    done = subprocess.run([sys.executable, "-c", script], env=asked, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("place", [".venv/lib/site-packages", "lib"])
@pytest.mark.parametrize("tracked", [False, True])
def test_only_a_repository_that_knows_the_library_names_its_commit(
    checkout: Path, place: str, tracked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment of a project lies in its folder, and may even be committed."""
    package = Path(records.__file__).parents[1]
    shutil.copytree(package, checkout / place / "descent", ignore=shutil.ignore_patterns("__pycache__"))
    if tracked:
        git(checkout, "add", "-A")
        git(checkout, "commit", "-qm", "with the library")
    head = subprocess.check_output(["git", "-C", checkout, "rev-parse", "--short=12", "HEAD"], text=True).strip()
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # what is compiled would not be committed
    assert commit_said(checkout / place) == (head if tracked and place == "lib" else "None")


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"])
def test_a_repository_that_the_environment_names_is_not_asked(
    name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As within a hook of git, or `git rebase --exec`."""
    (checkout / "lib/new.py").write_text("changed")
    before = (provenance()["commit"], uncommitted(checkout))
    monkeypatch.setenv(name, str(checkout / {"GIT_DIR": ".git", "GIT_INDEX_FILE": ".git/index"}.get(name, "")))
    assert (provenance()["commit"], uncommitted(checkout)) == before == (before[0], ["lib/new.py"])


# --- settings and names


def test_settings_of_numpy_become_plain(tmp_path: Path) -> None:
    given = {"rate": np.float32(0.5), "n": np.int64(3), "on": np.True_, "path": Path("a/b"), "list": [np.arange(2)]}
    Record("r", {}, given).save(tmp_path / "r.npz")
    expected = {"rate": 0.5, "n": 3, "on": True, "path": "a/b", "list": [[0, 1]]}
    assert Record.load(tmp_path / "r.npz", **given).settings == expected
    assert records.find_record(tmp_path / "r.npz", n=np.int64(3), rate=0.5) is not None
    assert records.find_record(tmp_path / "r.npz", n=np.int64(4)) is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"f": print},
            r"setting 'f': expected numbers, texts, lists or the like \(.* not builtin_function_or_method\)",
        ),
        ({"a": {"b": {1}}}, r"setting 'a': expected numbers, texts, lists or the like \(.* not set\)"),
        ({1: 2, "1": 3}, r"r: two of the settings \[1, '1'\] have one name in JSON"),
    ],
)
def test_a_setting_that_is_no_plain_value_is_named(settings: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        Record("r", {}, settings).save(tmp_path / "r.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_an_archive_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"r: an entry may not be called 'x{98}: the file format uses that name"):
        Record("r", {"x" * 70_000: np.ones(2)}).save(tmp_path / "r.npz")


# --- differences


@pytest.mark.parametrize(
    ("kept", "anew", "scale", "sentence"),
    [
        ([1 + 1j], [1 + 9j], None, "kept is of type complex128: expected real numbers"),
        ([1.0], [1 + 9j], None, "anew is of type complex128: expected real numbers"),
        ([1.0], [1.0, 2.0, 3.0], None, r"kept of shape \(1,\), anew of \(3,\): expected one shape"),
        (1.0, [1.0], None, r"kept of shape \(\), anew of \(1,\): expected one shape"),
        (np.ma.masked_equal([1.0, 2.0], 2), [1.0, 2.0], None, "kept is a masked array"),
        ([1.0], [2.0], -1.0, "scale=-1.0: expected none below zero"),
        (["1"], [2.0], None, "kept is of type <U1: expected real numbers"),
    ],
)
def test_what_has_no_difference_is_refused(kept: object, anew: object, scale: float | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        records.relative_difference(kept, anew, scale)  # type: ignore[arg-type]


def test_a_scale_that_is_no_number_makes_no_difference_small() -> None:
    for scale in (np.inf, np.nan, 0.0):
        np.testing.assert_array_equal(records.relative_difference([1.0, 2.0], [1.0, 3.0], scale), [0, np.inf])
    np.testing.assert_array_equal(records.relative_difference([1.0], [np.inf], np.inf), [np.inf])


def test_two_numbers_differ_as_two_arrays_do() -> None:
    assert records.relative_difference(np.float64(1.5), np.float64(1.0)) == 0.5
    assert records.relative_difference(2.0, 2.0) == 0
    assert records.relative_difference(1.0, np.inf) == np.inf
    assert records.relative_difference(np.float64(3.0), np.float64(1.0), 4.0) == 0.5
