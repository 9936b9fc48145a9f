"""Data between the real and a null, and the spectra of gradients of many small trainings on it.

Each control takes an amount from 0, which leaves the data as they are, to 1, where nothing of one property is left. The
same generator state at two amounts gives the same noise, and begins with the same pixels, lines or labels; the order in
which these are put is drawn for each amount.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from descent.models.image_networks import mlp
from descent.repro.numbers import check_whole
from descent.repro.seeding import deterministic, numpy_generator
from descent.spectra.singular_values import gram_matrix
from descent.training.capture import random_steps
from descent.training.loop import MiniBatches
from descent.training.together import ModelStack, StackPlan, train_stack

Images = NDArray[np.float32]
Labels = NDArray[np.int64]
NOISES = ("Gaussian noise", "pixels' own values", "random phases")
SHUFFLES = ("pixels of each image", "one permutation", "rows of each image", "columns of each image", "across images")


def _checked(images: Images, amount: float) -> int:
    if not isinstance(images, np.ndarray) or images.ndim != 4 or not images.size or images.dtype.kind != "f":
        kind = f"{images.shape}, {images.dtype}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(f"images of shape and type {kind}: expected floats (n, channels, height, width)")
    if not np.isfinite(images).all():
        raise ValueError("images: some pixels are not finite")
    if not 0 <= amount <= 1:
        raise ValueError(f"amount={amount}: expected 0 to 1")
    return len(images)


def mix_noise(images: Images, noise: str, amount: float, generator: np.random.Generator) -> Images:
    """Amount * noise + (1 - amount) * images, `(n, c, h, w)`, with one image of noise for each image.

    Args:
        images: float32 `(n, c, h, w)`.
        noise: "Gaussian noise", independent, of the mean and deviation of all pixels; "pixels' own values", each drawn
            without replacement from the values that the pixel has in the images, so that its distribution stays and
            all relations between pixels go; "random phases", the image's Fourier amplitudes, so that its spectrum and
            mean stay and its shapes go.
        amount: 0 to 1.
        generator: draws the noise, the same at each amount.

    Raises:
        ValueError: another noise, an amount out of range, or no such images.
    """
    n = _checked(images, amount)
    if noise == "Gaussian noise":
        drawn = generator.standard_normal(images.shape, np.float32) * images.std(dtype=float) + images.mean(dtype=float)
    elif noise == "pixels' own values":
        drawn = generator.permuted(images.reshape(n, -1), axis=0).reshape(images.shape)
    elif noise == "random phases":
        spectrum, noise_spectrum = (np.fft.rfft2(each) for each in (images, generator.standard_normal(images.shape)))
        drawn_spectrum = np.abs(spectrum) * np.exp(1j * np.angle(noise_spectrum))  # phases of real noise: a real image
        drawn_spectrum[..., 0, 0] = spectrum[..., 0, 0]
        drawn = np.fft.irfft2(drawn_spectrum, images.shape[-2:])
    else:
        raise ValueError(f"noise={noise!r}: expected one of {', '.join(NOISES)}")
    mixed: Images = (amount * drawn + (1 - amount) * images).astype(np.float32)
    return mixed


def shuffle_pixels(images: Images, shuffle: str, amount: float, generator: np.random.Generator) -> Images:
    """The images with a share of their pixels in another order, `(n, c, h, w)`; no value is lost or made.

    Args:
        images: float32 `(n, c, h, w)`.
        shuffle: "pixels of each image", an order of its own for each; "one permutation", the same for all; "rows of
            each image" and "columns of each image", whole lines in an order of each image's own; "across images", the
            values of each pixel go to other images.
        amount: the share of pixels, rows or columns that take part, the same ones in all images; 0 to 1.
        generator: draws which take part first, and the orders.

    Raises:
        ValueError: another shuffle, an amount out of range, or no such images.
    """
    n = _checked(images, amount)
    by_line = {"rows of each image": 2, "columns of each image": 3}
    if shuffle not in SHUFFLES:
        raise ValueError(f"shuffle={shuffle!r}: expected one of {', '.join(SHUFFLES)}")
    axis = by_line.get(shuffle)
    lines = np.moveaxis(images, axis, 1).reshape(n, images.shape[axis], -1) if axis else images.reshape(n, -1, 1)
    first = generator.permutation(lines.shape[1])
    part = np.sort(first[: round(amount * len(first))])
    out, taken = lines.copy(), lines[:, part]
    if shuffle == "one permutation":
        out[:, part] = taken[:, generator.permutation(len(part))]
    elif shuffle == "across images":
        out[:, part] = generator.permuted(taken, axis=0)
    elif len(part):
        order = generator.permuted(np.tile(np.arange(len(part)), (n, 1)), axis=1)
        out[:, part] = np.take_along_axis(taken, order[..., None], 1)
    if axis is None:
        return out.reshape(images.shape)
    moved = np.moveaxis(images, axis, 1).shape
    return np.ascontiguousarray(np.moveaxis(out.reshape(moved), 1, axis))


def shuffle_labels(labels: Labels, amount: float, generator: np.random.Generator) -> Labels:
    """The labels `(n,)`, a share `amount` of which, 0 to 1, have changed places with each other.

    Raises:
        ValueError: an amount out of range.
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"amount={amount}: expected 0 to 1")
    labels = np.asarray(labels)
    part = generator.permutation(len(labels))[: round(amount * len(labels))]
    out = labels.copy()
    out[part] = labels[generator.permutation(part)]
    return out


