"""A full disk, or one that may only be read: a clear error, and nothing that was whole before is touched."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cifar_samples
import idx_samples
import numpy as np
import pytest
import torch
from disks import filled, mounted, remount
from small_project import command, edition, environment, read, write_project
from small_runs import newest_checkpoint
from torch import nn

from descent.data import datasets
from descent.data.fetching import MissingDataError, read_cifar, read_idx
from descent.repro.files import sha256_of
from descent.repro.records import Record
from descent.repro.sweeps import Sweep, sweep
from descent.training.capture import CapturePlan, GradientRecorder, open_stack
from descent.training.loop import MiniBatches, TrainingPlan, batch_cross_entropy, fit

SIZES = (40, 60)  # layers that a training state of 60 kB comes from


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """One of a megabyte."""
    with mounted(tmp_path / "disk", "1m") as folder:
        yield folder


def whole(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


def run(folder: Path, steps: int, capture: bool = False) -> bytes:
    """Train on from the newest state in the folder; the final weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIZES[0], SIZES[1]), nn.Tanh(), nn.Linear(SIZES[1], 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batches = MiniBatches((torch.linspace(-1, 1, 50 * SIZES[0]).view(50, -1), torch.arange(50) % 3), 8, 0)
    if capture:
        with GradientRecorder(model, optimizer, CapturePlan(range(steps)), folder / "rows"):
            fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(steps))
    else:
        fit(
            model, batch_cross_entropy, batches, optimizer, TrainingPlan(steps, None, (), folder / "states", 10, "disk")
        )
    return b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())


@pytest.mark.promise("R4")
def test_recording_on_a_full_disk_stops_by_name_and_the_rows_written_are_right(disk: Path, tmp_path: Path) -> None:
    (disk / "earlier").write_bytes(b"result")
    with pytest.raises(OSError, match=f"{disk}/rows: recording stopped: .*(disk full|No space left)"):
        run(disk, 400, capture=True)  # 400 rows of 10 kB
    run(tmp_path / "large", 400, capture=True)
    stack, expected = open_stack(disk / "rows"), open_stack(tmp_path / "large" / "rows")
    assert 0 < len(stack.rows) < 400
    assert np.array_equal(stack.rows, expected.rows[: len(stack.rows)])
    assert (disk / "earlier").read_bytes() == b"result"


@pytest.mark.promise("R4")
def test_training_on_a_full_disk_keeps_its_last_state_and_goes_on_from_it(disk: Path, tmp_path: Path) -> None:
    run(disk, 30)
    before = whole(disk)
    filler = filled(disk, 16_384)
    with pytest.raises(OSError, match=r"[Nn]o space left|disk full"):
        run(disk, 60)
    filler.unlink()
    now = whole(disk)
    assert {name: now.get(name) for name in before} == before
    assert {name for name in now if name.endswith(".pt")} == {name for name in before if name.endswith(".pt")}
    assert not list(disk.rglob("*.tmp*"))
    assert newest_checkpoint(disk / "states")[0] == 30
    assert run(disk, 60) == run(tmp_path / "large", 60)


def wide(points: np.ndarray) -> dict[str, np.ndarray]:
    return {"wide": np.repeat(points, 4000, axis=1)}


@pytest.mark.promise("R4")
def test_a_sweep_on_a_full_disk_keeps_its_shards_and_goes_on(disk: Path) -> None:
    points = np.arange(40.0)[:, None]
    how = Sweep(folder=disk / "shards", shard_size=2, workers=1)  # twenty of 64 kB
    with pytest.raises(OSError, match=r"[Nn]o space left|disk full|requested and \d+ written"):
        sweep(wide, points, how, "k")
    there = whole(disk)
    assert 5 < len(there) < 20
    assert not [name for name in there if "tmp" in name]
    for name in there:
        Record.load(disk / name)
    remount(disk, "size=4m")
    assert np.array_equal(sweep(wide, points, how, "k")["wide"], wide(points)["wide"])
    assert {name: digest for name, digest in whole(disk).items() if name in there} == there


LARGE = """import numpy
if settings.results_dir:
    numpy.save(Path(settings.results_dir, "large.npy"), numpy.zeros(100_000))"""


