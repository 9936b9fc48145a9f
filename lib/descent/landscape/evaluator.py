"""The loss at any point of a plane through a network: the network moved, never changed."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from descent.landscape.directions import Direction, batch_norm_variances, check_fit
from descent.models.folding import fold_batch_norm
from descent.repro.machine import Precision, chosen_precision, compute_device

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
        self.precision = chosen_precision(precision, self._device)
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
        self._variances = batch_norm_variances(moved)
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
