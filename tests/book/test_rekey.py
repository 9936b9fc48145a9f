"""Published chapters keep their standing over a refactoring, and lose it, with the reason, over a changed constant."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from small_project import read, write_preset, write_project

from descent.checkout import project_root
from descent_book.run import edition, rekey
from descent_book.run.notebook import as_text, read_executed, seal

# how the tree of then told a key: by its bytes, so that every refactoring changed it
ITS_OWN = """import hashlib
from types import SimpleNamespace

def plan(root, chapters, preset, given, folder):
    files = sorted(path for path in (root / "lib").rglob("*.py"))
    text = "".join(path.read_text() for path in [*files, root / "notebooks" / f"{chapters[0]}.ipynb"])
    return [SimpleNamespace(key=hashlib.sha256((preset + text).encode()).hexdigest())]
"""
BEFORE = {"__init__.py": "", "a.py": "from descent.b import g\ndef f(): return g()", "b.py": "def g(): return 1"}
AFTER = {"a.py": "from descent.r.c import h\ndef f():\n 'Words.'\n return h()", "r/__init__.py": ""}
REFACTORED = {**AFTER, "__init__.py": "", "r/c.py": "def h(): return 1"}
CHANGED = {**REFACTORED, "r/c.py": "def h(): return 2"}
LAYOUTS = {
    "descent.edition": {"descent/edition.py": ITS_OWN},
    "descent_book.run.edition": {
        "descent_book/__init__.py": "",
        "descent_book/run/__init__.py": "",
        "descent_book/run/edition.py": ITS_OWN,
    },
}


def write(root: Path, files: Mapping[str, str], layout: str = "descent.edition") -> None:
    shutil.rmtree(root / "lib", ignore_errors=True)
    for name, text in {**{f"descent/{name}": text for name, text in files.items()}, **LAYOUTS[layout]}.items():
        path = root / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def commit(root: Path) -> str:
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "x", "--allow-empty"]):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True)
    return found.stdout.strip()[:12]


def publish(root: Path, named: str, key: str = "") -> Path:
    """An edition of the sources as they stand."""
    namespace: dict[str, Any] = {}
    exec(ITS_OWN, namespace)
    key = key or namespace["plan"](root, ["first"], "paper", {}, None)[0].key
    executed = read(root / "notebooks" / "first.ipynb")
    values = edition.plan(root, ["first"], "paper", {}, None)[0].parameters
    parameters = {name: value for name, value in values.items() if name not in edition.NEUTRAL_PARAMETERS}
    notes = {"key": key, "preset": "paper", "parameters": parameters, "claims": [], "seconds": 1.0}
    executed["metadata"]["descent"] = {**notes, "provenance": {"commit": named}}
    path = root / "book" / "first.ipynb"
    path.write_text(as_text(seal(executed)))
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = write_project(tmp_path / "project", first="from descent.a import f\nf()")
    write_preset(found, "paper", "first", "preset: paper\n")
    write(found, BEFORE)
    monkeypatch.setattr(edition, "LIBRARY", found / "lib" / "descent")
    return found


def run(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(rekey.main, [*arguments, "--root", str(root)])


def notes(path: Path) -> Any:
    return read_executed(path)["metadata"]["descent"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_refactoring_leaves_an_edition_current(root: Path, layout: str) -> None:
    write(root, BEFORE, layout)
    path = publish(root, named := commit(root))
    before = read(path)
    write(root, REFACTORED)
    assert rekey.standing(root) == {"first": {"commit": named, "differs": ["its key was made otherwise: make rekey"]}}
    result = run(root)
    assert (result.exit_code, result.output) == (
        0,
        f"first: current: the sources of {named}, which ran, mean what today's mean; it has today's key now\n",
    )
    job = edition.plan(root, ["first"], "paper", {}, None)[0]
    assert edition.is_current(job)
    assert notes(path)["key_before"] == before["metadata"]["descent"]["key"]
    assert notes(path)["depends"] == json.loads(json.dumps(job.depends))
    assert "descent.r.c.h" in notes(path)["depends"]["definitions"]
    assert read(path)["cells"] == before["cells"]
    assert rekey.standing(root) == {"first": {"commit": named, "differs": []}}
    assert run(root).output == "first: current\n"
    assert run(root, "--say").output == "stale published chapters: none\n"


def test_a_changed_constant_makes_it_stale_and_is_named_without_git(root: Path) -> None:
    path = publish(root, named := commit(root))
    key = notes(path)["key"]
    write(root, CHANGED)
    commit(root)
    result = run(root)
    assert (result.exit_code, result.output) == (0, f"first: stale since {named}: g is no longer reached; h is new\n")
    assert (notes(path)["key"], "depends" in notes(path)) == (key, False)
    shutil.rmtree(root / ".git")
    write(root, {**BEFORE, "b.py": "def g(): return 2"})
    assert rekey.standing(root) == {"first": {"commit": named, "differs": ["g differs"]}}
    assert run(root, "--say").output == "stale published chapters: first (g differs)\n"


def test_an_edition_that_has_become_current_again_is_found_so(root: Path) -> None:
    path = publish(root, commit(root))
    write(root, CHANGED)
    run(root)
    write(root, REFACTORED)
    commit(root)
    assert "it has today's key now" in run(root).output
    assert "ran_from" not in notes(path)
    write(root, CHANGED)
    assert run(root, "--say").output == "stale published chapters: first (h differs)\n"


def test_what_was_not_committed_is_looked_for_in_the_commits_that_followed(root: Path) -> None:
    named = commit(root)
    write(root, {**BEFORE, "b.py": "def g(): return 3"})
    publish(root, f"{named}+")
    commit(root)  # of something else alone
    later = commit(root)
    write(root, {**REFACTORED, "r/c.py": "def h(): return 3"})
    assert "it has today's key now" in run(root).output
    publish(root, named)
    write(root, REFACTORED)
    assert "for no commit is proven" in run(root).output, "only a commit that is named with its changes is followed"
    assert later


UNPROVEN = {
    "no commit": ("", "", "it names no commit"),
    "a commit that is not in the clone": ("0123456789ab", "", "commit 0123456789ab is not in this clone"),
    "another key": ("HEAD", "0" * 64, "the code of HEAD does not give its key"),
    "another key, with changes": ("HEAD+", "0" * 64, "the code of HEAD+, or of those after it, does not give its key"),
}


@pytest.mark.parametrize("case", UNPROVEN)
def test_an_edition_without_proof_is_left_as_it_is(root: Path, case: str) -> None:
    named, key, sentence = UNPROVEN[case]
    commit(root)
    path = publish(root, named, key)
    before = path.read_bytes()
    result = run(root)
    assert result.exit_code == 0
    assert result.output.startswith("first: left as it is, for no commit is proven to be what ran: ")
    assert sentence in result.output
    assert path.read_bytes() == before


def test_without_git_nothing_is_proven(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publish(root, commit(root))
    before = path.read_bytes()
    monkeypatch.setenv("PATH", "")
    result = run(root)
    assert (result.exit_code, path.read_bytes()) == (0, before)
    assert "or there is no git (git: No such file or directory)" in result.output


def test_a_damaged_edition_is_an_error(root: Path) -> None:
    path = publish(root, commit(root))
    path.write_text(path.read_text().replace("from descent.a", "from descent.b"))
    result = run(root)
    assert result.exit_code == 1
    assert "is damaged: SHA-256" in result.output
    assert "is damaged: SHA-256" in rekey.standing(root)["first"]["differs"][0]


def test_a_disk_that_is_full_leaves_the_edition(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = publish(root, commit(root))
    before = path.read_bytes()
    write(root, REFACTORED)
    monkeypatch.setattr(rekey, "write_atomic", full)
    result = run(root)
    assert (result.exit_code, path.read_bytes()) == (1, before)
    assert "No space left on device" in result.output


def test_other_parameters_of_the_preset_are_named(root: Path) -> None:
    publish(root, commit(root))
    write(root, REFACTORED)
    run(root)
    write_preset(root, "paper", "first", "preset: paper\nepochs: 7\n")
    assert run(root, "--say").output == "stale published chapters: first (parameter epochs differs)\n"


def test_a_chapter_that_is_not_published_and_one_that_cannot_be_read_are_said(root: Path) -> None:
    assert rekey.standing(root)["first"]["differs"] == ["there is no published edition"]
    publish(root, commit(root))
    write(root, {"__init__.py": ""})
    assert rekey.standing(root)["first"]["differs"] == ["first: the library has no module descent.a"]


def test_what_differs_is_told_in_a_line() -> None:
    many = [f"a{number} is no longer reached" for number in range(7)]
    differs = ["f differs", "g differs", *many, "h is new", "which of the definitions calls which differs"]
    found = {"one": {"differs": []}, "two": {"differs": differs}, "three": {"differs": ["k is new"]}}
    said = (
        "two (f, g differ; a0, a1, a2, a3, a4 and 2 more are no longer reached; h is new; "
        "which of the definitions calls which differs), three (k is new)"
    )
    assert rekey.told(found) == f"stale published chapters: {said}"


def test_standing_is_told(record_property: Any) -> None:
    """No published chapter need be current; which are not is said at the end of the tests."""
    found = rekey.standing(project_root())
    assert found
    assert all(each["commit"] for each in found.values())
    record_property("standing", rekey.told(found))
