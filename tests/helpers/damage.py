"""Files cut short or with one bit turned, and what comes of reading them, for `test_damage` and its audit.

Every kind is read by the function that the library itself uses. A reader may refuse a damaged file, by an error that
names it and says what to do; or it may give exactly what was in the file, where the damage touched nothing of it or
the file was only a cache. Anything else fails.
"""

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cifar_samples
import idx_samples
import numpy as np
import torch
from small_networks import settle
from small_project import CLAIM
from small_runs import newest_checkpoint
from sweep_tasks import POINTS
from torch import nn

from descent.data.fetching import DamagedDataError, read_cifar, read_idx
from descent.models.published_weights import ResNetDescription, load_checkpoint, save_checkpoint
from descent.repro.files import write_json
from descent.repro.records import Record
from descent.repro.sweeps import Sweep, sweep
from descent.training import DamagedCheckpointError, MiniBatches, TrainingPlan, batch_cross_entropy, fit
from descent_book.run.notebook import read_executed, seal
from descent_book.run.scorecard import ChapterResult

SMALL = ResNetDescription(8, "projection", width=4)


@dataclass(frozen=True)
class Kind:
    """A file that is read: how, which error a reader may raise, and what that error must say besides the name."""

    path: Path
    read: Callable[[], object]
    error: type[Exception]
    remedy: str


class Count(NamedTuple):
    refused: int
    unharmed: int


def idx(folder: Path, packed: bool) -> Kind:
    name = idx_samples.IMAGES
    path = folder / "tiny" / (f"{name}.gz" if packed else name)
    path.parent.mkdir()
    content = idx_samples.CONTENT[name]
    path.write_bytes(gzip.compress(content, 6, mtime=0) if packed else content)
    return Kind(path, lambda: read_idx(idx_samples.LOCAL, name).tobytes(), DamagedDataError, "to mend it: rm ")


def cifar_file(folder: Path) -> Kind:
    place = folder / cifar_samples.FOLDER
    place.mkdir()
    for name, content in cifar_samples.CONTENT.items():
        (place / name).write_bytes(content)
    path = place / "data_batch_3.bin"
    return Kind(path, lambda: read_cifar(cifar_samples.LOCAL, "train").tobytes(), DamagedDataError, "to mend it: rm ")


def cifar_archive(folder: Path) -> Kind:
    path = folder / cifar_samples.ARCHIVE
    path.write_bytes(cifar_samples.PACKED)

    def read() -> bytes:
        shutil.rmtree(folder / cifar_samples.FOLDER, ignore_errors=True)
        try:
            return read_cifar(cifar_samples.LOCAL, "train").tobytes()
        except DamagedDataError:
            assert not list(folder.glob(f"{cifar_samples.FOLDER}/*")), "a part of a damaged archive was kept"
            raise

    return Kind(path, read, DamagedDataError, "to mend it: rm ")


def checkpoint(folder: Path) -> Kind:
    path = save_checkpoint(folder, SMALL, settle(SMALL.build()), {"test_error": 0.5})

    def read() -> object:
        found = load_checkpoint(folder, SMALL)
        return found.about, {name: tensor.numpy().tobytes() for name, tensor in found.model.state_dict().items()}

    return Kind(path, read, ValueError, "restore it: git checkout ")


def record(folder: Path) -> Kind:
    path, generator = folder / "record.npz", np.random.default_rng(0)
    values = {"loss": generator.normal(size=(17, 23)), "steps": np.arange(40), "large": generator.normal(size=9000)}
    Record("r", values, {"seed": 1}, {"torch": "2"}).save(path)

    def read() -> object:
        found = Record.load(path)
        arrays = {name: (value.dtype.str, value.shape, value.tobytes()) for name, value in found.values.items()}
        return found.name, found.settings, found.provenance, arrays

    return Kind(path, read, ValueError, "make it again")


def trained(folder: Path, steps: int) -> dict[str, bytes]:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    batches = MiniBatches((torch.linspace(-1, 1, 300).view(50, 6), torch.arange(50) % 3), 8, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(steps, None, (), folder, 5, "damage"))
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def training_state(folder: Path) -> Kind:
    trained(folder, 10)
    _, path = newest_checkpoint(folder)
    assert path is not None
    return Kind(path, lambda: trained(folder, 10), DamagedCheckpointError, f"to start again from step 0: rm '{path}'")


def square(points: np.ndarray) -> dict[str, np.ndarray]:
    return {"square": (points**2).sum(1), "points": points}


def shard(folder: Path) -> Kind:
    """Only a cache: a damaged one is computed again, so the error is one that never comes."""
    how = Sweep(folder=folder, shard_size=8, workers=1)

    def read() -> object:
        return {name: value.tobytes() for name, value in sweep(square, POINTS, how, "k").items()}

    read()
    return Kind(folder / "shard-00001.npz", read, NeverError, "")


class NeverError(Exception):
    """Raised by nothing."""


def executed(folder: Path) -> Kind:
    """An executed chapter: what the build reads its claims, figures and scorecard from."""
    noted = {
        "key": "k",
        "preset": "quick",
        "seconds": 3.0,
        "claims": [CLAIM],
        "provenance": {"torch": "2"},
    }
    output = {"output_type": "stream", "name": "stdout", "text": [f"{number}\n" for number in range(200)]}
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": ["1"], "outputs": [output], "execution_count": 1}
    path = folder / "first.ipynb"
    write_json(path, seal({"cells": [cell], "metadata": {"descent": noted}, "nbformat": 4, "nbformat_minor": 5}))

    def read() -> object:
        result = ChapterResult.of(path)
        return result and result.model_dump(), read_executed(path)

    return Kind(path, read, ValueError, "make it again")


KINDS: dict[str, Callable[[Path], Kind]] = {
    "IDX file, gzip": lambda folder: idx(folder, packed=True),
    "IDX file, unpacked": lambda folder: idx(folder, packed=False),
    "CIFAR-10 file": cifar_file,
    "CIFAR-10 archive": cifar_archive,
    "weights (safetensors)": checkpoint,
    "record (npz)": record,
    "training state": training_state,
    "shard of a sweep": shard,
    "executed chapter (claims)": executed,
}


def truncations(whole: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    for length in np.random.default_rng(11).integers(0, len(whole), count):
        yield f"cut to {length} of {len(whole)} bytes", whole[:length]


def flips(whole: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    for bit in np.random.default_rng(12).integers(0, 8 * len(whole), count):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit % 8} of byte {bit // 8} turned", bytes(damaged)


def outcomes(kind: Kind, damage: Callable[[bytes, int], Iterator[tuple[str, bytes]]], count: int) -> Count:
    """Damage the file `count` times, read it each time, and put it back."""
    whole, expected = kind.path.read_bytes(), plain(kind.read())
    refused = 0
    for what, damaged in damage(whole, count):
        kind.path.write_bytes(damaged)
        try:
            found = kind.read()
        except kind.error as error:
            refused += 1
            kind.path.write_bytes(whole)
            message = str(error)
            assert str(kind.path) in message, f"{what}: the file is not named: {message}"
            assert kind.remedy in message, f"{what}: it is not said what to do: {message}"
        else:
            kind.path.write_bytes(whole)
            assert plain(found) == expected, f"{kind.path.name}, {what}: other content was read and used"
    return Count(refused, count - refused)


def plain(found: object) -> Any:
    return json.dumps(found, sort_keys=True, default=lambda value: value.hex() if isinstance(value, bytes) else value)
