"""The residual networks of the chapter `resnet_landscape`: their training on CIFAR-10, and the records of their loss.

A one-cycle schedule trains a network in some hours on two cores; `python -m descent.experiments.cifar_resnets` trains
the six that are missing from `data/checkpoints`, each resumably. Surfaces and curvature around them take hours, too;
the chapter checks their records in part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from descent.checkout import project_root
from descent.data.datasets import Dataset, load_dataset, standardise
from descent.landscape.directions import Direction, Scaling, random_direction, weight_matrices
from descent.landscape.evaluator import Evaluator
from descent.landscape.shape import HessianExtremes
from descent.landscape.surface import loss_surface, plane_grid
from descent.models.flat_weights import flatten
from descent.models.image_networks import set_gates
from descent.models.published_weights import (
    Checkpoint,
    ResNetDescription,
    load_checkpoint,
    path_file,
    round_to_float16,
    save_checkpoint,
)
from descent.repro.files import sha256_of_arrays
from descent.repro.machine import Precision, autocast, compute_device, has_bfloat16
from descent.repro.records import Record, find_record, provenance, record_path
from descent.repro.seeding import torch_generator
from descent.repro.sweeps import Sweep, sweep
from descent.spectra.trajectory import trajectory_plane
from descent.training.capture import CapturePlan, GradientRecorder
from descent.training.loop import Batch, MiniBatches, TrainingPlan, fit

FEWEST_STEPS = 10  # OneCycleLR divides by zero where its rise is one step long
# oneDNN's weight gradient of a strided 1 x 1 convolution in channels-last order writes past its memory where the input
# has fewer channels than a vector register has numbers: 8 with AVX2, 16 with AVX-512 (uxlfoundation/oneDNN, issue 6035)
SAFE_CHANNELS = 16
CHECKPOINTS = Path("data", "checkpoints")  # of a project
DEPTHS = (110, 56, 20)  # the longest trainings first
PLANE_LIMIT = 1_000_000  # weights; the plane of a larger network would take more of the repository than its weights
NETWORKS = tuple(ResNetDescription(depth, shortcuts) for depth in DEPTHS for shortcuts in ("projection", "none"))
IMAGES, CURVATURE_IMAGES = 64, 16  # of each surface, and of each Hessian
SIDES = {0: 51, 1: 25}  # of the surfaces: seed of the plane -> points a side
CURVATURE_SIDE = 5
SHARD_SIZES = {"surface": 51, "curvature": 1}  # points
SIGN_STRIDE = 101
REMAKE = "make records CHAPTER=resnet_landscape"
Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ResNetSchedule:
    """The settings of one training; those of Li et al. 2018 where a comment does not say otherwise.

    Attributes:
        epochs: passes over the training set (Li et al.: 300).
        small_epochs: how many of these, the first, use images averaged to half their side, at a quarter of the cost.
        fade: share of the steps over which the shortcuts of a network that is to have none are taken away.
        peak: highest learning rate of the cycle, for a loss that is a mean per example.
        batch_size: examples per step.
        momentum: that of Nesterov's method.
        weight_decay: that of SGD, on all parameters.
        seed: decides weights, order and augmentation.
        snapshots: number of weight vectors kept along the way.
        dataset: a name that `descent.data.datasets.load_dataset` knows.
        shift: pixels by which an image is shifted at most in each direction.
        mirror: whether every second image is mirrored.
        precision: `auto` is bfloat16 where the machine multiplies in it, else float32.
    """

    epochs: int = 10
    small_epochs: int = 8
    fade: float = 0.5
    peak: float = 0.1
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    snapshots: int = 40
    dataset: str = "cifar10"
    shift: int = 4
    mirror: bool = True
    precision: str = "auto"

    @classmethod
    def of(cls, network: ResNetDescription, **options: Any) -> ResNetSchedule:
        """The book's schedule for a network: without shortcuts half the peak, as in Li et al. 2018."""
        return cls(**{"peak": 0.05 if network.shortcuts == "none" else 0.1, **options})


