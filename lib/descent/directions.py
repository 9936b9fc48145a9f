"""Directions in weight space along which a loss is drawn: random and rescaled, between two minima, along a training."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from descent.seeding import numpy_generator, torch_generator
from descent.spectra import gram

Direction = dict[str, Tensor]
Scaling = Literal["filter", "layer", "none"]
TINY = 1e-10  # Li et al.'s guard against a filter of norm zero
FLAT = 1e-12  # a share of the variance below it is rounding: the Gram matrix squares the path


def matrices(model: nn.Module) -> Direction:
    """The parameters of more than one dimension, by name, detached: what a direction moves.

    Biases and batch normalisation stay where they are (Li et al. 2018, section 4: `biasbn` is ignored).

    Raises:
        ValueError: the model has none.
    """
    found = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.ndim > 1}
    if not found:
        raise ValueError("the model has no parameter of more than one dimension: no direction to draw")
    return found


def rescaled(direction: Mapping[str, Tensor], weights: Mapping[str, Tensor], scaling: Scaling) -> Direction:
    """The direction with the weights' own norms.

    `filter`: d_i <- d_i ||w_i|| / ||d_i|| for each filter i, the first index of a tensor, rows of a linear layer
    included (Li et al. 2018, section 4); `layer`: the same for each tensor as a whole; `none`: as it is.

    Args:
        direction: name -> tensor.
        weights: the same names and shapes.
        scaling: which norms.

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
    wanted: Tensor = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
    found: Tensor = torch.linalg.vector_norm(part, dim=dims, keepdim=True)
    return wanted / (found + TINY)


def random_direction(model: nn.Module, seed: int, stream: str, scaling: Scaling = "filter") -> Direction:
    """A Gaussian direction over `matrices(model)`, rescaled.

    Args:
        model: gives names, shapes and norms.
        seed: with `stream`, such as "alpha" and "beta", decides every number, whatever is drawn elsewhere.
        stream: name of the direction.
        scaling: see `rescaled`.

    Raises:
        ValueError: an unknown scaling, a model without matrices, or a negative seed.
    """
    weights = matrices(model)
    generator = torch_generator(seed, f"direction {stream}")
    drawn = {name: torch.randn(w.shape, generator=generator).to(w) for name, w in weights.items()}
    return rescaled(drawn, weights, scaling)


def between(start: nn.Module, end: nn.Module) -> Direction:
    """All parameters and batch statistics of `end` less those of `start`: the line along which to interpolate.

    Raises:
        ValueError: the networks differ in a name or a shape.
    """
    first, second = start.state_dict(), end.state_dict()
    for name in [*first, *second]:
        shapes = [tuple(state[name].shape) if name in state else "none" for state in (first, second)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name!r} has shapes {shapes[0]} and {shapes[1]}: expected two networks of one kind")
    return {name: second[name] - first[name] for name in first if first[name].is_floating_point()}


