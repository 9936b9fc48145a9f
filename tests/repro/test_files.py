"""A folder is written by one run at a time, and a second is refused by name."""

import errno
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from damage import SMALL, square, trained
from small_networks import settle
from small_runs import newest_checkpoint, record
from sweep_tasks import POINTS

from descent.models.published_weights import DIGESTS, load_checkpoint, save_checkpoint
from descent.repro import files
from descent.repro.files import InUseError, exclusive_folder
from descent.repro.records import Record
from descent.repro.sweeps import Sweep, sweep
from descent.training import DamagedCheckpointError
from descent.training.capture import open_stack

REFUSED = "{}: another run is writing there; wait until it has ended, or name another folder"


@pytest.mark.promise("R3")
def test_a_second_run_is_refused_while_the_first_lasts(tmp_path: Path) -> None:
    calls = {
        "training": lambda: trained(tmp_path, 5),
        "sweep": lambda: sweep(square, POINTS, Sweep(folder=tmp_path, workers=1), "k"),
        "capture": lambda: record(tmp_path, 2),
    }
    with exclusive_folder(tmp_path):
        for call in calls.values():
            with pytest.raises(InUseError, match=REFUSED.format(tmp_path)):
                call()
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    for call in calls.values():
        call()


def hold(folder: Path, ready: object) -> None:
    with exclusive_folder(folder):
        ready.set()
        multiprocessing.Event().wait()


@pytest.mark.promise("R3")
def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(120)
    with pytest.raises(InUseError), exclusive_folder(tmp_path):
        pass
    holder.kill()
    holder.join()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with exclusive_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.promise("R4")
def test_every_bit_of_a_gradient_store_is_watched(tmp_path: Path) -> None:
    record(tmp_path / "store", 4)
    files = [path for path in (tmp_path / "store").iterdir() if path.suffix != ".json"]
    assert {path.name for path in files} == {"rows.f32", "steps.i64", "sums.u32"}
    for path in files:
        whole = path.read_bytes()
        for bit in np.random.default_rng(0).integers(0, 8 * len(whole), 50):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"{tmp_path}/store is damaged: row \d is not what was written"):
                open_stack(tmp_path / "store")
        path.write_bytes(whole)
    layout = tmp_path / "store" / "layout.json"
    layout.write_text(layout.read_text()[:20])
    with pytest.raises(ValueError, match=rf"{layout} is damaged .*; record anew: rm -r"):
        open_stack(tmp_path / "store")


@pytest.mark.promise("R4")
def test_every_bit_of_a_record_is_watched(tmp_path: Path) -> None:
    path, values = tmp_path / "r.npz", {"a": np.arange(3.0), "b": np.arange(2), "c": np.ones(2)}
    Record("r", values, {"k": 1}).save(path)
    whole, refused = path.read_bytes(), 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = Record.load(path)
        except ValueError:
            refused += 1
            continue
        assert {name: value.tobytes() for name, value in found.values.items()} == {
            name: value.tobytes() for name, value in values.items()
        }
        assert (found.name, found.settings) == ("r", {"k": 1})
    assert refused > 4 * len(whole)


@pytest.mark.promise("R4")
def test_damaged_lists_of_digests_are_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, SMALL, settle(SMALL.build()), {})
    (tmp_path / DIGESTS).write_bytes((tmp_path / DIGESTS).read_bytes()[:10] + b"\xff")
    with pytest.raises(ValueError, match=rf"{tmp_path / DIGESTS} is damaged .*; restore it: git checkout"):
        load_checkpoint(tmp_path, SMALL)
    trained(tmp_path / "run", 5)
    _, path = newest_checkpoint(tmp_path / "run")
    path.with_suffix(".pt.sha256").write_bytes(b"\xff\n")
    with pytest.raises(DamagedCheckpointError, match=f"{path} is damaged"):
        trained(tmp_path / "run", 10)


@pytest.mark.parametrize("number", sorted(files.NO_LOCKS))
def test_a_file_system_without_locks_keeps_nobody_from_writing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "not here")

    monkeypatch.setattr("fcntl.flock", refuse)
    with files.exclusive_folder(tmp_path / "folder"):
        (tmp_path / "folder" / "file").write_text("written")


def test_any_other_fault_of_a_lock_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(OSError, match="broken"), files.exclusive_folder(tmp_path):
        pass
