"""Critical points of any index, found numerically: from toy surfaces to the loss of a small network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from descent.surfaces import Surface

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Search:
    """Where Newton's method ended, from each start.

    Attributes:
        points: `(m, n)`.
        values: `(m,)`, the function there.
        gradient_norms: `(m,)`, Euclidean; what was reached, whether or not it is small.
        eigenvalues: `(m, n)` of the Hessian there, in ascending order.
        iterations: `(m,)` steps taken.
        converged: `(m,)`, the gradient norm is at most the tolerance.
    """

    points: Array
    values: Array
    gradient_norms: Array
    eigenvalues: Array
    iterations: NDArray[np.int64]
    converged: NDArray[np.bool_]

    def distinct(self, separation: float) -> NDArray[np.int64]:
        """Indices of the converged points that are further than `separation` from every earlier one."""
        kept: list[int] = []
        for i in np.flatnonzero(self.converged):
            if all(np.linalg.norm(self.points[i] - self.points[j]) > separation for j in kept):
                kept.append(int(i))
        return np.array(kept, dtype=np.int64)


@dataclass(frozen=True)
class Newton:
    """How far and how long to search.

    Attributes:
        tolerance: of the gradient norm.
        max_iterations: steps from one start.
        longest_step: the step is shortened to this length, in units of the point.
        damping: curvatures below it, in size, are not trusted: a step along an eigenvector of curvature h is
            -g h / (h^2 + damping^2).
    """

    tolerance: float = 1e-8
    max_iterations: int = 100
    longest_step: float = 0.5
    damping: float = 1e-4


def find_critical_points(
    surface: Surface, starts: Tensor, how: Newton | None = None, progress: str | None = None
) -> Search:
    """Newton's method on the gradient, from every start: it is drawn to minima, saddles and maxima alike.

    Steps are -(H^2 + damping^2 I)^-1 H g, shortened where they are long, and not asked to lower anything. Lowering |g|
    instead ends mostly at points where H g = 0 with g != 0 (Frye et al. 2021), which are not critical. Whatever does
    not reach the tolerance is reported as not converged.

    Args:
        surface: with n variables.
        starts: `(m, n)` float64.
        how: tolerance, iterations, step length; `Newton()` if None.
        progress: text before a progress bar; None shows none.

    Raises:
        ValueError: starts of another shape or type.
    """
    how = how or Newton()
    if starts.ndim != 2 or starts.shape[1] != surface.dimension or starts.dtype != torch.float64:
        raise ValueError(
            f"starts of shape {tuple(starts.shape)}, {starts.dtype}: "
            f"expected (m, {surface.dimension}) and torch.float64"
        )
    found = [
        _newton(surface, start, how) for start in tqdm(starts, desc=progress, disable=progress is None, unit="start")
    ]
    points = torch.stack([point for point, _ in found])
    norms = np.array([float(surface.gradient(point).norm()) for point in points])
    values = np.array([float(surface.value(point)) for point in points])
    spectra = np.stack([torch.linalg.eigvalsh(surface.hessian(point)).numpy() for point in points])
    taken = np.array([count for _, count in found])
    return Search(points.numpy(), values, norms, spectra, taken, norms <= how.tolerance)


def _newton(surface: Surface, start: Tensor, how: Newton) -> tuple[Tensor, int]:
    """The last point and the number of steps; the best point instead where a step left the finite numbers."""
    point, damping = start, how.damping**2 * torch.eye(len(start), dtype=torch.float64)
    for iteration in range(how.max_iterations):
        gradient = surface.gradient(point)
        if gradient.norm() <= how.tolerance:
            return point, iteration
        hessian = surface.hessian(point)
        factor, failed = torch.linalg.cholesky_ex(hessian @ hessian + damping)
        if failed:
            return point, iteration
        step = -torch.cholesky_solve((hessian @ gradient)[:, None], factor)[:, 0]
        point = point + step * (how.longest_step / step.norm().clamp(min=how.longest_step))
    return point, how.max_iterations
