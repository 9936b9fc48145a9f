"""The records of the chapter `resnet_landscape`: hours of surfaces and curvature, resumable, checked by the chapter.

`python -m descent.experiments.landscape_records` makes those that are missing from `data/records/resnet_landscape`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from descent.checkout import project_root
from descent.data.datasets import load_dataset, standardise
from descent.experiments.cifar_resnets import NETWORKS
from descent.landscape.directions import Scaling, random_direction
from descent.landscape.evaluator import Evaluator
from descent.landscape.shape import LineCurvature
from descent.landscape.surface import loss_surface, plane_grid
from descent.models.weights import Checkpoint, ResNetDescription, load_checkpoint
from descent.repro.machine import Precision
from descent.repro.records import Record, provenance
from descent.repro.sweeps import Sweep, sweep

CHAPTER = "resnet_landscape"
IMAGES = 64  # of each surface: hours on two cores
SIDES = {0: 51, 1: 25}  # the planes: seed -> points a side
CURVATURE_IMAGES, CURVATURE_SIDE = 16, 5
Images = tuple[Tensor, Tensor]


def plane_evaluator(
    checkpoint: Checkpoint,
    images: Images,
    seed: int,
    scaling: Scaling = "filter",
    precision: Precision = "auto",
) -> Evaluator:
    """The evaluator of a random plane through a trained network.

    Args:
        checkpoint: the network.
        images: standardised inputs `(n, c, h, w)` and targets `(n,)`.
        seed: decides both directions.
        scaling: see `descent.landscape.directions.rescale_direction`.
        precision: see `Evaluator`.
    """
    directions = [random_direction(checkpoint.model, seed, stream, scaling) for stream in ("alpha", "beta")]
    return Evaluator(checkpoint.model, *images, directions, precision=precision)


def plane_curvature(checkpoint: Checkpoint, images: Images, seed: int, scaling: Scaling = "filter") -> LineCurvature:
    """Extreme Hessian eigenvalues on the same plane; arguments as for `plane_evaluator`."""
    directions = [random_direction(checkpoint.model, seed, stream, scaling) for stream in ("alpha", "beta")]
    return LineCurvature(checkpoint.model, *images, directions)


def plane_record_key(checkpoint: Checkpoint, images: int, seed: int, scaling: Scaling = "filter") -> str:
    """What a record belongs to: a file of weights, a plane, a number of images; equal on every machine."""
    return f"{checkpoint.sha256} plane {seed} {scaling} first {images} images of cifar10"


def record_path(folder: Path, network: ResNetDescription, kind: str, seed: int) -> Path:
    """Where a record lies: `kind` is `loss_surface` or `plane_curvature`."""
    return folder / f"{network.name}-{kind}-{seed}.npz"


def find_record(folder: Path, network: ResNetDescription, kind: str, seed: int, key: str) -> Record | None:
    """A committed record, if there is one of exactly this network, plane and images: of this `plane_record_key`.

    Raises:
        ValueError: the file is damaged.
    """
    path = record_path(folder, network, kind, seed)
    record = Record.load(path) if path.is_file() else None
    return record if record is not None and record.settings.get("key") == key else None


def _shards(network: ResNetDescription, kind: str, key: str) -> str:
    """The folder of a sweep's shards: another one where weights, plane or images are other ones."""
    return f"{network.name}-{kind}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _square(side: int) -> NDArray[np.float64]:
    return np.linspace(-1, 1, side)


