"""Batch normalisation, in evaluation mode an affine map, folded into the convolution before it, at no cost."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@dataclass(frozen=True)
class Folded:
    """A network without its batch normalisation.

    Attributes:
        model: a copy in evaluation mode, equal in its outputs to rounding; the original is not touched.
        scales: for the name of each weight that was folded, the factor of each of its filters, in a shape that
            multiplies the weight. The folded weight is the original times the factor, and so is a direction in the
            space of weights: folding maps lines to lines.
    """

    model: nn.Module
    scales: dict[str, Tensor]


def fold_batch_norm(model: nn.Module) -> Folded:
    """Fold every batch normalisation into the convolution that stands before it in the same parent module.

    With gamma, beta the affine parameters and mu, s^2 the running statistics, the filter w_i becomes
    w_i gamma_i / sqrt(s_i^2 + epsilon), with bias beta_i - mu_i gamma_i / sqrt(s_i^2 + epsilon).

    Raises:
        ValueError: a batch normalisation has no running statistics, or no convolution before it (a transposed
            convolution does not count).
    """
    folded = copy.deepcopy(model).eval()
    scales = {}
    for path, parent in list(folded.named_modules()):
        for first, second in _pairs(path, parent):
            convolution, norm = getattr(parent, first), getattr(parent, second)
            factor = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.detach())
            name = ".".join(filter(None, (path, first, "weight")))
            scales[name] = factor.reshape(-1, *[1] * (convolution.weight.ndim - 1))
            setattr(parent, first, fuse_conv_bn_eval(convolution, norm))
            setattr(parent, second, nn.Identity())
    return Folded(folded, scales)


def _pairs(path: str, parent: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of each convolution and the batch normalisation after it, among the children of `parent`."""
    before = ""
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            where = ".".join(filter(None, (path, name)))
            if child.running_mean is None:
                raise ValueError(f"batch normalisation {where!r} has no running statistics: expected a trained network")
            convolution = getattr(parent, before, None)
            transposed = isinstance(convolution, nn.modules.conv._ConvTransposeNd)  # its filters are along axis 1
            if transposed or not isinstance(convolution, nn.modules.conv._ConvNd):
                raise ValueError(f"batch normalisation {where!r} follows no convolution: expected one before it")
            yield before, name
        before = name


def largest_difference(model: nn.Module, folded: nn.Module, inputs: Tensor) -> float:
    """Largest difference of the two networks' outputs, both in evaluation mode, over the largest output."""
    with torch.inference_mode():
        one, other = (copy.deepcopy(network).eval()(inputs) for network in (model, folded))
        return float((one - other).abs().max() / one.abs().max())
