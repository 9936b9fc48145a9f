"""Two runs of one thing at the same time: both end well, and what they leave is whole."""

import subprocess
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from kills import editions
from small_project import command, edition, environment, write_project
from sweep_tasks import wait_until

from descent.repro.records import Record
from descent_book.run.notebook import read_executed

MEET = """import numpy
Path(os.environ["MEETING"], str(os.getpid())).touch()
give_up = time.monotonic() + 280
while len(list(Path(os.environ["MEETING"]).iterdir())) < 2:
    assert time.monotonic() < give_up, "the other run does not come"
    time.sleep(0.05)
if settings.results_dir:
    numpy.save(Path(settings.results_dir, "values.npy"), numpy.arange(300_000))"""


@pytest.mark.promise("R3")
def test_two_editions_of_one_chapter_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_project(tmp_path / "p", first=MEET)
    (meeting := tmp_path / "meeting").mkdir()
    variables = {**environment(), "MEETING": str(meeting)}
    told: dict[str, Any] = {"env": variables, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(command(root, "run"), **told) for _ in range(2)]
    for run in both:
        said, _ = run.communicate()
        assert run.returncode == 0, said
        assert "1 check: 1 holds" in said
    assert len(list(meeting.iterdir())) == 2
    quick = root / "_build/editions/quick"
    assert read_executed(quick / "first.ipynb")["metadata"]["descent"]["claims"][0]["id"] == "first.count"
    assert np.array_equal(np.load(quick / "results/first/values.npy"), np.arange(300_000))
    assert sorted(path.name for path in root.rglob("*") if "tmp" in path.name or "failed" in path.parts) == []
    together = editions(root)
    monkeypatch.setenv("MEETING", str(meeting))
    status, said, _ = edition(root, "run", "--force")
    assert status == 0, said
    assert editions(root) == together


@pytest.mark.promise("R3")
def test_a_file_written_by_several_at_once_is_always_one_of_theirs(tmp_path: Path) -> None:
    path, kinds = tmp_path / "r.npz", range(4)

    def write(kind: int) -> None:
        for _ in range(20):
            Record("r", {"kind": np.full(20_000, kind)}).save(path)

    writers = [Thread(target=write, args=(kind,)) for kind in kinds]
    for writer in writers:
        writer.start()
    wait_until(path.exists)
    seen = set()
    while any(writer.is_alive() for writer in writers):
        values = Record.load(path).values["kind"]
        assert len(values) == 20_000
        assert len(set(values.tolist())) == 1
        seen.add(int(values[0]))
    assert seen <= set(kinds)
    assert seen
    assert [each.name for each in tmp_path.iterdir()] == ["r.npz"]