@pytest.mark.promise("R4")
def test_an_edition_on_a_full_disk_is_a_failure_and_the_one_of_before_stays(disk: Path) -> None:
    root = write_project(disk / "p", first=LARGE)
    (results := root / "_build/editions/quick/results/first").mkdir(parents=True)
    (root / "_build/editions/quick/first.ipynb").write_text("{}")
    for name in ("claims.json", "large.npy"):
        (results / name).write_text(f"{name} of before")
    before = whole(root)
    filler = filled(disk, 200_000)
    status, said, _ = edition(root, "run")
    filler.unlink()
    assert status == 1, said
    assert "FAILED first, " in said
    assert f"not kept, No space left on device: {root}/_build/editions/quick and {results} are as they were" in said
    assert "Traceback" not in said
    assert {name: digest for name, digest in whole(root).items() if name in before} == before
    assert not list(root.rglob("*.tmp*"))
    remount(disk, "size=4m")
    status, said, _ = edition(root, "run")
    assert status == 0, said
    assert sorted(path.name for path in results.iterdir()) == ["claims.json", "large.npy"]
    assert read(results / "claims.json")["chapter"] == "first"


# ------------------------------------------------------------------------------------------------------------ read only


@pytest.fixture
def data(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, still writable."""
    monkeypatch.setenv("DESCENT_DATA", str(disk))
    return disk


@pytest.mark.promise("R4")
def test_data_in_a_folder_that_is_read_only_is_read(data: Path) -> None:
    (data / "tiny").mkdir()
    for name, content in idx_samples.PACKED.items():
        (data / "tiny" / f"{name}.gz").write_bytes(content)
    (data / cifar_samples.FOLDER).mkdir()
    for name, content in cifar_samples.CONTENT.items():
        (data / cifar_samples.FOLDER / name).write_bytes(content)
    remount(data, "ro")
    for name, array in idx_samples.ARRAYS.items():
        assert np.array_equal(read_idx(idx_samples.LOCAL, name), array)
    for split, records in cifar_samples.WHOLE.items():
        assert np.array_equal(read_cifar(cifar_samples.LOCAL, split), records)


@pytest.mark.promise("R4")
@pytest.mark.parametrize("fetch", ["idx", "cifar"])
def test_nothing_is_fetched_into_a_folder_that_is_read_only(
    data: Path, monkeypatch: pytest.MonkeyPatch, fetch: str
) -> None:
    remount(data, "ro")
    monkeypatch.setattr("descent.data.fetching.download", lambda url, path: path.write_bytes(b""))
    monkeypatch.setenv("DESCENT_TINY_MIRRORS", "http://127.0.0.1:9/a")
    reads = {
        "idx": partial(read_idx, idx_samples.LOCAL, idx_samples.IMAGES),
        "cifar": partial(read_cifar, cifar_samples.LOCAL, "train"),
    }
    with pytest.raises(MissingDataError) as caught:
        reads[fetch]()
    message = str(caught.value)
    assert "Read-only file system" in message
    assert str(data) in message
    assert "to do without: put " in message


OTHER = "import os, sys\nos.setgid(65534), os.setuid(65534)\n"
# imported before, since the other user may not enter the folder of this Python
USER = f"""import descent.data.fetching
from descent.data.datasets import main
{OTHER}sys.argv = ["descent.data.datasets", "mnist"]
main(["mnist"])"""


@pytest.mark.promise("R4")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_users_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        data.chmod(0o755)
        for folder in data.parents:
            if not folder.stat().st_mode & 0o001 | folder.stat().st_mode & 0o004:
                pytest.skip(f"another user cannot enter {folder}")
        refused_to_another_user(data)


def refused_to_another_user(data: Path) -> None:
    variables = {**os.environ, "DESCENT_MNIST_MIRRORS": "http://127.0.0.1:9/a", "PYTHONDONTWRITEBYTECODE": "1"}
    variables |= {"DESCENT_DATA": str(data), "PYTHONPATH": str(Path(datasets.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", USER], env=variables, capture_output=True, text=True, cwd="/")
    assert done.returncode == 1, done.stderr
    assert "Permission denied" in done.stderr
    assert str(data) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.promise("R4")
def test_an_edition_in_a_folder_that_is_read_only_says_so(disk: Path) -> None:
    root = write_project(disk / "p", first="1")
    remount(disk, "ro")
    done = subprocess.run(command(root, "run"), env=environment(), cwd="/", capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Read-only file system" in said
    assert str(root) in said
    assert "Traceback" not in said