def augment_images(images: Tensor, generator: torch.Generator, shift: int = 4, mirror: bool = True) -> Tensor:
    """Shift each image by up to `shift` pixels, filling with zeros, and mirror about every second one.

    `(n, c, h, w) -> (n, c, h, w)`.
    """
    count, channels, height, width = images.shape
    places = 2 * shift + 1
    rows, columns = (torch.randint(places, (count, 1), generator=generator) + torch.arange(n) for n in (height, width))
    mirrored = (torch.rand(count, generator=generator) < 0.5) & mirror
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = nn.functional.pad(images, (shift,) * 4)
    each, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return padded[each, channel, rows[:, None, :, None], columns[:, None, None, :]]


def memory_format(model: nn.Module) -> torch.memory_format:
    """Channels last, which is faster, unless a strided 1 x 1 convolution has fewer inputs than `SAFE_CHANNELS`."""
    short = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    narrow = any(max(layer.stride) > 1 and layer.in_channels < SAFE_CHANNELS for layer in short)
    return torch.contiguous_format if narrow else torch.channels_last


class AugmentedBatches:
    """The batch of a step: augmented images, their targets, and the weight of the shortcuts, `(1,)`.

    Args:
        data: the training set.
        schedule: decides sizes, order and augmentation.
        fading: whether the weight of the shortcuts falls to zero, as `ResNetSchedule.fade` says; otherwise it is one.
        device: where the batches are needed.
    """

    layout = torch.channels_last

    def __init__(self, data: Dataset, schedule: ResNetSchedule, fading: bool, device: torch.device) -> None:
        self._images, self._device, self._schedule = standardise(data), device, schedule
        self._index = MiniBatches((torch.arange(len(data)), data.targets), schedule.batch_size, schedule.seed)
        self.steps = schedule.epochs * self._index.per_epoch
        self._small = schedule.small_epochs * self._index.per_epoch
        self._fading = schedule.fade * self.steps if fading else None

    def __call__(self, step: int) -> Batch:
        """`(b, 3, h, w)` float32, `(b,)` int64, `(1,)`; a function of the step alone."""
        index, targets = self._index(step)
        schedule = self._schedule
        generator = torch_generator(schedule.seed, f"augmentation {step}")
        images = augment_images(self._images[index], generator, schedule.shift, schedule.mirror)
        if step < self._small:
            images = nn.functional.avg_pool2d(images, 2)
        images = images.contiguous(memory_format=self.layout)
        return images.to(self._device), targets.to(self._device), torch.tensor([self._gate(step)])

    def _gate(self, step: int) -> float:
        if self._fading is None:
            return 1.0
        return max(0.0, 1 - step / self._fading) if self._fading else 0.0


def faded_cross_entropy(model: nn.Module, batch: Batch, precision: str = "auto") -> Tensor:
    """Cross-entropy in nats, mean per example, with the shortcuts weighted by the third part of the batch."""
    images, targets, gate = batch
    set_gates(model, float(gate))
    with autocast(images.device, precision):
        logits = model(images)
    return nn.functional.cross_entropy(logits.float(), targets)


def error_rate(model: nn.Module, data: Dataset, reference: Dataset, precision: str = "auto") -> float:
    """The share of misclassified images in evaluation mode; `reference`, the train split, standardises their pixels.

    An image with a logit that is NaN counts as misclassified.
    """
    device = next(model.parameters()).device
    images, wrong, training = standardise(data, reference), 0, model.training
    model.eval()
    with torch.inference_mode(), autocast(device, precision):
        for start in range(0, len(data), 500):
            part = images[start : start + 500].to(device).contiguous(memory_format=torch.channels_last)
            logits = model(part).cpu()
            wrong += int(((logits.argmax(1) != data.targets[start : start + 500]) | logits.isnan().any(1)).sum())
    model.train(training)
    return wrong / len(data)


