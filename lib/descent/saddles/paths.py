"""Paths that optimisers of `torch.optim` take over a smooth function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.optim import Optimizer

from descent.repro.numbers import check_whole
from descent.saddles.functions import SmoothFunction, as_points

MIXING = {"LBFGS", "Muon", "Adafactor"}  # optimisers for which the coordinates of a tensor belong together


@dataclass(frozen=True)
class DescentPath:
    """The points that one run, or many at once, passed through; entry 0 is the start.

    Attributes:
        points: `(T + 1, ..., n)` float64, with T the steps taken.
        values: `(T + 1, ...)` of the function.
        gradient_norms: `(T + 1, ...)` of the function's gradient, without the noise.
    """

    points: NDArray[np.float64]
    values: NDArray[np.float64]
    gradient_norms: NDArray[np.float64]


def follow_optimiser(
    surface: SmoothFunction,
    starts: ArrayLike | Tensor,
    optimiser: Callable[[list[Tensor]], Optimizer],
    steps: int,
    *,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> DescentPath:
    """Take `steps` steps of an optimiser, such as `lambda tensors: torch.optim.SGD(tensors, lr=0.01)`.

    All starts are one tensor to the optimiser. Optimisers that treat each coordinate alone, such as SGD and Adam, leave
    the runs unrelated; one that mixes coordinates, such as LBFGS, needs a call for each start. LBFGS evaluates the
    function several times within a step; `noise` is drawn for each evaluation.

    A run ends where its point, value or gradient is no longer finite, as on a function without a lower bound. From
    there on its entries are NaN. Steps at which every run has ended are left off, so that a single run has finite
    entries only.

    Args:
        surface: the function to descend.
        starts: `(..., n)`, each leading entry one run.
        optimiser: makes the optimiser from a list that holds the one tensor of points.
        steps: optimiser steps.
        noise: standard deviation of normal noise added to each coordinate of each gradient.
        generator: draws the noise.

    Raises:
        ValueError: `steps` below 1, a start that is complex or not finite, noise that is negative, not finite or
            without a generator; an optimiser of another tensor, or one that would mix several runs.

    Examples:
        >>> from descent.saddles import classic_saddle
        >>> path = follow_optimiser(classic_saddle(), [1.0, 0.5], lambda tensors: torch.optim.SGD(tensors, lr=0.25), 2)
        >>> path.points.tolist()
        [[1.0, 0.5], [0.5, 0.75], [0.25, 1.125]]
    """
    points = as_points(starts).detach().clone()
    check_whole(steps=steps)
    if not (points.numel() and points.isfinite().all() and surface.value(points).isfinite().all()):
        raise ValueError(f"starts: expected finite coordinates, at least one, and finite values of {surface.name}")
    if not 0 <= noise < np.inf or (noise > 0 and generator is None):
        raise ValueError(f"noise={noise}: expected 0, or a positive number and a generator")
    optimizer = optimiser([points])
    name = type(optimizer).__name__
    if not any(held is points for group in optimizer.param_groups for held in group["params"]):
        raise ValueError(f"{name} does not hold the tensor that `optimiser` was given: expected one of that list")
    if MIXING & {kind.__name__ for kind in type(optimizer).__mro__} and points[..., 0].numel() > 1:
        raise ValueError(f"{name} would mix {points[..., 0].numel()} runs: expected a call for each start")
    known: list[Tensor] = []  # the value at points whose gradient is in place

    def lay(gradient: Tensor) -> None:
        points.grad = gradient
        if noise > 0:
            points.grad = gradient + noise * torch.randn(points.shape, dtype=points.dtype, generator=generator)

    def evaluate() -> Tensor:
        if known:
            return known.pop()
        lay(surface.gradient(points))
        return surface.value(points).sum()

    taken, alive = list[Tensor](), torch.ones(1, dtype=torch.bool)
    for _ in range(steps + 1):
        gradient, value = surface.gradient(points), surface.value(points)
        norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
        entry = torch.cat([points, value[..., None], norm], -1)
        alive = alive & entry.isfinite().all(-1, keepdim=True)
        if not alive.any():
            break
        taken.append(entry.where(alive, torch.nan))
        lay(gradient)
        known[:] = [value.sum()]
        optimizer.step(evaluate)  # type: ignore[arg-type]
    everything = torch.stack(taken).numpy()
    return DescentPath(everything[..., :-2], everything[..., -2], everything[..., -1])
