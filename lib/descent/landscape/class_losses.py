"""The default loss of a landscape: cross-entropy of one class an example, and what it cannot mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def class_losses(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats of logits `(b, classes)` for int64 classes `(b,)`, and whether another logit is largest.

    Returns:
        Two of `(b,)`, per example; a logit that is NaN makes the loss NaN, and the example misclassified.

    Raises:
        ValueError: outputs of another shape, which some networks give for a last batch of one example.
    """
    if outputs.ndim != 2 or len(outputs) != len(targets):
        shape = f"the network returned shape {tuple(outputs.shape)} for a batch of {len(targets)}"
        raise ValueError(
            f"{shape}: expected ({len(targets)}, classes), or another batch= if only the last one is small"
        )
    losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return losses, (outputs.argmax(1) != targets) | outputs.isnan().any(1)


def check_classes(outputs: Any, targets: Tensor) -> None:
    """Refuse what cross-entropy of one class an example cannot mean.

    Args:
        outputs: what the network returned for the first b examples.
        targets: those of all n examples.

    Raises:
        ValueError: outputs other than logits `(b, classes)`, or targets other than int64 classes `(n,)` below that;
            the message names a loss that fits, or what to do with the targets.
    """
    if misfit := _misfit(outputs, targets):
        shape = f" of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else ""
        remedy = f"loss= with loss(model, (x, y)) = {misfit[1]}" if "F." in misfit[1] else misfit[1]
        raise ValueError(
            f"outputs{shape} and targets of shape {tuple(targets.shape)}, {targets.dtype}: {misfit[0]}; the default "
            f"loss is the cross-entropy of logits (b, classes) for int64 classes (n,). Expected {remedy}"
        )


def _misfit(outputs: Any, targets: Tensor) -> tuple[str, str] | None:
    """The first thing that is wrong, and what would work, such as a loss of the model and of x, y."""
    if not isinstance(outputs, Tensor):
        logits = "model(x)['logits']" if isinstance(outputs, Mapping) else "model(x)[0]"
        return f"the network returns a {type(outputs).__name__}", f"F.cross_entropy({logits}, y, reduction='none')"
    out, wanted, classes = outputs.shape[1:], targets.shape[1:], outputs.shape[-1] if outputs.ndim > 1 else 0
    binary, low, high = ((targets == 0) | (targets == 1)).all(), targets.min().item(), targets.max().item()
    single, alike = max(len(out), len(wanted), *out, *wanted, 1) == 1, out == wanted == (classes,) != (1,)
    shares = alike and low >= 0 and torch.allclose(sums := targets.double().sum(1), torch.ones_like(sums))
    numbers = single or (targets.is_floating_point() and (wanted or (targets != targets.round()).any()))
    places = {out[:-1]: "model(x).movedim(-1, 1)", out[1:]: "model(x)"} if outputs.ndim > 2 else {}
    sure = outputs.ndim == 2 and not outputs.is_complex() and ((outputs > 0) & (outputs < 1)).all()
    y, mean = "y" if targets.is_floating_point() else "y.float()", "reduction='none').reshape(len(y), -1).mean(1)"
    no_logits = outputs.ndim == 0 or not outputs.is_floating_point()
    cases = (
        (no_logits, f"the network returns {outputs.dtype}", "a network that returns logits, some for each example"),
        (shares, "an example has a share of each class", f"F.cross_entropy(model(x), {y}, reduction='none')"),
        (binary and (alike or single), "each target is one of two values",
         f"F.binary_cross_entropy_with_logits(model(x).reshape(y.shape), {y}, {mean}"),
        (numbers, "targets are numbers, as in a regression",
         f"F.mse_loss(model(x).reshape(y.shape), {y}, {mean}"),
        (wanted in places, "an example has a class at several places, as in a mask or a text",
         f"F.cross_entropy({places.get(wanted)}, y, {mean}"),
        (wanted, "an example has more than one target", "one class for each, as targets.squeeze(1) gives"),
        (outputs.ndim != 2, "an example has no row of logits", "a network that returns (b, classes)"),
        (targets.dtype != torch.int64, f"targets are {targets.dtype}", "targets.long()"),
        (not 0 <= low <= high < classes, f"targets run from {low} to {high}", f"classes 0 to {classes - 1} alone"),
        (sure and torch.allclose(outputs.sum(1), outputs.new_ones(())), "the network returns probabilities",
         "F.nll_loss(model(x).log(), y, reduction='none')"),
    )  # fmt: skip
    return next(((problem, remedy) for wrong, problem, remedy in cases if wrong), None)