def shrink_images(images: Images, side: int) -> Images:
    """The images at `side` x `side` pixels, each the mean of those it covers, `(n, c, side, side)`.

    Raises:
        ValueError: a side below 1 or above the images' own.
    """
    _checked(images, 0)
    check_whole(side=side)
    if side > min(images.shape[2:]):
        raise ValueError(f"side={side}: expected at most {min(images.shape[2:])}, the images' own")
    means: Images = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(images), side).numpy()
    return means


def random_bottleneck(images: Images, dimensions: int, generator: np.random.Generator) -> Images:
    """Random orthogonal directions of the pixels, `(n, 1, 1, dimensions)`, scaled to keep norms on average.

    Raises:
        ValueError: fewer than one dimension or more than pixels.
    """
    flat = images.reshape(_checked(images, 0), -1)
    check_whole(dimensions=dimensions)
    if dimensions > flat.shape[1]:
        raise ValueError(f"dimensions={dimensions}: expected at most {flat.shape[1]}, the number of pixels")
    square = generator.standard_normal((flat.shape[1], flat.shape[1]))
    basis = np.linalg.qr(square)[0][:, :dimensions] * np.sqrt(flat.shape[1] / dimensions)
    turned: Images = flat @ basis.astype(np.float32)
    return turned[:, None, None, :]


@dataclass(frozen=True, eq=False)
class Trial:
    """One training of a group; what is not named is the reference: one hidden layer, plain steps, inputs in [0, 1].

    Attributes:
        images: float32 `(n, c, h, w)`, or what else the network of the plan takes; and `labels` int64 `(n,)`, from 0.
        gain: factor of all initial weights and biases.
        learning_rate, momentum: of the steps.

    Raises:
        ValueError: images that are not finite, other than one label for each, or a gain that is no positive number.
    """

    images: Images
    labels: Labels
    gain: float = 1.0
    learning_rate: float = 0.1
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.images.dtype.kind == "f" and not np.isfinite(self.images).all():
            raise ValueError("images: some pixels are not finite")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != np.int64 or (self.labels < 0).any():
            found = f"{self.labels.dtype} of shape {self.labels.shape}"
            raise ValueError(f"labels {found} for {len(self.images)} images: expected int64, one for each, from 0")
        if not 0 < self.gain < np.inf:
            raise ValueError(f"gain={self.gain}: expected a positive number")