def train_resnet(
    network: ResNetDescription,
    folder: Path,
    schedule: ResNetSchedule,
    read: Callable[..., Dataset] = load_dataset,
    *,
    progress: bool = True,
) -> Path:
    """Train one network, or go on where a killed run was; gives the path of its checkpoint in `folder`.

    A network that is to have no shortcuts starts with those of option A, which are taken away linearly over the share
    `fade` of the steps: without them it does not begin to learn in so few epochs. The record of
    `training_path_record` is written beside the checkpoint, whose SHA-256 it names, as `<name>-path.npz`.

    Raises:
        ValueError: a schedule of fewer than ten steps; nothing has been computed.
    """
    device = compute_device()
    fading, work = network.shortcuts == "none", folder / ".work" / network.name
    data = read(schedule.dataset, "train")
    batches = AugmentedBatches(data, schedule, fading, device)
    if batches.steps < FEWEST_STEPS:
        sizes = f"epochs={schedule.epochs}, batch_size={schedule.batch_size}: {batches.steps} steps"
        raise ValueError(f"{sizes}; expected at least {FEWEST_STEPS}, for the learning rate to rise and fall")
    model = (replace(network, shortcuts="padding") if fading else network).build(schedule.seed)
    batches.layout = memory_format(model)
    model.to(device, memory_format=batches.layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), schedule.peak, schedule.momentum,
                                weight_decay=schedule.weight_decay, nesterov=True)  # fmt: skip
    cycle = OneCycleLR(optimizer, schedule.peak, batches.steps, pct_start=0.2, cycle_momentum=False)
    plan = TrainingPlan(
        batches.steps, cycle, (), work, 100, f"{network} {schedule}", network.name if progress else None
    )
    loss = partial(faded_cross_entropy, precision=schedule.precision)
    steps = np.linspace(0, batches.steps, schedule.snapshots, endpoint=False).astype(int)
    recipe = CapturePlan(steps, "weight", list(weight_matrices(model)))
    with GradientRecorder(model, optimizer, recipe, work / "weights") as recorder:
        losses = fit(model, loss, batches, optimizer, plan, recorders=[recorder])
        round_to_float16(model)
        if fading:
            set_gates(model, 0.0)  # the last step leaves a rest, and a resumed run may have made it before
        end = flatten({name: part.cpu() for name, part in weight_matrices(model).items()}).numpy()
        rows = np.concatenate([np.asarray(recorder.stack().rows), end[None]])
        path = training_path_record(network, rows, [*recorder.stack().steps, batches.steps])
    error = error_rate(model, read(schedule.dataset, "test"), data, schedule.precision)
    return save_checkpoint(folder, network, model.cpu(), _training_notes(schedule, losses, error, device), path)


def _training_notes(
    schedule: ResNetSchedule, losses: NDArray[np.float64], test_error: float, device: torch.device
) -> dict[str, Any]:
    """What a checkpoint says of its training, as plain JSON values."""
    return {
        "schedule": asdict(schedule),
        "loss_every_50_steps": [round(float(part.mean()), 4) for part in np.split(losses, range(50, len(losses), 50))],
        "test_error": test_error,
        "provenance": {**provenance(schedule.seed), "device": device.type, "bfloat16": has_bfloat16(device)},
    }


def training_path_record(network: ResNetDescription, rows: NDArray[Any], steps: list[int]) -> Record:
    """Reduce the path of a training, weight vectors of the matrices `(k, P)`, to a record.

    Its values are `gram` `(k, k)` float64, the products of the rows less the last; `steps` `(k,)`; and, unless P is
    above `PLANE_LIMIT`, `plane` `(2, P)` float16, the first two principal directions at unit length.
    """
    plane = trajectory_plane(rows)
    values = {"gram": plane.gram, "steps": np.array(steps)}
    if rows.shape[1] <= PLANE_LIMIT:
        values["plane"] = plane.directions.astype(np.float16)
    return Record(f"{network.name}-path", values, {}, {})


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


def plane_record_path(root: Path, network: ResNetDescription, kind: str, seed: int) -> Path:
    """Where the record of a plane lies in a project; `kind` is `surface` or `curvature`."""
    return record_path(root, "resnet_landscape", f"{network.name}-{kind}-{seed}")


