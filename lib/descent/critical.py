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
    """Where the search ended, from each start.

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
class Following:
    """How far and how long to search.

    Attributes:
        tolerance: of the gradient norm.
        max_iterations: steps from one start.
        longest_step: a step is shortened to this length, in units of the point.
        least_curvature: smaller ones, in size, are raised to it before the gradient is divided by them.
    """

    tolerance: float = 1e-8
    max_iterations: int = 150
    longest_step: float = 0.5
    least_curvature: float = 1e-3


def find_critical_points(
    surface: Surface, starts: Tensor, how: Following | None = None, progress: str | None = None
) -> Search:
    """Critical points by eigenvector following, one from every start, of the index that the Hessian has at the start.

    Along as many of the lowest eigenvectors as were negative at the start the step goes up, along all others down, each
    time by |gradient / curvature| and shortened where it is long (Cerjan and Miller 1981; for any index Yin, Zhang and
    Zhang 2019). Near a point of that index this is Newton's method. Newton's method itself, whose signs change on
    the way, wanders; and lowering |g| ends mostly where H g = 0 with g != 0, which is no critical point (Frye et al.
    2021). Whatever does not reach the tolerance is reported as not converged.

    Args:
        surface: with n variables.
        starts: `(m, n)` float64.
        how: tolerance, iterations, step length; `Following()` if None.
        progress: text before a progress bar; None shows none.

    Raises:
        ValueError: starts of another shape or type, or not finite.
    """
    how = how or Following()
    if starts.ndim != 2 or starts.shape[1] != surface.dimension or starts.dtype != torch.float64:
        raise ValueError(
            f"starts of shape {tuple(starts.shape)}, {starts.dtype}: "
            f"expected (m, {surface.dimension}) and torch.float64"
        )
    if not torch.isfinite(starts).all():
        raise ValueError("starts: expected finite numbers only")
    bar = tqdm(starts, desc=progress, disable=progress is None, unit="start")
    found = [_follow(surface, start, how) for start in bar]
    points = torch.stack([point for point, _, _ in found])
    norms = np.array([float(surface.gradient(point).norm()) for point in points])
    values = np.array([float(surface.value(point)) for point in points])
    spectra = torch.stack([spectrum for _, spectrum, _ in found]).numpy()
    taken = np.array([count for _, _, count in found])
    return Search(points.numpy(), values, norms, spectra, taken, norms <= how.tolerance)


def _follow(surface: Surface, start: Tensor, how: Following) -> tuple[Tensor, Tensor, int]:
    """The last point, the Hessian's eigenvalues there, the number of steps; stops where numbers cease to be finite."""
    point, sign = start, None
    eigenvalues, vectors = torch.linalg.eigh(surface.hessian(point))
    for iteration in range(how.max_iterations):
        gradient = surface.gradient(point)
        if gradient.norm() <= how.tolerance:
            return point, eigenvalues, iteration
        sign = torch.where(eigenvalues < 0, 1.0, -1.0) if sign is None else sign
        lengths = (vectors.mT @ gradient) / eigenvalues.abs().clamp(min=how.least_curvature)
        step = vectors @ (sign * lengths)
        nearer = point + step * (how.longest_step / step.norm().clamp(min=how.longest_step))
        hessian = surface.hessian(nearer)
        if not torch.isfinite(hessian).all():
            return point, eigenvalues, iteration
        point = nearer
        eigenvalues, vectors = torch.linalg.eigh(hessian)
    return point, eigenvalues, how.max_iterations
