"""Directions in weight space along which a loss is drawn: random ones, and those from one network to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from descent.models.folding import ELSEWHERE, copy_module, held_elsewhere, memory, state_of
from descent.repro.numbers import as_real
from descent.repro.seeding import torch_generator

Direction = dict[str, Tensor]
Scaling = Literal["filter", "layer", "none"]
TINY = 1e-10  # Li et al.'s guard against a filter of norm zero


def weight_matrices(model: nn.Module) -> Direction:
    """The parameters of more than one dimension, by name and detached: those that a random direction moves.

    Biases and batch normalisation stay where they are, as in the code of Li et al. 2018. Tied weights have one name.

    Raises:
        ValueError: the model has none, or has parameters that are complex, integers or not built yet.
    """
    firsts, parameters = tied_names(model), dict(model.named_parameters())
    matrices = {name: p.detach() for name, p in parameters.items() if p.ndim > 1 and firsts.get(name, name) == name}
    if not matrices:
        raise ValueError("the model has no parameter of more than one dimension: no direction to draw")
    if whole := [name for name, matrix in matrices.items() if not matrix.is_floating_point()]:
        raise ValueError(f"parameter {whole[0]!r} is {matrices[whole[0]].dtype}: expected floating-point numbers")
    return matrices


def tied_names(model: nn.Module) -> dict[str, str]:
    """Each name in the state of the model -> the first name of the same tensor, which tied weights share.

    Raises:
        ValueError: a parameter is complex, not built yet, or shares a part of its memory with another.
    """
    spans, parameters = [], dict(model.named_parameters())
    for name, part in (*parameters.items(), *model.named_buffers()):
        if is_lazy(part) or part.is_meta:
            raise ValueError(f"{name!r} has no numbers yet: expected a forward pass before, which builds lazy layers")
        if name in parameters and part.is_complex():
            raise ValueError(
                f"parameter {name!r} is {part.dtype}, whose imaginary part would be lost: expected real parameters, "
                "such as those of torch.view_as_real, of which the forward pass makes complex ones"
            )
        if part.layout is torch.strided and part.numel():
            steps = sum((size - 1) * step for size, step in zip(part.shape, part.stride(), strict=True))
            spans.append((part.data_ptr(), part.data_ptr() + (steps + 1) * part.element_size(), name))
    seen: dict[object, str] = {}
    firsts = {name: seen.setdefault(memory(part), name) for name, part in state_of(model).items()}
    alone = sorted(span for span in spans if firsts.get(span[2], span[2]) == span[2])
    for (_, end, one), (start, _, other) in pairwise(alone):
        if start < end and not parameters.keys().isdisjoint({one, other}):
            raise ValueError(
                f"{' and '.join(sorted([repr(one), repr(other)]))} share memory and are not one tensor: expected one "
                "parameter, of which the forward pass takes the part or the transpose"
            )
    return firsts


def rescale_direction(direction: Mapping[str, Tensor], weights: Mapping[str, Tensor], scaling: Scaling) -> Direction:
    """The direction, scaled to the norms of the weights.

    With `filter`, d_i becomes d_i ||w_i|| / ||d_i|| for each filter i, which is the first index of a tensor, so that a
    row of a linear layer is a filter (Li et al. 2018, section 4). With `layer` each tensor is scaled as a whole, and
    with `none` the direction stays as it is.

    Args:
        direction: name -> tensor.
        weights: the same names and shapes.
        scaling: whose norms are taken.

    Raises:
        ValueError: an unknown scaling, or other names or shapes than those of the weights.
    """
    if scaling not in get_args(Scaling):
        raise ValueError(f"scaling={scaling!r}: expected one of {', '.join(get_args(Scaling))}")
    if scaling == "none":
        return dict(direction)
    for name in [*direction, *weights]:
        shapes = [_shape(parts[name]) if name in parts else "none" for parts in (direction, weights)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name!r} has shapes {shapes[0]} and {shapes[1]}: expected those of the weights")
    return {name: part * _ratio(weights[name], part, scaling == "filter") for name, part in direction.items()}


def _ratio(weight: Tensor, part: Tensor, by_filter: bool) -> Tensor:
    """||w|| / ||d|| of each filter, or of the whole tensor, in a shape that multiplies it."""
    dims = tuple(range(1, part.ndim)) if by_filter else tuple(range(part.ndim))
    parts = (weight, part, weight.double(), part.double())
    own, its, wide, long = (torch.linalg.vector_norm(each, dim=dims, keepdim=True) for each in parts)
    ordinary = (own > 1e-15) & (own < 1e15) & (its > 1e-5) & (its < 1e15)  # far from where squares leave the format
    return torch.where(ordinary, own / (its + TINY), (wide / long.where(long > 0, 1)).to(own.dtype))


def random_direction(model: nn.Module, seed: int, stream: str, scaling: Scaling = "filter") -> Direction:
    """A Gaussian direction over `weight_matrices(model)`, scaled to their norms (Li et al. 2018, section 4).

    Args:
        model: gives names, shapes and norms.
        seed: decides every number together with `stream`, whatever else is drawn.
        stream: the name of the direction, such as "alpha" or "beta".
        scaling: `filter`, `layer` or `none`, see `rescale_direction`.

    Raises:
        ValueError: an unknown scaling, a model without matrices, or a negative seed.

    Examples:
        Each row of the direction has the norm of that row of the weights:

        >>> model = nn.Linear(3, 2)
        >>> direction = random_direction(model, 0, "alpha")
        >>> list(direction), torch.allclose(direction["weight"].norm(dim=1), model.weight.norm(dim=1))
        (['weight'], True)
    """
    weights = weight_matrices(model)
    generator = torch_generator(seed, f"direction {stream}")
    drawn = {name: torch.randn(w.shape, generator=generator, dtype=torch.float32).to(w) for name, w in weights.items()}
    return rescale_direction(drawn, weights, scaling)


def direction_between(start: nn.Module, end: nn.Module) -> Direction:
    """All parameters and batch statistics of `end` less those of `start`, along which one interpolates between them.

    Tied weights of `start` have one name, its first.

    Raises:
        ValueError: the networks differ in a name or a shape, weights that `start` ties are different in `end`, or a
            parameter is complex or not built yet.
    """
    firsts, _ = tied_names(start), tied_names(end)
    first, second = ({name: part.detach() for name, part in state_of(net).items()} for net in (start, end))
    for name in [*first, *second]:
        shapes = [_shape(state[name]) if name in state else "none" for state in (first, second)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name!r} has shapes {shapes[0]} and {shapes[1]}: expected two networks of one kind")
    for name, one in firsts.items():
        if name != one and not torch.equal(second[name], second[one]):
            raise ValueError(f"{name!r} is {one!r} in one network, not in the other: expected both tied, or neither")
    moving = [name for name, one in firsts.items() if name == one and first[name].is_floating_point()]
    parts = {name: (first[name], second[name]) for name in moving}  # of masks, infinities stay where they are
    return {name: torch.where(one == other, 0.0, other - one) for name, (one, other) in parts.items()}


def _shape(part: object) -> tuple[int, ...] | str:
    return tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__


def network_at(model: nn.Module, directions: Sequence[Direction], point: ArrayLike) -> nn.Module:
    """A copy of the network at weights + sum of coordinates x directions; a running variance below zero becomes zero.

    Args:
        model: any module; it stays as it is.
        directions: name -> tensor, of parameters or buffers.
        point: `(k,)`, one coordinate for each direction.

    Raises:
        ValueError: another number of coordinates than of directions, a direction that does not fit the model,
            or a network whose copy would still read tensors of the original, with the name of what holds them.

    Examples:
        Half way from one network to another:

        >>> start, end = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> middle = network_at(start, [direction_between(start, end)], [0.5])
        >>> torch.allclose(middle.weight, (start.weight + end.weight) / 2)
        True
    """
    coordinates = as_real(point, "point")
    if not isinstance(directions, Sequence) or coordinates.shape != (len(directions),):
        raise ValueError(f"point of shape {coordinates.shape}: expected ({len(directions)},), one a direction")
    if elsewhere := held_elsewhere(model):
        raise ValueError(f"a copy of the network would not move as a whole{elsewhere}: {ELSEWHERE}")
    fitted, result = fit_directions(model, directions), copy_module(model)
    state = state_of(result)
    with torch.no_grad():
        for coordinate, direction in zip(coordinates, fitted, strict=True):
            for name, part in direction.items():
                state[name].add_(part, alpha=float(coordinate))
        for name in batch_norm_variances(set().union(*fitted)):
            state[name].clamp_(min=0)
    return result


def batch_norm_variances(names: Iterable[str]) -> list[str]:
    """The names among these of running variances, which a line through two networks may lead below zero."""
    return [name for name in names if name.rsplit(".", 1)[-1] == "running_var"]


def fit_directions(model: nn.Module, directions: Sequence[Direction]) -> list[Direction]:
    """The directions, detached, with one name for each tensor that they move.

    Raises:
        ValueError: with the first name that the model lacks, whose shape differs from the model's or that is no
            floating-point number there, or that is another name of a tensor which the same direction moves otherwise.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    if not isinstance(directions, Sequence) or len(directions) == 0:
        raise ValueError("directions is empty or one alone: expected a list of one for a line, of two for a plane")
    firsts, state, fitted = tied_names(model), state_of(model), []
    for number, direction in enumerate(directions):
        if not isinstance(direction, Mapping):
            raise ValueError(f"direction {number} is a {type(direction).__name__}: expected name -> tensor")
        parts: Direction = {}
        for name, part in direction.items():
            if name not in firsts:
                raise ValueError(f"direction {number} moves {name!r}, which the model lacks")
            if not isinstance(part, Tensor) or part.shape != state[name].shape:
                shapes = f"shape {_shape(part)}; the model's is {_shape(state[name])}"
                raise ValueError(f"direction {number} has {name!r} of {shapes}")
            if part.is_complex() or not state[name].is_floating_point():
                kinds = f"a {part.dtype} to a {state[name].dtype}"
                raise ValueError(f"direction {number} adds to {name!r} {kinds}: expected floating-point numbers")
            one = firsts[name]
            if one in parts and not torch.equal(parts[one], part.to(parts[one])):
                names = f"{one!r} and {name!r}, which are one tensor,"
                raise ValueError(f"direction {number} moves {names} by different parts: expected one of the names")
            parts[one] = part.detach()
        fitted.append(parts)
    return fitted
