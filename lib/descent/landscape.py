"""The loss of a network on a line or a plane through its weights, and what the shape of that surface says."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from descent.devices import compute_device
from descent.directions import Direction, check_fit, variances
from descent.folding import fold_batch_norm
from descent.precision import Precision, chosen
from descent.records import Record
from descent.seeding import numpy_generator

Array = NDArray[np.float64]
Values = dict[str, Array]


class Evaluator:
    """Loss and error of a network at points of a line, plane or space: weights + sum of coordinates x directions.

    Always in evaluation mode, on a copy: the model stays as it is, and so do its running statistics. Where the
    directions move only weights of convolutions and linear layers, batch normalisation is folded into the former once,
    and the folded weights are moved (folding maps lines to lines). Where they move anything else, as a line between two
    minima does, the whole network is moved, and a running variance that this leads below zero is taken as zero. An
    evaluator can be sent to another process.

    Args:
        model: any module with floating-point weights.
        inputs: `(n, ...)` float32.
        targets: `(n,)` int64 classes.
        directions: name -> tensor of the shape of that parameter or buffer; one or two, or more.
        precision: of weights and activations; `auto` is bfloat16 where the machine multiplies in it, else float32.
            Logits become float32, losses are summed in float64.
        batch: images at a time.

    Raises:
        ValueError: a direction that does not fit the model, by the first such name; unequal numbers of inputs and
            targets; an unknown precision; a batch below 1; batch normalisation that cannot be folded where it would be.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        directions: Sequence[Direction],
        *,
        precision: Precision = "auto",
        batch: int = 125,
    ) -> None:
        _check(inputs, targets, directions, batch)
        check_fit(model, directions)
        self._device = compute_device()
        self.precision = chosen(precision, self._device)
        self.images = len(targets)
        self._dtype = getattr(torch, self.precision)
        self._source = (copy.deepcopy(model), inputs, directions, batch)  # the caller may train the model further
        self._targets, self._batch = targets, batch
        self._build(model, inputs, directions)

    def _build(self, model: nn.Module, inputs: Tensor, directions: Sequence[Direction]) -> None:
        moved = set().union(*directions)
        matrices = {name for name, p in model.named_parameters() if p.ndim > 1}
        folded = fold_batch_norm(model) if moved <= matrices else None
        self._model = folded.model if folded else copy.deepcopy(model).eval()
        scales = folded.scales if folded else {}
        state = self._model.state_dict()
        self._base = {name: state[name].clone().to(self._device) for name in moved}
        self._variances = variances(moved)
        zero = torch.zeros(())
        self._directions = [
            {name: (d.get(name, zero) * scales.get(name, 1)).to(self._device) for name in moved} for d in directions
        ]  # fmt: skip
        layout = torch.channels_last if inputs.ndim == 4 else torch.contiguous_format
        self._model = self._model.to(self._device, self._dtype, memory_format=layout)  # type: ignore[call-overload]
        self._inputs = inputs.to(self._device, self._dtype).contiguous(memory_format=layout)
        self._wanted = self._targets.to(self._device)

    def key(self) -> str:
        """SHA-256 of the numbers behind the values: weights and statistics, directions, images; not the precision.

        How the layers are connected is not among them: networks with option A's shortcuts and without have one key.
        """
        model, inputs, directions, _ = self._source
        digest = hashlib.sha256()
        images = {"inputs": inputs, "targets": self._targets}
        for number, named in enumerate((model.state_dict(), images, *directions)):
            for name, part in sorted(named.items(), key=itemgetter(0)):
                digest.update(f"{number} {name} {part.dtype} {tuple(part.shape)} ".encode())
                digest.update(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def in_float32(self) -> Evaluator:
        """The same points in float32: what `recheck` compares with."""
        model, inputs, directions, batch = self._source
        return Evaluator(model, inputs, self._targets, directions, precision="float32", batch=batch)

    def __call__(self, points: ArrayLike) -> Values:
        """Points `(s, k)`, one coordinate a direction, to the values at each.

        Returns:
            `loss` `(s,)`, cross-entropy in nats, mean per example, NaN or infinite where the network's is;
            `standard_error` `(s,)` of that mean over the images; `error` `(s,)`, share of misclassified images, those
            with a logit that is NaN among them.

        Raises:
            ValueError: points of another width.
        """
        coordinates = np.atleast_2d(np.asarray(points, float))
        if coordinates.ndim != 2 or coordinates.shape[1] != len(self._directions):
            raise ValueError(f"points of shape {coordinates.shape}: expected (s, {len(self._directions)})")
        rows = [self._at(point) for point in coordinates]
        return {name: np.array([row[name] for row in rows]) for name in ("loss", "standard_error", "error")}

    def _at(self, point: Array) -> dict[str, float]:
        state = self._model.state_dict()
        with torch.inference_mode():
            for name, base in self._base.items():
                moved = base + sum(float(c) * d[name] for c, d in zip(point, self._directions, strict=True))
                state[name].copy_(moved)
            for name in self._variances:
                state[name].clamp_(min=0)
            losses, wrong = [], 0
            for start in range(0, self.images, self._batch):
                part = slice(start, start + self._batch)
                logits = self._model(self._inputs[part]).float()
                losses.append(nn.functional.cross_entropy(logits, self._wanted[part], reduction="none").double())
                wrong += int(((logits.argmax(1) != self._wanted[part]) | logits.isnan().any(1)).sum())
        each = torch.cat(losses)
        spread = float(each.std()) / self.images**0.5 if self.images > 1 else float("nan")
        return {"loss": float(each.mean()), "standard_error": spread, "error": wrong / self.images}


def _check(inputs: Tensor, targets: Tensor, directions: Sequence[Direction], batch: int) -> None:
    if len(inputs) != len(targets) or len(targets) == 0:
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: expected as many, and at least one")
    if not directions:
        raise ValueError("directions is empty: expected one for a line, two for a plane")
    if batch < 1:
        raise ValueError(f"batch={batch}: expected at least 1 image at a time")


@dataclass(frozen=True)
class Surface:
    """Values on a grid; the grid travels with them.

    Attributes:
        alpha: `(m,)`, coordinates along the first direction.
        beta: `(n,)`, along the second.
        values: name -> `(m, n)`; `loss` among them, see `Evaluator`.
        images: examples in each mean.
        precision: in which it was computed.
    """

    alpha: Array
    beta: Array
    values: Mapping[str, Array]
    images: int
    precision: str

    def __post_init__(self) -> None:
        wanted = (len(self.alpha), len(self.beta))
        for name, values in self.values.items():
            if values.shape != wanted:
                raise ValueError(f"{name} of shape {values.shape}: expected (len(alpha), len(beta)) = {wanted}")
        if "loss" not in self.values:
            raise ValueError(f"values {', '.join(self.values)}: expected loss among them")

    @property
    def loss(self) -> Array:
        """`(m, n)`, mean per example."""
        return self.values["loss"]

    def record(self, name: str, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> Record:
        """As a record: the values, `alpha` and `beta`."""
        about = {**settings, "images": self.images, "precision": self.precision}
        return Record(name, {"alpha": self.alpha, "beta": self.beta, **self.values}, about, provenance)

    @classmethod
    def of(cls, record: Record) -> Surface:
        """From what `record` made.

        Raises:
            ValueError: the record is of something else.
        """
        values = dict(record.values)
        if not {"alpha", "beta", "loss"} <= set(values) or not {"images", "precision"} <= set(record.settings):
            raise ValueError(f"record {record.name!r} holds {', '.join(values)}: expected alpha, beta, loss and more")
        alpha, beta = values.pop("alpha"), values.pop("beta")
        return cls(alpha, beta, values, record.settings["images"], record.settings["precision"])


def grid(alpha: ArrayLike, beta: ArrayLike) -> Array:
    """All points of a grid, `(m n, 2)`, the second coordinate fastest: `values.reshape(m, n)` is `Surface`'s order."""
    a, b = np.meshgrid(np.asarray(alpha, float), np.asarray(beta, float), indexing="ij")
    return np.stack([a.ravel(), b.ravel()], 1)


def surface(
    evaluator: Evaluator, alpha: ArrayLike, beta: ArrayLike, run: Callable[[Evaluator, Array], Values] | None = None
) -> Surface:
    """The values on a grid.

    Args:
        evaluator: with two directions.
        alpha: `(m,)`.
        beta: `(n,)`.
        run: `run(evaluator, points (m n, 2)) -> values (m n,)`, such as one that shares the points out with
            `descent.sweeps`; None evaluates them one after the other here.
    """
    a, b = np.asarray(alpha, float), np.asarray(beta, float)
    points = grid(a, b)
    values = evaluator(points) if run is None else run(evaluator, points)
    shaped = {name: found.reshape(len(a), len(b)) for name, found in values.items()}
    return Surface(a, b, shaped, evaluator.images, evaluator.precision)


def recheck(evaluator: Evaluator, found: Surface, seed: int, share: float = 0.02) -> Array:
    """Relative difference of the loss at randomly chosen grid points when they are computed anew in float32.

    Returns:
        `(ceil(share m n),)`, |loss - anew| / anew; 0 where both are infinite or NaN alike, infinite where one is.
    """
    points = grid(found.alpha, found.beta)
    chosen = numpy_generator(seed, "recheck").choice(len(points), int(np.ceil(share * len(points))), replace=False)
    before, anew = found.loss.ravel()[chosen], evaluator.in_float32()(points[chosen])["loss"]
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.abs(before - anew) / np.abs(anew)
    same = (before == anew) | (np.isnan(before) & np.isnan(anew))
    return np.where(same, 0, np.where(np.isfinite(relative), relative, np.inf))
