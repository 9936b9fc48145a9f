"""The residual networks of the chapter `resnet_landscape`: their training on CIFAR-10, and the records of their loss.

A one-cycle schedule trains a network in some hours on two cores; `python -m descent.experiments.cifar_resnets` trains
those that are missing from `data/checkpoints`, each resumably. Surfaces and curvature around them take hours, too;
the chapter checks their records in part.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from descent.checkout import project_root
from descent.data.datasets import Dataset, load_dataset, standardise
from descent.landscape.directions import weight_matrices
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
from descent.repro.machine import autocast, compute_device, has_bfloat16
from descent.repro.numbers import check_whole
from descent.repro.records import Record, provenance
from descent.repro.seeding import torch_generator
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
STOP_IMAGES = 500  # training images whose mean loss says when a network is stopped
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


@dataclass(frozen=True, eq=False)
class _Training:
    """What a schedule trains: the network, its batches, optimiser and cycle of the learning rate."""

    model: nn.Sequential
    batches: AugmentedBatches
    optimizer: torch.optim.SGD
    cycle: OneCycleLR

    @classmethod
    def of(cls, network: ResNetDescription, schedule: ResNetSchedule, data: Dataset) -> _Training:
        """All of it before the first step; a network that is to have no shortcuts starts with those of option A.

        Raises:
            ValueError: a schedule of fewer than ten steps; nothing has been computed.
        """
        device, fading = compute_device(), network.shortcuts == "none"
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
        return cls(model, batches, optimizer, cycle)

    def plan(self, network: ResNetDescription, schedule: ResNetSchedule, work: Path, progress: bool) -> TrainingPlan:
        """The whole schedule, with checkpoints in `work`."""
        bar = network.name if progress else None
        return TrainingPlan(self.batches.steps, self.cycle, (), work, 100, f"{network} {schedule}", bar)


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
    data, work = read(schedule.dataset, "train"), folder / ".work" / network.name
    training = _Training.of(network, schedule, data)
    model, steps = training.model, training.batches.steps
    kept = np.linspace(0, steps, schedule.snapshots, endpoint=False).astype(int)
    recipe = CapturePlan(kept, "weight", list(weight_matrices(model)))
    loss = partial(faded_cross_entropy, precision=schedule.precision)
    with GradientRecorder(model, training.optimizer, recipe, work / "weights") as recorder:
        plan = training.plan(network, schedule, work, progress)
        losses = fit(model, loss, training.batches, training.optimizer, plan, recorders=[recorder])
        round_to_float16(model)
        if network.shortcuts == "none":
            set_gates(model, 0.0)  # the last step leaves a rest, and a resumed run may have made it before
        end = flatten({name: part.cpu() for name, part in weight_matrices(model).items()}).numpy()
        rows = np.concatenate([np.asarray(recorder.stack().rows), end[None]])
        path = training_path_record(network, rows, [*recorder.stack().steps, steps])
    error = error_rate(model, read(schedule.dataset, "test"), data, schedule.precision)
    about = _training_notes(schedule, losses, error)
    return save_checkpoint(folder, network, model.cpu(), about, path)


class _LossReachedError(Exception):
    """The mean loss is down at what a training was to stop at."""


def train_to_loss(
    network: ResNetDescription,
    folder: Path,
    schedule: ResNetSchedule,
    target: float,
    images: int,
    *,
    read: Callable[..., Dataset] = load_dataset,
    every: int = 25,
    progress: bool = True,
) -> Path:
    """Train a network with shortcuts along its schedule until its loss is at most `target`, or to the end.

    The loss is that of `loss_now`, on the first `images` training images, and is looked at every `every` steps and at
    the end. What is kept in `folder` is the network of that step, as `train_resnet` keeps its own, with `stopped`
    (step, loss, target and number of images) among its notes, and without a path. Where the loss never comes down to
    `target`, that is the network of the last step, and its loss says so.

    Args:
        network: has shortcuts; without them they would still be fading at the step.
        folder: where the checkpoint goes; a killed run with the same target, images and looks goes on from its last
            hundred steps.
        schedule: the whole training, of which this is the beginning.
        target: in nats, mean per example.
        images: the number of training images in the mean.
        read: gives the data set.
        every: steps between two looks.
        progress: whether a bar shows the steps.

    Raises:
        ValueError: a network without shortcuts, a target that is no number, `images` or `every` below one, or more
            images than there are.
        DamagedCheckpointError: a killed run to another target in the same folder.
    """
    if network.shortcuts == "none":
        raise ValueError(f"{network.name}: its shortcuts would still be fading; expected a network with shortcuts")
    check_whole(every=every)
    if not math.isfinite(target):
        raise ValueError(f"target={target}: expected a loss in nats")
    data, work = read(schedule.dataset, "train"), folder / ".work" / network.name
    drawn = first_images(data, images)
    training = _Training.of(network, schedule, data)
    model, seen = training.model, {}

    def look(step: int, _: float) -> None:
        if (step + 1) % every == 0 or step + 1 == training.batches.steps:
            seen[step + 1] = loss_now(model, drawn)
            if seen[step + 1] <= target:
                raise _LossReachedError

    plan = training.plan(network, schedule, work, progress)
    plan = replace(plan, callbacks=[look], run=f"{plan.run} to {target} on {images} images, every {every} steps")
    loss = partial(faded_cross_entropy, precision=schedule.precision)
    with suppress(_LossReachedError):
        fit(model, loss, training.batches, training.optimizer, plan)
    round_to_float16(model)
    error = error_rate(model, read(schedule.dataset, "test"), data, schedule.precision)
    step = max(seen, default=training.batches.steps)  # no look is left where a finished run was killed afterwards
    stopped = {"step": step, "loss": loss_now(model, drawn), "target": target, "images": images}
    about = _training_notes(schedule, np.array([]), error) | {"stopped": stopped}
    return save_checkpoint(folder, network, model.cpu(), about)


def loss_now(model: nn.Module, images: Images) -> float:
    """Cross-entropy in evaluation mode, in nats, mean per example; the model comes back in the mode it was in."""
    (inputs, targets), training = images, model.training
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        pairs = zip(torch.split(inputs, 250), torch.split(targets, 250), strict=True)
        total = sum(nn.functional.cross_entropy(model(x.to(device)), y.to(device), reduction="sum") for x, y in pairs)
    model.train(training)
    return float(total) / len(targets)


def first_images(data: Dataset, count: int) -> Images:
    """The first training images, standardised: of CIFAR-10 a random sample, as they are sorted by their SHA-256.

    Raises:
        ValueError: `count` is no whole number from one to the number of images.
    """
    check_whole(images=count)
    if count > len(data):
        raise ValueError(f"images={count}: expected at most the {len(data)} of {data.name}")
    return standardise(data)[:count].clone(), data.targets[:count].clone()


def _training_notes(schedule: ResNetSchedule, losses: NDArray[np.float64], test_error: float) -> dict[str, Any]:
    """What a checkpoint says of its training, as plain JSON values."""
    device = compute_device()
    return {
        "schedule": asdict(schedule),
        "loss_every_50_steps": [round(float(losses[at : at + 50].mean()), 4) for at in range(0, len(losses), 50)],
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


@dataclass(frozen=True)
class PublishedNetwork:
    """One of the networks that the chapter draws, and where its checkpoint lies.

    Attributes:
        network: its description.
        group: "" for a whole training by seed 0; `stopped` for one that ends where its loss is that of the network of
            the same depth without shortcuts; `second` for a whole training by seed 1.
    """

    network: ResNetDescription
    group: Literal["", "stopped", "second"] = ""

    @property
    def name(self) -> str:
        """Such as `resnet56-stopped`."""
        return f"{self.network.name}-{self.group}" if self.group else self.network.name

    def folder(self, root: Path) -> Path:
        """The folder of its checkpoint in a project."""
        return root / CHECKPOINTS / self.group

    def load(self, root: Path) -> Checkpoint:
        """Its checkpoint; errors as those of `load_checkpoint`."""
        return load_checkpoint(self.folder(root), self.network)

    def schedule(self) -> ResNetSchedule:
        """That of its training; of a stopped one a short cycle, since small images alone never reach the loss.

        Of two epochs; of three for ResNet-56, which after two had 0.956 where the network without shortcuts has 0.903.
        """
        if self.group == "stopped":
            epochs = 3 if self.network.depth == 56 else 2
            return ResNetSchedule.of(self.network, epochs=epochs, small_epochs=epochs - 1)
        return ResNetSchedule.of(self.network, seed=int(self.group == "second"))

    def train(self, root: Path) -> Path | None:
        """Train it unless it is there; a stopped one needs that without shortcuts, which it is compared with."""
        folder = self.folder(root)
        weights = folder / f"{self.network.name}.safetensors"
        if weights.is_file() and (self.group == "stopped" or path_file(folder, self.network).is_file()):
            return None
        schedule = self.schedule()
        if self.group != "stopped":
            return train_resnet(self.network, folder, schedule)
        other = PublishedNetwork(replace(self.network, shortcuts="none")).load(root).model
        target = loss_now(other, first_images(load_dataset(schedule.dataset), STOP_IMAGES))
        return train_to_loss(self.network, folder, schedule, target, STOP_IMAGES)


NETWORKS = tuple(ResNetDescription(depth, shortcuts) for depth in DEPTHS for shortcuts in ("projection", "none"))
PUBLISHED = (
    *map(PublishedNetwork, NETWORKS),
    *(PublishedNetwork(network, "stopped") for network in NETWORKS[:4:2]),
    *(PublishedNetwork(network, "second") for network in NETWORKS[4:]),
)


def main(arguments: list[str]) -> None:
    """Train the named networks, or all, where their weights or the paths of their trainings are missing."""
    parser = argparse.ArgumentParser(prog="python -m descent.experiments.cifar_resnets", description=main.__doc__)
    names = {each.name: each for each in PUBLISHED}
    parser.add_argument("network", nargs="*", choices=[[], *names], help=f"of {', '.join(names)}")
    parser.add_argument("--root", type=Path, default=project_root(), help="the project whose data/checkpoints it is")
    given = parser.parse_args(arguments)
    for each in [names[name] for name in given.network or names]:
        if path := each.train(given.root):
            print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
