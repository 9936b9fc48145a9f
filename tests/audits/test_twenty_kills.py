"""Twenty kills at random moments for every kind of long run; each is started again until it ends."""

from collections.abc import Callable
from pathlib import Path

import pytest
from kills import RUNS, killed, killed_editions
from resumable_run import killed_and_resumed

KILLS = 20


@pytest.mark.promise("R3")
@pytest.mark.parametrize("name", RUNS)
def test_twenty_kills(name: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    ended = killed(RUNS[name], tmp_path, KILLS)
    record_property(f"{name}: kills", KILLS)
    record_property(f"{name}: runs that ended with the bytes of an uninterrupted one, of {ended}", ended)


@pytest.mark.promise("R3")
def test_twenty_kills_of_the_runner(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    ended = killed_editions(tmp_path, KILLS)
    record_property("runner of the chapters: kills", KILLS)
    record_property(f"runner of the chapters: runs that ended with the same edition, of {ended}", ended)


@pytest.mark.promise("R3")
def test_twenty_kills_of_a_training(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    killed_and_resumed(tmp_path, KILLS, record_property)