def moved(model: nn.Module, directions: Sequence[Direction], point: ArrayLike) -> nn.Module:
    """A copy of the network at weights + sum of coordinates x directions; a variance below zero becomes zero.

    Args:
        model: any module; it stays as it is.
        directions: name -> tensor, of parameters or buffers.
        point: `(k,)`, one coordinate a direction.

    Raises:
        ValueError: as many coordinates as directions are needed, and directions that fit the model.
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
        for name in variances(set().union(*directions)):
            state[name].clamp_(min=0)
    return result


def variances(names: Iterable[str]) -> list[str]:
    """Those of the names that are running variances: a line between two networks may lead them below zero."""
    return [name for name in names if name.rsplit(".", 1)[-1] == "running_var"]


def check_fit(model: nn.Module, directions: Sequence[Direction]) -> None:
    """Refuse directions that do not fit the model, by the first such name.

    Raises:
        ValueError: a name that the model lacks, or another shape than the model's.
    """
    state = model.state_dict()
    for number, direction in enumerate(directions):
        for name, part in direction.items():
            if name not in state:
                raise ValueError(f"direction {number} moves {name!r}, which the model lacks")
            if part.shape != state[name].shape:
                shapes = f"{tuple(part.shape)}; the model's is {tuple(state[name].shape)}"
                raise ValueError(f"direction {number} has {name!r} of shape {shapes}")


@dataclass(frozen=True)
class TrajectoryPlane:
    """The plane of the first two principal components of a path of k weight vectors (Li et al. 2018, section 7).

    Attributes:
        directions: `(2, P)` float32, orthonormal.
        coordinates: `(k, 2)`, each point less the last one along the directions, in units of weight.
        explained: `(k - 1,)`, share of the path's variance in each principal component, descending.
        residual: `(k,)`, share of each point's squared distance from the last that the plane misses; 0 for the last.
        gram: `(k, k)` float64, products of the points less the last.
    """

    directions: NDArray[np.float32]
    coordinates: NDArray[np.float64]
    explained: NDArray[np.float64]
    residual: NDArray[np.float64]
    gram: NDArray[np.float64]


def trajectory_plane(rows: NDArray[np.floating]) -> TrajectoryPlane:
    """Principal components of weight vectors `(k, P)` along a training, the last row the end of it.

    Raises:
        ValueError: fewer than three points, an entry that is not finite, or points on one line.
    """
    if rows.ndim != 2 or len(rows) < 3:
        raise ValueError(f"rows of shape {rows.shape}: expected at least three points (k, P)")
    for number, row in enumerate(rows):
        if not np.isfinite(row).all():
            raise ValueError(f"row {number} has an entry that is not finite")
    relative = rows - rows[-1]
    products = gram(relative)
    explained = explained_variance(products)
    if explained[1] < FLAT:
        raise ValueError(f"{len(rows)} points on one line: expected a path that spans a plane")
    directions = (_combinations(products) @ relative).astype(np.float32)
    coordinates, distance = path_coordinates(products), products.diagonal()
    missed = 1 - (coordinates**2).sum(1) / np.where(distance > 0, distance, 1)
    residual = np.where(distance > 0, missed.clip(0), 0)
    return TrajectoryPlane(directions, coordinates, explained, residual, products)


def _combinations(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first two principal directions as combinations of the points, `(2, k)`, from their Gram matrix."""
    centring = np.eye(len(products)) - 1 / len(products)
    values, vectors = np.linalg.eigh(centring @ products @ centring)
    return cast("NDArray[np.float64]", (centring @ vectors[:, :-3:-1] / np.sqrt(values[:-3:-1])).T)


def path_coordinates(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each point along the first two principal directions, `(k, 2)` in units of weight, from `TrajectoryPlane.gram`."""
    return products @ _combinations(products).T


def explained_variance(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the variance in each principal component, `(k - 1,)` descending, from a Gram matrix `(k, k)`.

    Raises:
        ValueError: all points are the same.
    """
    centring = np.eye(len(products)) - 1 / len(products)
    values = np.linalg.eigvalsh(centring @ products @ centring)[::-1][:-1].clip(0)
    if values.sum() == 0:
        raise ValueError(f"{len(products)} equal points: expected a path that moves")
    return cast("NDArray[np.float64]", values / values.sum())


def random_walk(points: int, size: int, seed: int) -> NDArray[np.float64]:
    """The Gram matrix `(points, points)` of a random walk of independent steps in `size` dimensions, less its end.

    The control for `trajectory_plane`: PCA finds most of a random walk's variance in two components too. With far more
    dimensions than points, and many points, component k has the share 6 / (pi k)^2: 61 % and 15 %, together 76 %
    (Antognini & Sohl-Dickstein 2018). Drawn from the Wishart distribution of the steps' own Gram matrix, so that `size`
    costs nothing.

    Raises:
        ValueError: fewer than three points, or fewer dimensions than steps.
    """
    if points < 3 or size < points:
        raise ValueError(f"points={points}, size={size}: expected at least three points, and a size no less")
    generator = numpy_generator(seed, "random walk")
    steps = points - 1
    factor = np.tril(generator.standard_normal((steps, steps)), -1)  # Bartlett's decomposition
    factor[np.diag_indices(steps)] = np.sqrt(generator.chisquare(size - np.arange(steps)))
    walk = np.vstack([np.zeros(steps), np.cumsum(factor, axis=0)])
    walk = walk - walk[-1]
    return cast("NDArray[np.float64]", walk @ walk.T)