@dataclass(frozen=True)
class GroupPlan:
    """What the trainings of a group share.

    Attributes:
        steps: of each, and `batch_size`, examples in one.
        samples: the number of steps, drawn at random, whose gradients are stacked.
        seed: of the initial weights, of the batches and of the sampled steps, the same for all trials of a group.
        hidden: units of the hidden layer; 0 for none, which is logistic regression.
        classes: number of outputs.
        network: makes the network from the shape of an image, the number of classes and the seed; None for that above.
    """

    steps: int
    batch_size: int
    samples: int
    seed: int
    hidden: int = 32
    classes: int = 10
    network: Callable[[Sequence[int], int, int], nn.Module] | None = None


def trial_stack(trials: Sequence[Trial], plan: GroupPlan) -> ModelStack:
    """The networks of a group, each at its initial weights.

    Raises:
        ValueError: no trial, trials whose images differ in shape, or a label that is no class of the plan.
    """
    for trial in trials:
        if trial.labels.max(initial=0) >= plan.classes:
            raise ValueError(
                f"label {trial.labels.max()}: expected at most {plan.classes - 1}, of {plan.classes} classes"
            )
    shapes = {trial.images.shape[1:] for trial in trials}
    if len(shapes) != 1:
        raise ValueError(f"{len(trials)} trials with images of shapes {sorted(shapes)}: expected trials of one shape")
    shape, hidden = next(iter(shapes)), [plan.hidden] if plan.hidden else []
    made = plan.network(shape, plan.classes, plan.seed) if plan.network else mlp(shape, hidden, plan.classes, plan.seed)
    models = [copy.deepcopy(made) for _ in trials]
    with torch.no_grad():
        for model, trial in zip(models, trials, strict=True):
            for parameter in model.parameters():
                parameter.mul_(trial.gain)
    return ModelStack(models)


def stacked_batches(trials: Sequence[Trial], plan: GroupPlan) -> Callable[[int], tuple[Tensor, Tensor]]:
    """The batches of a step, inputs `(k, b, c, h, w)` and targets `(k, b)`.

    Trials of as many examples see the same numbers.
    What is left of an epoch after its last whole batch is left out, so that trials with fewer examples can be stacked.
    """
    data = [(torch.from_numpy(trial.images), torch.from_numpy(trial.labels)) for trial in trials]
    each = [MiniBatches(tensors, plan.batch_size, plan.seed) for tensors in data]

    def whole(batches: MiniBatches, step: int) -> tuple[Tensor, ...]:
        epoch, part = divmod(step, len(batches.tensors[0]) // plan.batch_size)
        return batches(epoch * batches.per_epoch + part)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = zip(*(whole(one, step) for one in each), strict=True)
        return torch.stack(inputs), torch.stack(targets)

    return batches


def sampled_gradients(trials: Sequence[Trial], plan: GroupPlan) -> NDArray[np.float32]:
    """Train a group and return the gradients at the sampled steps, in order of time, `(k, samples, P)`.

    Raises:
        ValueError: as `trial_stack`; more samples than steps.
        DivergenceError: a training whose weights do not stay finite.
    """
    steps = random_steps(plan.steps, plan.samples, numpy_generator(plan.seed, "sample"))
    rates, momenta = [trial.learning_rate for trial in trials], [trial.momentum for trial in trials]
    how = StackPlan(plan.steps, rates, momenta, steps)
    with deterministic(1):
        return train_stack(trial_stack(trials, plan), stacked_batches(trials, plan), how).gradients


def group_grams(trials: Sequence[Trial], plan: GroupPlan) -> NDArray[np.float64]:
    """The Gram matrices of the gradients of a group, `(k, samples, samples)`; see `sampled_gradients`."""
    return np.stack([gram_matrix(rows) for rows in sampled_gradients(trials, plan)])
