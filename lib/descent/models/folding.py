"""Batch normalisation, in evaluation mode an affine map, folded into the convolution before it, at no cost."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Folded:
    """A network without batch normalisation that can be folded.

    Attributes:
        model: a copy in evaluation mode, equal in its outputs to rounding; the original is not touched.
        scales: for the name of each weight that was folded, the factor of each of its filters, in a shape that
            multiplies the weight. The folded weight is the original times the factor, and so is a direction in the
            space of weights: folding maps lines to lines.
    """

    model: nn.Module
    scales: dict[str, Tensor]


def memory(part: Tensor) -> tuple[object, ...]:
    """What two tensors of one type have in common if and only if they are the same numbers in memory."""
    place = part.data_ptr() if part.layout is torch.strided else 0  # 0 also of what is empty, or has no numbers
    return (type(part), place, part.shape, part.stride()) if place else (id(part),)


@torch.no_grad()  # with gradients, the copies of a scripted module's weights would have a history
def copy_module(model: nn.Module) -> nn.Module:
    """A deep copy of the module, also of one that keeps tensors with a history, as weight normalisation by hooks does.

    Parameters that are the same numbers in memory, as `one.weight.data = other.weight.data` makes them, are one
    parameter in the copy.

    Raises:
        ValueError: the module holds something that cannot be copied.
    """
    held = tree_leaves([vars(module) for module in model.modules()])
    parts = [part for part in held if isinstance(part, Tensor) and not is_lazy(part)]
    copies = {memory(part): copy.deepcopy(part) if part.is_leaf else part.clone() for part in parts}
    memo: dict[int, Any] = {id(part): copies[memory(part)] for part in parts}
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the network cannot be copied: {error}; expected one that copy.deepcopy takes") from error


def fold_batch_norm(model: nn.Module) -> Folded:
    """Fold each batch normalisation that alone reads the output of a convolution, as the data flow in the forward pass.

    With gamma, beta the affine parameters and mu, s^2 the running statistics, the filter w_i becomes
    w_i gamma_i / sqrt(s_i^2 + epsilon), with bias beta_i - mu_i gamma_i / sqrt(s_i^2 + epsilon). What stands elsewhere
    stays as it is: a normalisation after anything else or without running statistics, a convolution that is used
    twice, parametrised, or whose weight another layer shares, and all of a network that `torch.fx` cannot trace.

    Raises:
        ValueError: the module cannot be copied.
    """
    folded = copy_module(model).eval()
    scales = {}
    for first, second in _pairs(folded):
        convolution: Any = folded.get_submodule(first)
        norm: Any = folded.get_submodule(second)
        fused = fuse_conv_bn_eval(convolution, norm)
        factor = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.detach())
        scales[f"{first}.weight"] = factor.reshape(-1, *[1] * (fused.weight.ndim - 1))
        convolution.weight, convolution.bias = fused.weight, fused.bias
        parent, _, name = second.rpartition(".")
        setattr(folded.get_submodule(parent), name, nn.Identity())
    return Folded(folded, scales)


def _pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Paths of each convolution and the batch normalisation that alone reads its output, if neither is used twice."""
    try:
        nodes = list(fx.Tracer().trace(model).nodes)
    except Exception:  # whatever a forward pass says to values that are not there yet
        return []
    uses = Counter(node.target for node in nodes if node.op == "call_module")
    uses.update(str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr")
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    places.update(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    pairs = []
    for node in nodes:
        calls = [*node.all_input_nodes, node]
        if [call.op for call in calls] != ["call_module"] * 2 or len(calls[0].users) > 1:
            continue
        first, second = (str(call.target) for call in calls)
        convolution: Any = model.get_submodule(first)
        norm: Any = model.get_submodule(second)
        own = convolution, norm, *convolution.parameters()
        once = uses[first] == uses[second] == 1 and all(places[id(part)] == 1 for part in own)
        plain = {name for name, _ in convolution.named_parameters()} in ({"weight"}, {"weight", "bias"})
        kinds = type(convolution) in CONVOLUTIONS and type(norm) in NORMS and norm.running_mean is not None
        if once and plain and kinds:
            pairs.append((first, second))
    return pairs