def make_surface(network: ResNetDescription, seed: int, folders: tuple[Path, Path, Path], scheduler: str) -> None:
    """One surface, its seed in SIDES; folders: of the weights, of the record that is made, of shards on the way."""
    images = first_images(IMAGES)
    checkpoint = load_checkpoint(folders[0], network)
    evaluator, key = plane_evaluator(checkpoint, images, seed), plane_record_key(checkpoint, IMAGES, seed)
    how = Sweep(scheduler, folders[2] / _shards(network, "surface", key), 51, f"{network.name} surface")

    def run(task: Evaluator, points: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return sweep(task, points, how, f"{task.key()} {task.precision}")

    axis = _square(SIDES[seed])
    found = loss_surface(evaluator, axis, axis, run)
    record = found.record(f"{network.name}-surface", {"key": key, "seed": seed, "scaling": "filter"}, provenance(seed))
    record.save(record_path(folders[1], network, "surface", seed))


def make_curvature(network: ResNetDescription, seed: int, folders: tuple[Path, Path, Path], scheduler: str) -> None:
    """Extreme eigenvalues on a coarse grid; arguments as for `make_surface`."""
    images = first_images(CURVATURE_IMAGES)
    checkpoint = load_checkpoint(folders[0], network)
    axis = _square(CURVATURE_SIDE)
    key = plane_record_key(checkpoint, CURVATURE_IMAGES, seed)
    how = Sweep(scheduler, folders[2] / _shards(network, "curvature", key), 1, f"{network.name} curvature")
    exact = plane_evaluator(checkpoint, images, seed).key()  # on this machine; the record's key holds on all
    values = sweep(plane_curvature(checkpoint, images, seed), plane_grid(axis, axis), how, exact)
    shaped = {name: part.reshape(len(axis), len(axis)) for name, part in values.items()}
    settings = {"key": key, "seed": seed, "scaling": "filter", "images": CURVATURE_IMAGES, "precision": "float32"}
    values = {"alpha": axis, "beta": axis, **shaped}
    record = Record(f"{network.name}-curvature", values, settings, provenance(seed))
    record.save(record_path(folders[1], network, "curvature", seed))


def first_images(count: int) -> Images:
    """The first training images, standardised: a random sample, for they come in the order of their SHA-256."""
    data = load_dataset("cifar10")
    return standardise(data)[:count].clone(), data.targets[:count].clone()


MAKERS: dict[str, Callable[[ResNetDescription, int, tuple[Path, Path, Path], str], None]] = {
    "surface": make_surface,
    "curvature": make_curvature,
}


def is_made(network: ResNetDescription, kind: str, seed: int, folders: tuple[Path, Path, Path]) -> bool:
    """Whether the record is there and belongs to the weights that are there; arguments as for `make_surface`."""
    count = IMAGES if kind == "surface" else CURVATURE_IMAGES
    key = plane_record_key(load_checkpoint(folders[0], network), count, seed)
    return find_record(folders[1], network, kind, seed, key) is not None


def main(arguments: list[str]) -> None:
    """Make the records that are not there yet, or are of other weights; a killed run goes on where it was."""
    root = project_root()
    parser = argparse.ArgumentParser(prog="python -m descent.experiments.landscape_records", description=main.__doc__)
    parser.add_argument("--kind", choices=list(MAKERS), help="only these")
    parser.add_argument("--network", help="only this one, such as resnet56-noshort")
    parser.add_argument("--scheduler", default="", help='a Dask cluster\'s "tcp://host:port"')
    given = parser.parse_args(arguments)
    folders = (root / "data" / "checkpoints", root / "data" / "records" / CHAPTER, root / "_build" / "sweeps")
    # the surfaces of the small networks the chapter computes itself
    every = [(kind, n) for kind in MAKERS for n in NETWORKS if kind == "curvature" or n.depth > 20]
    names = [network.name for network in NETWORKS]
    if given.network and given.network not in names:
        parser.error(f"network={given.network!r}: expected one of {', '.join(names)}")
    wanted = [(k, n) for k, n in every if given.kind in (None, k) and given.network in (None, n.name)]
    if not wanted:
        parser.error(f"network={given.network!r} has no record of kind={given.kind!r}: the chapter computes it")
    for kind, network in wanted:
        for seed in SIDES if kind == "surface" else (0,):
            if not is_made(network, kind, seed, folders):
                MAKERS[kind](network, seed, folders, given.scheduler)


if __name__ == "__main__":
    main(sys.argv[1:])
