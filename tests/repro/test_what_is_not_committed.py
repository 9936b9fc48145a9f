"""Provenance says which commit, and by "+" that files were not as committed; entries of records keep their names."""

import subprocess
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
    told = {"--short=12": "0123456789ab", "--show-toplevel": str(tmp_path)}
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
    with pytest.raises(ValueError, match="r: 'm' holds Python objects or a mask; expected numbers or text"):
        Record("r", {"m": masked}).save(tmp_path / "r.npz")
