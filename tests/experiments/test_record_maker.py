"""Which chapters have records is said beside their studies, and nowhere else."""

import os
import subprocess
from pathlib import Path

import pytest

from descent import experiments
from descent.checkout import project_root
from descent.experiments import record_maker
from descent.experiments.record_maker import main, record_makers
from descent_book.run.project import chapters

ROOT = project_root()


def test_every_chapter_with_records_has_a_maker_and_no_other() -> None:
    assert sorted(record_makers()) == sorted(folder.name for folder in (ROOT / "data" / "records").iterdir())
    assert set(record_makers()) <= set(chapters(ROOT))


def test_a_new_module_is_found_without_an_entry_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = list(record_makers())
    (tmp_path / "tunnels.py").write_text("CHAPTERS = {'tunnels': print}")
    (tmp_path / "bridges.py").write_text("'A study without records.'")
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path)])
    assert list(record_makers()) == [*known, "tunnels"]
    assert record_makers()["tunnels"] is print


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, str]]:
    """The calls of three makers that make nothing."""
    calls: list[tuple[str, Path, str]] = []
    makers = {
        name: lambda root, scheduler, name=name: calls.append((name, root, scheduler)) for name in ("a", "b", "c")
    }
    monkeypatch.setattr(record_maker, "record_makers", lambda: makers)
    monkeypatch.setattr(record_maker, "project_root", lambda: tmp_path)
    return calls


def test_one_chapter_or_all_are_made(tmp_path: Path, calls: list[tuple[str, Path, str]]) -> None:
    main(["b", "--scheduler", "tcp://far:8786"])
    assert calls == [("b", tmp_path, "tcp://far:8786")]
    calls.clear()
    main([])
    assert calls == [(name, tmp_path, "") for name in "abc"]


def test_a_chapter_without_records_is_refused_with_the_choices(
    calls: list[tuple[str, Path, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["saddles"])
    assert stopped.value.code == 2
    assert "CHAPTER=saddles: expected a, b or c, which have records" in capsys.readouterr().err
    assert calls == []


def test_make_hands_chapter_and_scheduler_on(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".ready").touch()
    os.utime(tmp_path / ".ready", (4e9, 4e9))  # newer than what it is made of
    make = ["make", "--silent", "records", f"VENV={tmp_path}"]
    for arguments, said in (
        ([], ""),
        (["CHAPTER=grokking", "SCHEDULER=tcp://far:8786"], " grokking --scheduler tcp://far:8786"),
    ):
        printed = subprocess.run([*make, *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert printed.strip() == f"-m descent.experiments.record_maker{said}"