def first_images(data: Dataset, count: int) -> Images:
    """The first training images, standardised: of CIFAR-10 a random sample, as they are sorted by their SHA-256."""
    return standardise(data)[:count].clone(), data.targets[:count].clone()


def _kept_sweep(root: Path, name: str, kind: str, sources: Mapping[str, Any], scheduler: str) -> Sweep:
    """A sweep whose shards are kept; other weights, another plane or other images have another folder."""
    digest = hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:12]
    folder = root / "_build" / "sweeps" / f"{name}-{kind}-{digest}"
    return Sweep(scheduler, folder, SHARD_SIZES[kind], f"{name} {kind}")


def make_surface_record(network: ResNetDescription, seed: int, root: Path, scheduler: str) -> None:
    """Make the record of one surface unless it is there; its side is that of its seed in SIDES."""
    checkpoint, path = load_checkpoint(root / CHECKPOINTS, network), plane_record_path(root, network, "surface", seed)
    data = load_dataset("cifar10")
    sources = plane_sources(checkpoint, data, IMAGES, seed)
    if find_record(path, **sources):
        return
    evaluator = plane_evaluator(checkpoint, first_images(data, IMAGES), seed)
    how = _kept_sweep(root, network.name, "surface", sources, scheduler)

    def run(task: Evaluator, points: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return sweep(task, points, how, task.key())

    axis = np.linspace(-1, 1, SIDES[seed])
    surface = loss_surface(evaluator, axis, axis, run)
    surface.record(f"{network.name}-surface", sources, provenance(seed)).save(path)


def make_curvature_record(network: ResNetDescription, seed: int, root: Path, scheduler: str) -> None:
    """Make the record of the extreme Hessian eigenvalues on a coarse grid, unless it is there."""
    checkpoint, path = load_checkpoint(root / CHECKPOINTS, network), plane_record_path(root, network, "curvature", seed)
    data = load_dataset("cifar10")
    sources = plane_sources(checkpoint, data, CURVATURE_IMAGES, seed)
    if find_record(path, **sources):
        return
    images, axis = first_images(data, CURVATURE_IMAGES), np.linspace(-1, 1, CURVATURE_SIDE)
    how = _kept_sweep(root, network.name, "curvature", sources, scheduler)
    exact = plane_evaluator(checkpoint, images, seed, precision="float32")  # on this machine; the sources hold on all
    columns = sweep(plane_hessian_extremes(checkpoint, images, seed), plane_grid(axis, axis), how, exact.key())
    squares = {name: column.reshape(len(axis), len(axis)) for name, column in columns.items()}
    values = {"alpha": axis, "beta": axis, **squares}
    Record(f"{network.name}-curvature", values, {**sources, "precision": "float32"}, provenance(seed)).save(path)


def make_resnet_landscape(root: Path, scheduler: str) -> None:
    """Make the records that are missing or belong to other weights; the chapter computes small surfaces itself."""
    for network in NETWORKS:
        if network.depth > 20:
            for seed in SIDES:
                make_surface_record(network, seed, root, scheduler)
    for network in NETWORKS:
        make_curvature_record(network, 0, root, scheduler)


CHAPTERS = {"resnet_landscape": make_resnet_landscape}


def main(arguments: list[str]) -> None:
    """Train the named networks, or all, where their weights or the paths of their trainings are missing."""
    parser = argparse.ArgumentParser(prog="python -m descent.experiments.cifar_resnets", description=main.__doc__)
    names = {network.name: network for network in NETWORKS}
    parser.add_argument("network", nargs="*", choices=[[], *names], help=f"of {', '.join(names)}")
    parser.add_argument("--folder", type=Path, default=project_root() / CHECKPOINTS, help="where they go")
    given = parser.parse_args(arguments)
    for network in [names[name] for name in given.network or names]:
        weights = given.folder / f"{network.name}.safetensors"
        if not (weights.is_file() and path_file(given.folder, network).is_file()):
            print(train_resnet(network, given.folder, ResNetSchedule.of(network)))


if __name__ == "__main__":
    main(sys.argv[1:])
