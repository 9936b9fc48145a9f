"""Batch normalisation, in evaluation mode an affine map, folded into the convolution before it, at no cost."""

from __future__ import annotations

import copy
import dis
import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ELSEWHERE = (
    "weights are read that no copy has, by a lambda, closure or hook that holds the network or its tensors, through a "
    "view of a parameter, or in a result that was kept; expected modules that read their own parameters, and hooks and "
    "losses that read the module which they are given"
)
LEAVES = (type, ModuleType, str, bytes, int, float, type(None))
REACH = 20_000  # objects that are looked through in search of such
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


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers themselves, by each of their names; a `state_dict` may be overridden by copies."""
    return {
        f"{place}.{name}" if place else name: part
        for place, module in model.named_modules(remove_duplicate=False)
        for name, part in (*module._parameters.items(), *module._buffers.items())
        if part is not None
    }


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


def counters(model: nn.Module) -> dict[str, float]:
    """The plain numbers that the modules of a network keep, by name."""
    named = [(f"{place}.{name}", value) for place, m in model.named_modules() for name, value in vars(m).items()]
    return {name.lstrip("."): value for name, value in named if isinstance(value, int | float)}


@contextmanager
def moved_in_place(model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """The network itself, in evaluation mode and at these weights; afterwards it is as it was, to the last bit."""
    state, kept = state_of(model), dict[str, Tensor]()
    modules = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    try:
        model.eval()
        for name, part in weights.items():
            kept[name] = state[name].data.clone()
            state[name].data.copy_(part)  # a graph that the caller keeps does not notice
        yield
    finally:
        for name, part in kept.items():
            if not torch.equal(state[name].data, part):
                state[name].data.copy_(part)
        for module, attributes, buffers in modules:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.update(buffers)


def held_elsewhere(model: nn.Module) -> str:
    """By what a copy would read tensors of the original, such as ", as through 'act' of ''"; empty if by nothing.

    A deep copy follows objects and methods, but takes functions as they are, with all that they hold, and separates
    views from their tensors.
    """
    state = state_of(model).values()
    own, whole = {id(part) for part in (*model.modules(), *state)}, {memory(part) for part in state}
    places = {part.untyped_storage().data_ptr() for part in state if part.layout is torch.strided} - {0}
    for place, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        held = {} if kinds & {"ScriptModule", "OptimizedModule"} else {"forward": type(module).forward, **vars(module)}
        waiting, seen = [(name, thing, False) for name, thing in held.items()], set[tuple[int, bool]]()
        while waiting and len(seen) < REACH:
            name, thing, within = waiting.pop()
            if isinstance(thing, LEAVES) or (id(thing), within) in seen:
                continue
            seen.add((id(thing), within))
            part = torch.from_numpy(thing) if isinstance(thing, np.ndarray) and thing.dtype.kind == "f" else thing
            strided = isinstance(part, Tensor) and part.layout is torch.strided and not is_lazy(part)
            view = strided and part.untyped_storage().data_ptr() in places and (within or memory(part) not in whole)
            if view or (within and id(thing) in own):
                return f", as through {name!r} of {place!r}"
            if not isinstance(thing, Tensor | nn.Module):
                function = isinstance(thing, FunctionType)
                parts = _held_by(thing) if function else gc.get_referents(thing)
                waiting += [(name, part, within or function) for part in parts]
    return ""


def _held_by(function: FunctionType) -> list[Any]:
    """What a function may read beside its arguments: of its closure, its defaults, and the globals that it names."""
    if (function.__module__ or "").partition(".")[0] == "torch":
        return []
    codes, names = [function.__code__], set[str]()
    for code in codes:
        names |= {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
        codes += [part for part in code.co_consts if isinstance(part, CodeType)]
    cells = [cell for cell in function.__closure__ or () if gc.get_referents(cell)]
    globals_ = [function.__globals__[name] for name in names if name in function.__globals__]
    return [*(cell.cell_contents for cell in cells), function.__defaults__, function.__kwdefaults__, *globals_]


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
        untouched = not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in own[:2])
        kinds = type(convolution) in CONVOLUTIONS and type(norm) in NORMS and norm.running_mean is not None
        if once and plain and kinds and untouched:
            pairs.append((first, second))
    return pairs
