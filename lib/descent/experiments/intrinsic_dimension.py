"""Train a network inside a random subspace of its weights (Li et al. 2018, Measuring the Intrinsic Dimension).

The weights are theta_0 + P z, and only z, of d numbers, is trained. The columns of P `(D, d)` have length one: dense
ones are Gaussian, sparse ones have an entry of either sign with probability 1 / sqrt(D) (Li, Hastie and Church 2006).
The intrinsic dimension at 90 % is the smallest d that reaches nine tenths of the accuracy of training all weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from descent.data.datasets import load_dataset
from descent.models.image_networks import mlp
from descent.repro.machine import keep_freed_memory
from descent.repro.numbers import check_whole, refuse_masks
from descent.repro.records import Record, find_record, provenance, record_path, relative_difference
from descent.repro.seeding import deterministic, numpy_generator
from descent.repro.sweeps import Sweep, sweep
from descent.training.loop import DivergenceError, MiniBatches

Array = NDArray[np.float64]
PROJECTIONS = ("dense", "sparse")
RECORD = "accuracies"
COMMAND = "make records CHAPTER=gradient_controls"
DIMENSIONS, SEEDS, LONG = (150, 300, 500, 750, 1000, 1300), range(5), 100  # of the record; LONG in epochs
RETRAINED = 1  # epochs of a recheck


@dataclass(frozen=True)
class SubspaceTraining:
    """One training, by Adam, of a fully connected network with ReLUs.

    Attributes:
        dataset: a name of `descent.data.load_dataset`.
        hidden: widths of the hidden layers; (200, 200) is the source's network for MNIST.
        dimension: of the subspace, the d above; 0 trains all weights.
        projection: "dense" or "sparse".
        epochs, batch_size, learning_rate: of Adam; the source's example has 100, 128 and 0.001.
        seed: of the initial weights, the subspace and the batches.

    Raises:
        ValueError: a number out of range or another projection.
    """

    dataset: str = "mnist"
    hidden: Sequence[int] = (200, 200)
    dimension: int = 0
    projection: str = "sparse"
    epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(0, dimension=self.dimension, seed=self.seed)
        check_whole(epochs=self.epochs, batch_size=self.batch_size)
        if isinstance(self.hidden, int):
            raise ValueError(f"hidden={self.hidden}: expected widths, as (200, 200)")
        for width in self.hidden:
            check_whole(hidden=width)
        if self.projection not in PROJECTIONS:
            raise ValueError(f"projection={self.projection!r}: expected one of {', '.join(PROJECTIONS)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate}: expected above 0")


def random_projection(size: int, dimension: int, kind: str, seed: int) -> csr_array | NDArray[np.float32]:
    """P `(size, dimension)` float32 with columns of length one; in compressed rows where it is sparse.

    Raises:
        ValueError: a dimension out of 1 to `size`, or another kind.
    """
    check_whole(size=size, dimension=dimension)
    if dimension > size or kind not in PROJECTIONS:
        raise ValueError(f"dimension={dimension}, kind={kind!r}: expected 1 to {size}, and one of {PROJECTIONS}")
    draw = numpy_generator(seed, "projection")
    if kind == "dense":
        P = draw.standard_normal((size, dimension), np.float32)
        return P / np.linalg.norm(P, axis=0)
    counts = np.maximum(1, draw.binomial(size, 1 / math.sqrt(size), dimension))
    rows = np.concatenate([draw.choice(size, count, replace=False) for count in counts])
    columns = np.repeat(np.arange(dimension), counts)
    values = draw.choice([-1.0, 1.0], len(rows)) / np.sqrt(counts)[columns]
    return csr_array((values.astype(np.float32), (rows, columns)), (size, dimension))


def subspace_accuracies(training: SubspaceTraining) -> Array:
    """Train, and return the accuracy on the test split after each epoch, `(epochs,)`.

    Raises:
        ValueError: a dimension above the number of weights, or a batch above the number of images.
        DivergenceError: weights that are not finite after the last step.
    """
    with torch.inference_mode(False), torch.enable_grad():
        return _accuracies(training)


def _accuracies(training: SubspaceTraining) -> Array:
    keep_freed_memory()
    train, test = (load_dataset(training.dataset, split) for split in ("train", "test"))
    model = mlp(train.inputs.shape[1:], training.hidden, train.classes, training.seed)
    shapes = {name: each.shape for name, each in model.named_parameters()}
    start = torch.cat([each.detach().reshape(-1) for each in model.parameters()])
    whole = training.dimension == 0
    z = (start if whole else torch.zeros(training.dimension, dtype=start.dtype)).clone().requires_grad_()
    optimizer = torch.optim.Adam([z], training.learning_rate)
    batches = MiniBatches((train.inputs, train.targets), training.batch_size, training.seed)
    if not whole:
        P = random_projection(len(start), training.dimension, training.projection, training.seed)
        transposed = P.T if isinstance(P, np.ndarray) else P.T.tocsr()
        P = transposed.T  # by columns: most rows of a sparse one are nearly empty, and take four times as long

    def weights() -> Tensor:
        flat = z.detach()
        return flat if whole else start + torch.from_numpy(P @ flat.numpy())

    def named(flat: Tensor) -> dict[str, Tensor]:
        parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    found = []
    for step in range(training.epochs * batches.per_epoch):
        theta, (inputs, targets) = weights().requires_grad_(), batches(step)
        loss = cross_entropy(functional_call(model, named(theta), (inputs,)), targets)
        (gradient,) = torch.autograd.grad(loss, theta)
        z.grad = gradient if whole else torch.from_numpy(transposed @ gradient.numpy())
        optimizer.step()
        if (step + 1) % batches.per_epoch == 0:
            with torch.no_grad():
                answers = functional_call(model, named(weights()), (test.inputs,)).argmax(1)
            found.append((answers == test.targets).double().mean().item())
    if not z.isfinite().all():
        raise DivergenceError(f"{training}: weights are not finite; try a smaller learning rate")
    return np.array(found)


def dimension_at_share(dimensions: Sequence[int], accuracies: Array, baseline: float, share: float = 0.9) -> float:
    """The dimension at which the accuracies `(n,)` cross a share of the baseline, between those tried in log dimension.

    NaN where none of them reaches it, or the smallest already does: then it is not between those tried.

    Raises:
        ValueError: dimensions that are not positive and rising, or other numbers of accuracies.

    Example:
        >>> dimension_at_share([100, 400], np.array([0.8, 1.0]), 1.0)
        200.0
    """
    d, found = np.asarray(dimensions, float), np.asarray(accuracies, float)
    refuse_masks(accuracies, "accuracies")
    rising = d.ndim == 1 and np.isfinite(d).all() and (d > 0).all() and (np.diff(d) > 0).all()
    if not rising or d.shape != found.shape:
        raise ValueError(f"dimensions {d}, accuracies {found}: expected as many, the dimensions rising")
    above = found >= share * baseline
    if not above.any() or above[0] or not np.isfinite(found).all():
        return math.nan
    i = int(above.argmax())
    part = (share * baseline - found[i - 1]) / (found[i] - found[i - 1])
    return float(np.exp(np.log(d[i - 1]) + part * np.log(d[i] / d[i - 1])).round(9))


def recorded_trainings() -> list[SubspaceTraining]:
    """The trainings of the record: for each seed all weights, then each of DIMENSIONS, for LONG epochs."""
    return [SubspaceTraining(dimension=d, seed=seed, epochs=LONG) for seed in SEEDS for d in (0, *DIMENSIONS)]


@dataclass(frozen=True)
class SubspaceRuns:
    """A task of `descent.repro.sweeps.sweep`: points are indices `(n, 1)`, values `accuracy` `(n, epochs)`."""

    trainings: tuple[SubspaceTraining, ...]

    def key(self) -> str:
        """Twelve hexadecimal digits that name the trainings."""
        return hashlib.sha256(repr([asdict(each) for each in self.trainings]).encode()).hexdigest()[:12]

    def __call__(self, points: Array) -> dict[str, Array]:
        """Accuracies after each epoch, of the trainings with these numbers."""
        return {"accuracy": np.stack([subspace_accuracies(self.trainings[int(index)]) for (index,) in points])}


def read_accuracies(root: Path) -> Record:
    """The record of `recorded_trainings`, its `accuracy` being `(trainings, epochs)`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged or of other trainings; the message names the command that makes it again.
    """
    return Record.load(record_path(root, "gradient_controls", RECORD), COMMAND, **_made_from())


def recompute_accuracies(record: Record, seed: int) -> float:
    """Train the first epoch of one recorded training again, drawn by `seed`; the largest relative difference."""
    trainings = recorded_trainings()
    index = int(numpy_generator(seed, record.name).integers(len(trainings)))
    with deterministic(1):
        again = subspace_accuracies(replace(trainings[index], epochs=RETRAINED))
    return float(relative_difference(record.values["accuracy"][index, :RETRAINED], again).max())


def _made_from() -> dict[str, Any]:
    return {"key": SubspaceRuns(tuple(recorded_trainings())).key()}


def make_accuracies(root: Path, scheduler: str) -> None:
    """Make the record if it is missing; each finished training is kept, so that a killed recipe goes on from it."""
    path = record_path(root, "gradient_controls", RECORD)
    if find_record(path, **_made_from()):
        return
    task = SubspaceRuns(tuple(recorded_trainings()))
    points = np.arange(len(task.trainings), dtype=float)[:, None]
    folder = root / "_build" / "sweeps" / "gradient_controls" / task.key()
    values = sweep(task, points, Sweep(scheduler, folder, 1, RECORD, recompute=False), task.key())
    with deterministic(1):
        origin = provenance()
    settings = _made_from() | {"trainings": [asdict(each) for each in task.trainings]}
    Record(RECORD, {"accuracy": values["accuracy"].astype(np.float32)}, settings, origin).save(path)


CHAPTERS = {"gradient_controls": make_accuracies}
