"""The loss around the residual networks of the chapter `resnet_landscape`: planes through them, and their records.

Surfaces and curvature of the networks in `data/checkpoints` take hours; `make records CHAPTER=resnet_landscape` makes
what is missing, resumably, and the chapter computes a part of each record again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from descent.data.datasets import Dataset, load_dataset
from descent.experiments.cifar_resnets import PUBLISHED, Images, PublishedNetwork, first_images
from descent.landscape.directions import Direction, Scaling, random_direction
from descent.landscape.evaluator import Evaluator
from descent.landscape.shape import HessianExtremes
from descent.landscape.surface import loss_surface, plane_grid
from descent.models.flat_weights import flatten
from descent.models.published_weights import Checkpoint
from descent.repro.files import sha256_of_arrays
from descent.repro.machine import Precision
from descent.repro.records import Record, find_record, provenance, record_path
from descent.repro.sweeps import Sweep, sweep

IMAGES, CURVATURE_IMAGES = 64, 16  # of each surface, and of each Hessian
SIDES = {0: 25, 1: 13, 2: 13, 3: 13, 4: 13}  # of the surfaces: seed of the plane -> points a side
CURVATURE_SIDE = 5
SHARD_SIZES = {"surface": 13, "curvature": 1}  # points
SIGN_STRIDE = 101
REMAKE = "make records CHAPTER=resnet_landscape"


def plane_evaluator(
    checkpoint: Checkpoint, images: Images, seed: int, scaling: Scaling = "filter", precision: Precision = "auto"
) -> Evaluator:
    """The evaluator of the loss on a random plane through a trained network.

    Args:
        checkpoint: the network.
        images: standardised inputs `(n, c, h, w)` and targets `(n,)`.
        seed: decides both directions.
        scaling: see `descent.landscape.directions.rescale_direction`.
        precision: see `Evaluator`.
    """
    return Evaluator(checkpoint.model, *images, _plane(checkpoint, seed, scaling), precision=precision)


def plane_hessian_extremes(
    checkpoint: Checkpoint, images: Images, seed: int, scaling: Scaling = "filter"
) -> HessianExtremes:
    """The task that finds the extreme Hessian eigenvalues on the same plane; arguments as for `plane_evaluator`."""
    return HessianExtremes(checkpoint.model, *images, _plane(checkpoint, seed, scaling))


def _plane(checkpoint: Checkpoint, seed: int, scaling: Scaling) -> list[Direction]:
    return [random_direction(checkpoint.model, seed, stream, scaling) for stream in ("alpha", "beta")]


def plane_sources(
    checkpoint: Checkpoint, data: Dataset, images: int, seed: int, scaling: Scaling = "filter"
) -> dict[str, Any]:
    """What a record of a plane was made from, as the settings that it carries; the same on every machine.

    `seed`, `scaling` and `images`, the number of the first ones of the training set `data`, say what was asked for.
    Three SHA-256 say what that was: `weights_sha256` of the file of weights; `directions_sha256` of the signs of every
    `SIGN_STRIDE`-th number of both directions, whose last bits differ between processors; `images_sha256` of pixels,
    before they are standardised, and classes.
    """
    flat = (flatten(direction).numpy()[::SIGN_STRIDE] > 0 for direction in _plane(checkpoint, seed, scaling))
    pixels = {"inputs": data.inputs[:images].numpy(), "targets": data.targets[:images].numpy()}
    return {
        "seed": seed,
        "scaling": scaling,
        "images": images,
        "weights_sha256": checkpoint.sha256,
        "directions_sha256": sha256_of_arrays(dict(zip(("alpha", "beta"), flat, strict=True))),
        "images_sha256": sha256_of_arrays(pixels),
    }


def read_plane_record(path: Path, sources: Mapping[str, Any]) -> Record | None:
    """The record at `path`, made from these sources; None where there is none for this seed, scaling and count.

    Raises:
        ValueError: the file is damaged, or was made from other weights, directions or images.
    """
    asked = {name: sources[name] for name in ("seed", "scaling", "images")}
    return Record.load(path, REMAKE, **sources) if find_record(path, **asked) else None


def plane_record_path(root: Path, network: PublishedNetwork, kind: str, seed: int) -> Path:
    """Where the record of a plane lies in a project; `kind` is `surface` or `curvature`."""
    return record_path(root, "resnet_landscape", f"{network.name}-{kind}-{seed}")


def _kept_sweep(root: Path, name: str, kind: str, sources: Mapping[str, Any], scheduler: str) -> Sweep:
    """A sweep whose shards are kept; other weights, another plane or other images have another folder."""
    digest = hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:12]
    folder = root / "_build" / "sweeps" / f"{name}-{kind}-{digest}"
    return Sweep(scheduler, folder, SHARD_SIZES[kind], f"{name} {kind} {sources['seed']}")


def make_surface_record(network: PublishedNetwork, seed: int, root: Path, scheduler: str) -> None:
    """Make the record of one surface, in float32, unless it is there; its side is that of its seed in SIDES."""
    checkpoint, path = network.load(root), plane_record_path(root, network, "surface", seed)
    data = load_dataset("cifar10")
    sources = {**plane_sources(checkpoint, data, IMAGES, seed), "precision": "float32"}
    kept = find_record(path, **sources)
    if kept and len(kept.values["alpha"]) == SIDES[seed]:
        return
    evaluator = plane_evaluator(checkpoint, first_images(data, IMAGES), seed, precision="float32")
    how = _kept_sweep(root, network.name, "surface", sources, scheduler)

    def run(task: Evaluator, points: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return sweep(task, points, how, task.key())

    axis = np.linspace(-1, 1, SIDES[seed])
    surface = loss_surface(evaluator, axis, axis, run)
    surface.record(f"{network.name}-surface", sources, provenance(seed)).save(path)


def make_curvature_record(network: PublishedNetwork, seed: int, root: Path, scheduler: str) -> None:
    """Make the record of the extreme Hessian eigenvalues on a coarse grid, unless it is there."""
    checkpoint, path = network.load(root), plane_record_path(root, network, "curvature", seed)
    data = load_dataset("cifar10")
    sources = plane_sources(checkpoint, data, CURVATURE_IMAGES, seed)
    kept = find_record(path, **sources)
    if kept and len(kept.values["alpha"]) == CURVATURE_SIDE:
        return
    images, axis = first_images(data, CURVATURE_IMAGES), np.linspace(-1, 1, CURVATURE_SIDE)
    how = _kept_sweep(root, network.name, "curvature", sources, scheduler)
    exact = plane_evaluator(checkpoint, images, seed, precision="float32")  # on this machine; the sources hold on all
    columns = sweep(plane_hessian_extremes(checkpoint, images, seed), plane_grid(axis, axis), how, exact.key())
    squares = {name: column.reshape(len(axis), len(axis)) for name, column in columns.items()}
    values = {"alpha": axis, "beta": axis, **squares}
    Record(f"{network.name}-curvature", values, {**sources, "precision": "float32"}, provenance(seed)).save(path)


def make_resnet_landscape(root: Path, scheduler: str) -> None:
    """Make the records that are missing or belong to other weights."""
    for seed in SIDES:
        for network in PUBLISHED:
            if network.group != "second":
                make_surface_record(network, seed, root, scheduler)
    for network in PUBLISHED:
        if network.group == "":
            make_curvature_record(network, 0, root, scheduler)


CHAPTERS = {"resnet_landscape": make_resnet_landscape}
