"""The loss at any point of a plane through a network, which is moved as a copy and never changed."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from descent.landscape.directions import Direction, batch_norm_variances, check_fit
from descent.models.folding import Folded, fold_batch_norm, largest_difference
from descent.repro.machine import Precision, chosen_precision, compute_device

Array = NDArray[np.float64]
Values = dict[str, Array]
ExampleLoss = Callable[[Tensor, Tensor], Tensor]
FOLDED_AGREE = 1e-3  # largest difference of outputs, over the largest output: rounding leaves about 1e-5


class Evaluator:
    """Loss of a network at points of a line, plane or space: weights + sum of coordinates x directions.

    The network is a copy in evaluation mode: the model stays as it is, and so do its running statistics. Where the
    directions move only parameters of more than one dimension, batch normalisation is folded into the convolutions
    before it once, and the folded weights are moved (folding maps lines to lines). Where the folded network gives other
    outputs, or the directions move anything else, as a line between two minima does, the network is moved as it is, and
    a running variance that this leads below zero is taken as zero. An evaluator can be sent to another process.

    Args:
        model: any module with floating-point weights.
        inputs: `(n, ...)`, floating-point numbers, or integers such as tokens.
        targets: `(n, ...)`; for cross-entropy `(n,)` int64 classes.
        directions: name -> tensor of the shape of that parameter or buffer; one or two, or more.
        loss: `loss(outputs, targets)` of b examples to one value for each, `(b,)`; None is cross-entropy in nats, and
            only then the share of misclassified examples is measured.
        precision: of weights and activations; `auto` is bfloat16 where the machine multiplies in it, else float32.
            Outputs become float32, losses are summed in float64.
        batch: examples at a time.

    Raises:
        ValueError: a direction that does not fit the model, by the first such name; unequal numbers of inputs and
            targets; an unknown precision; a batch below 1.

    Examples:
        The loss (w - 1)^2 of one weight, which starts at 0, along the direction that adds 1 to it:

        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> ones = torch.ones(4, 1)
        >>> squares = lambda outputs, targets: (outputs - targets).square().sum(1)
        >>> task = Evaluator(model, ones, ones, [{"weight": ones[:1]}], loss=squares, precision="float32")
        >>> task([[0], [1], [3]])["loss"]
        array([1., 0., 4.])
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        directions: Sequence[Direction],
        *,
        loss: ExampleLoss | None = None,
        precision: Precision = "auto",
        batch: int = 125,
    ) -> None:
        _check(inputs, targets, directions, batch)
        check_fit(model, directions)
        self._device = compute_device()
        self.precision = chosen_precision(precision, self._device)
        self.images = len(targets)
        self._dtype = getattr(torch, self.precision)
        self._source = (copy.deepcopy(model), inputs, directions, batch)  # the caller may train the model further
        self._targets, self._batch, self._loss = targets, batch, loss
        self._build(model, inputs, directions)

    def _build(self, model: nn.Module, inputs: Tensor, directions: Sequence[Direction]) -> None:
        moved = set().union(*directions)
        matrices = {name for name, p in model.named_parameters() if p.ndim > 1}
        folded = _folded(model, inputs) if moved <= matrices else None
        self._model = folded.model if folded else copy.deepcopy(model).eval()
        scales = folded.scales if folded else {}
        state = self._model.state_dict()
        self._base = {name: state[name].clone().to(self._device) for name in moved}
        self._variances = batch_norm_variances(moved)
        zero = torch.zeros(())
        self._directions = [
            {name: (d.get(name, zero) * scales.get(name, 1)).to(self._device) for name in moved} for d in directions
        ]  # fmt: skip
        layout = torch.channels_last if inputs.ndim == 4 else torch.contiguous_format
        self._model = self._model.to(self._device, self._dtype, memory_format=layout)  # type: ignore[call-overload]
        dtype = self._dtype if inputs.is_floating_point() else inputs.dtype
        self._inputs = inputs.to(self._device, dtype).contiguous(memory_format=layout)
        self._wanted = self._targets.to(self._device)

    def key(self) -> str:
        """SHA-256 of the numbers behind the values: weights and statistics, directions, examples; not the precision.

        How the layers are connected does not count: networks with padding as their shortcuts and with none have one
        key. Of a loss other than cross-entropy its name counts.
        """
        model, inputs, directions, _ = self._source
        digest = hashlib.sha256()
        images = {"inputs": inputs, "targets": self._targets}
        for number, named in enumerate((model.state_dict(), images, *directions)):
            for name, part in sorted(named.items(), key=itemgetter(0)):
                digest.update(f"{number} {name} {part.dtype} {tuple(part.shape)} ".encode())
                digest.update(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        if self._loss is not None:
            digest.update(f"loss {getattr(self._loss, '__qualname__', self._loss)}".encode())
        return digest.hexdigest()

    def in_float32(self) -> Evaluator:
        """The same evaluator in float32, which `recompute_points` compares with."""
        model, inputs, directions, batch = self._source
        return Evaluator(model, inputs, self._targets, directions, loss=self._loss, precision="float32", batch=batch)

    def __call__(self, points: ArrayLike) -> Values:
        """The values at points `(s, k)`, which have one coordinate for each direction.

        Returns:
            `loss` `(s,)`, mean per example, NaN or infinite where the network's is; `standard_error` `(s,)` of that
            mean over the examples; for cross-entropy `error` `(s,)`, the share of misclassified examples, among which
            those with a logit that is NaN count.

        Raises:
            ValueError: points of another width, or a loss that does not return one value per example.
        """
        coordinates = np.atleast_2d(np.asarray(points, float))
        if coordinates.ndim != 2 or coordinates.shape[1] != len(self._directions):
            raise ValueError(f"points of shape {coordinates.shape}: expected (s, {len(self._directions)})")
        rows = [self._at(point) for point in coordinates]
        names = ("loss", "standard_error", "error") if self._loss is None else ("loss", "standard_error")
        return {name: np.array([row[name] for row in rows]) for name in names}

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
                outputs, targets = self._model(self._inputs[part]).float(), self._wanted[part]
                losses.append(_losses(self._loss, outputs, targets))
                if self._loss is None:
                    wrong += int(((outputs.argmax(1) != targets) | outputs.isnan().any(1)).sum())
        each = torch.cat(losses)
        spread = float(each.std()) / self.images**0.5 if self.images > 1 else float("nan")
        return {"loss": float(each.mean()), "standard_error": spread, "error": wrong / self.images}


def _check(inputs: Tensor, targets: Tensor, directions: Sequence[Direction], batch: int) -> None:
    if len(inputs) != len(targets) or len(targets) == 0:
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: expected as many, and at least one")
    if not directions:
        raise ValueError("directions is empty: expected one for a line, two for a plane")
    if batch < 1:
        raise ValueError(f"batch={batch}: expected at least 1 example at a time")


def _losses(loss: ExampleLoss | None, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of each example, `(b,)` float64."""
    if loss is None:
        return nn.functional.cross_entropy(outputs, targets, reduction="none").double()
    values = loss(outputs, targets)
    if values.shape != (len(targets),):
        raise ValueError(
            f"loss returned shape {tuple(values.shape)}: expected ({len(targets)},), one value per example"
        )
    return values.double()


def _folded(model: nn.Module, inputs: Tensor) -> Folded | None:
    """The network with its batch normalisation folded, if it can be and gives the same outputs on some examples."""
    try:
        folded = fold_batch_norm(model)
    except ValueError:
        return None
    if not folded.scales:
        return folded
    some = inputs[:2].to(next(model.parameters()).dtype)
    return folded if largest_difference(model, folded.model, some) <= FOLDED_AGREE else None
