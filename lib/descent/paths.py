"""Paths of `torch.optim` optimisers on surfaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from descent.surfaces import Surface

Array = NDArray[np.float64]
MakeOptimiser = Callable[[list[Tensor]], Optimizer]


@dataclass(frozen=True)
class Path:
    """Where an optimiser went; entry 0 is the start.

    Attributes:
        points: `(T + 1, ..., n)`.
        values: `(T + 1, ...)`, the function at the points.
        gradient_norms: `(T + 1, ...)`, Euclidean.
    """

    points: Array
    values: Array
    gradient_norms: Array

    def __len__(self) -> int:
        return len(self.points) - 1


def descend(
    surface: Surface,
    start: Tensor,
    optimiser: MakeOptimiser,
    steps: int,
    noise: tuple[float, torch.Generator] | None = None,
) -> Path:
    """Run a real optimiser of `torch.optim` on a surface.

    Args:
        surface: gives the gradient, in closed form.
        start: `(..., n)` float64; leading dimensions are independent runs: torch's optimisers act on each entry alone.
        optimiser: makes it from the list that holds the point, such as `lambda p: torch.optim.SGD(p, lr=0.001)`.
        steps: how many.
        noise: (standard deviation per coordinate, generator) of Gaussian noise added to every gradient.

    Returns:
        The path. It ends early where every run has left the finite numbers (a surface may be unbounded below); a single
        run of several that has done so goes on as NaN or infinity.

    Raises:
        ValueError: a start of another dimension or type, or no step.
    """
    if start.shape[-1:] != (surface.dimension,) or start.dtype != torch.float64:
        raise ValueError(
            f"start of shape {tuple(start.shape)}, {start.dtype}: expected (..., {surface.dimension}) and torch.float64"
        )
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least 1")
    point = start.clone().requires_grad_()
    optimizer = optimiser([point])
    points = [start.clone()]
    for _ in range(steps):
        with torch.no_grad():
            point.grad = surface.gradient(point)
            if noise is not None:
                point.grad += noise[0] * torch.randn(point.shape, dtype=torch.float64, generator=noise[1])
        optimizer.step()
        if not torch.isfinite(point.detach()).any():
            break
        points.append(point.detach().clone())
    path = torch.stack(points)
    return Path(path.numpy(), surface.value(path).numpy(), surface.gradient(path).norm(dim=-1).numpy())
