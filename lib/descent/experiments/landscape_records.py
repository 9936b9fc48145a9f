"""The records of the chapter `resnet_landscape`: hours of surfaces and curvature, which the chapter checks in part."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from descent.data.datasets import load_dataset, standardise
from descent.experiments.cifar_resnets import NETWORKS
from descent.landscape.directions import Scaling, random_direction
from descent.landscape.evaluator import Evaluator
from descent.landscape.shape import LineCurvature
from descent.landscape.surface import loss_surface, plane_grid
from descent.models.published_weights import Checkpoint, ResNetDescription, load_checkpoint
from descent.repro.machine import Precision
from descent.repro.records import Record, find_record, provenance, record_path
from descent.repro.sweeps import Sweep, sweep

IMAGES = 64  # of each surface: hours on two cores
SIDES = {0: 51, 1: 25}  # of the planes: seed -> points a side
CURVATURE_IMAGES, CURVATURE_SIDE = 16, 5
SHARD_SIZES = {"surface": 51, "curvature": 1}  # points
Images = tuple[Tensor, Tensor]


def plane_evaluator(
    checkpoint: Checkpoint,
    images: Images,
    seed: int,
    scaling: Scaling = "filter",
    precision: Precision = "auto",
) -> Evaluator:
    """The evaluator of the loss on a random plane through a trained network.

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
    """The task that finds the extreme Hessian eigenvalues on the same plane; arguments as for `plane_evaluator`."""
    directions = [random_direction(checkpoint.model, seed, stream, scaling) for stream in ("alpha", "beta")]
    return LineCurvature(checkpoint.model, *images, directions)


def plane_record_key(checkpoint: Checkpoint, images: int, seed: int, scaling: Scaling = "filter") -> str:
    """What a record belongs to: a file of weights, a plane and a number of images; the same text on every machine."""
    return f"{checkpoint.sha256} plane {seed} {scaling} first {images} images of cifar10"


def plane_record_path(root: Path, network: ResNetDescription, kind: str, seed: int) -> Path:
    """Where the record of a plane lies in a project; `kind` is `surface` or `curvature`."""
    return record_path(root, "resnet_landscape", f"{network.name}-{kind}-{seed}")


def first_images(count: int) -> Images:
    """The first training images of CIFAR-10, standardised: a random sample, as they are sorted by their SHA-256."""
    data = load_dataset("cifar10")
    return standardise(data)[:count].clone(), data.targets[:count].clone()


def _checkpoint(root: Path, network: ResNetDescription) -> Checkpoint:
    return load_checkpoint(root / "data" / "checkpoints", network)


def _kept_sweep(root: Path, network: ResNetDescription, kind: str, key: str, scheduler: str) -> Sweep:
    """A sweep whose shards are kept; other weights, another plane or number of images have another folder."""
    folder = root / "_build" / "sweeps" / f"{network.name}-{kind}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    return Sweep(scheduler, folder, SHARD_SIZES[kind], f"{network.name} {kind}")


def make_surface_record(network: ResNetDescription, seed: int, root: Path, scheduler: str) -> None:
    """Make the record of one surface unless it is there; its side is that of its seed in SIDES."""
    checkpoint, path = _checkpoint(root, network), plane_record_path(root, network, "surface", seed)
    key = plane_record_key(checkpoint, IMAGES, seed)
    if find_record(path, key=key):
        return
    evaluator = plane_evaluator(checkpoint, first_images(IMAGES), seed)
    how = _kept_sweep(root, network, "surface", key, scheduler)

    def run(task: Evaluator, points: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return sweep(task, points, how, f"{task.key()} {task.precision}")

    axis = np.linspace(-1, 1, SIDES[seed])
    surface = loss_surface(evaluator, axis, axis, run)
    settings = {"key": key, "seed": seed, "scaling": "filter"}
    surface.record(f"{network.name}-surface", settings, provenance(seed)).save(path)


def make_curvature_record(network: ResNetDescription, seed: int, root: Path, scheduler: str) -> None:
    """Make the record of the extreme Hessian eigenvalues on a coarse grid, unless it is there."""
    checkpoint, path = _checkpoint(root, network), plane_record_path(root, network, "curvature", seed)
    key = plane_record_key(checkpoint, CURVATURE_IMAGES, seed)
    if find_record(path, key=key):
        return
    images, axis = first_images(CURVATURE_IMAGES), np.linspace(-1, 1, CURVATURE_SIDE)
    how = _kept_sweep(root, network, "curvature", key, scheduler)
    exact = plane_evaluator(checkpoint, images, seed).key()  # on this machine; the record's key holds on all
    columns = sweep(plane_curvature(checkpoint, images, seed), plane_grid(axis, axis), how, exact)
    squares = {name: column.reshape(len(axis), len(axis)) for name, column in columns.items()}
    values = {"alpha": axis, "beta": axis, **squares}
    settings = {"key": key, "seed": seed, "scaling": "filter", "images": CURVATURE_IMAGES, "precision": "float32"}
    Record(f"{network.name}-curvature", values, settings, provenance(seed)).save(path)


def make_resnet_landscape(root: Path, scheduler: str) -> None:
    """Make the records that are missing or belong to other weights; the chapter computes small surfaces itself."""
    for network in NETWORKS:
        if network.depth > 20:
            for seed in SIDES:
                make_surface_record(network, seed, root, scheduler)
    for network in NETWORKS:
        make_curvature_record(network, 0, root, scheduler)


CHAPTERS = {"resnet_landscape": make_resnet_landscape}
