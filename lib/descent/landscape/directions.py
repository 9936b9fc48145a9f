"""Directions in weight space along which a loss is drawn: random ones, and those from one network to another."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from descent.repro.seeding import torch_generator

Direction = dict[str, Tensor]
Scaling = Literal["filter", "layer", "none"]
TINY = 1e-10  # Li et al.'s guard against a filter of norm zero


def weight_matrices(model: nn.Module) -> Direction:
    """The parameters of more than one dimension, by name and detached: those that a random direction moves.

    Biases and batch normalisation stay where they are, as in the code of Li et al. 2018.

    Raises:
        ValueError: the model has none.
    """
    matrices = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.ndim > 1}
    if not matrices:
        raise ValueError("the model has no parameter of more than one dimension: no direction to draw")
    return matrices


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
        ValueError: an unknown scaling.
    """
    if scaling not in get_args(Scaling):
        raise ValueError(f"scaling={scaling!r}: expected one of {', '.join(get_args(Scaling))}")
    if scaling == "none":
        return dict(direction)
    return {name: part * _ratio(weights[name], part, scaling == "filter") for name, part in direction.items()}


def _ratio(weight: Tensor, part: Tensor, by_filter: bool) -> Tensor:
    """||w|| / ||d|| of each filter, or of the whole tensor, in a shape that multiplies it."""
    dims = tuple(range(1, part.ndim)) if by_filter else tuple(range(part.ndim))
    weight_norm: Tensor = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
    part_norm: Tensor = torch.linalg.vector_norm(part, dim=dims, keepdim=True)
    return weight_norm / (part_norm + TINY)


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
    drawn = {name: torch.randn(w.shape, generator=generator).to(w) for name, w in weights.items()}
    return rescale_direction(drawn, weights, scaling)


def direction_between(start: nn.Module, end: nn.Module) -> Direction:
    """All parameters and batch statistics of `end` less those of `start`, along which one interpolates between them.

    Raises:
        ValueError: the networks differ in a name or a shape.
    """
    first, second = start.state_dict(), end.state_dict()
    for name in [*first, *second]:
        shapes = [tuple(state[name].shape) if name in state else "none" for state in (first, second)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name!r} has shapes {shapes[0]} and {shapes[1]}: expected two networks of one kind")
    return {name: second[name] - first[name] for name in first if first[name].is_floating_point()}


def network_at(model: nn.Module, directions: Sequence[Direction], point: ArrayLike) -> nn.Module:
    """A copy of the network at weights + sum of coordinates x directions; a running variance below zero becomes zero.

    Args:
        model: any module; it stays as it is.
        directions: name -> tensor, of parameters or buffers.
        point: `(k,)`, one coordinate for each direction.

    Raises:
        ValueError: another number of coordinates than of directions, or a direction that does not fit the model.

    Examples:
        Half way from one network to another:

        >>> start, end = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> middle = network_at(start, [direction_between(start, end)], [0.5])
        >>> torch.allclose(middle.weight, (start.weight + end.weight) / 2)
        True
    """
    coordinates = np.asarray(point, float)
    if coordinates.shape != (len(directions),):
        raise ValueError(f"point of shape {coordinates.shape}: expected ({len(directions)},), one a direction")
    check_fit(model, directions)
    result = copy.deepcopy(model)
    state = result.state_dict()
    with torch.no_grad():
        for coordinate, direction in zip(coordinates, directions, strict=True):
            for name, part in direction.items():
                state[name].add_(part, alpha=float(coordinate))
        for name in batch_norm_variances(set().union(*directions)):
            state[name].clamp_(min=0)
    return result


def batch_norm_variances(names: Iterable[str]) -> list[str]:
    """The names among these of running variances, which a line through two networks may lead below zero."""
    return [name for name in names if name.rsplit(".", 1)[-1] == "running_var"]


def check_fit(model: nn.Module, directions: Sequence[Direction]) -> None:
    """Refuse directions that do not fit the model.

    Raises:
        ValueError: with the first name that the model lacks, or whose shape differs from the model's.
    """
    state = model.state_dict()
    for number, direction in enumerate(directions):
        for name, part in direction.items():
            if name not in state:
                raise ValueError(f"direction {number} moves {name!r}, which the model lacks")
            if part.shape != state[name].shape:
                shapes = f"{tuple(part.shape)}; the model's is {tuple(state[name].shape)}"
                raise ValueError(f"direction {number} has {name!r} of shape {shapes}")
