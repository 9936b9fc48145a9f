"""The search for critical points of any index, maxima and saddles included.

Descending the value finds minima only, and Newton's method, whose signs change on the way, wanders. Lowering the norm
of the gradient g ends mostly at gradient-flat points, where H g = 0 with g != 0 (Frye et al. 2021). The search here
follows eigenvectors instead: it goes up along the k lowest and down along the others, with k fixed at the start (Cerjan
and Miller 1981; for any k Yin, Zhang and Zhang 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from descent.repro.numbers import check_whole
from descent.saddles.functions import Array, SmoothFunction, as_points

LEAST_CURVATURE = 1e-7  # a share of the largest: smaller ones are raised to it before the gradient is divided by them


@dataclass(frozen=True)
class CriticalPointSearch:
    """The points at which the searches from m starts ended.

    Attributes:
        points: `(m, n)` float64.
        values: `(m,)` of the function there.
        gradient_norms: `(m,)`, |g| there.
        eigenvalues: `(m, n)` of the Hessian there, ascending; the index is the number of negative ones.
        iterations: `(m,)`, the steps taken.
        converged: `(m,)` bool. An end that has not converged is no critical point: it is gradient-flat, or the
            iterations did not suffice.
    """

    points: Array
    values: Array
    gradient_norms: Array
    eigenvalues: Array
    iterations: NDArray[np.int64]
    converged: NDArray[np.bool_]


def find_critical_points(
    surface: SmoothFunction,
    starts: ArrayLike | Tensor,
    *,
    tolerance: float = 1e-8,
    max_iterations: int = 150,
    longest_step: float = 0.5,
) -> CriticalPointSearch:
    """Search from each start for a point of zero gradient whose index is that of the Hessian at the start.

    Each step goes up along as many of the lowest eigenvectors as had negative eigenvalues at the start, and down along
    the others, by |gradient / curvature| in each direction. Near a point of that index this is Newton's method, which
    converges quadratically. Nothing ensures that a search gets there: an end whose gradient is larger than the
    tolerance is reported as not converged. Near a point with a zero curvature |g| is small at some distance already,
    and eigenvalues that should be zero come out near the root of the tolerance.

    Args:
        surface: twice differentiable, of n variables; one Hessian `(n, n)` is held in memory at a time.
        starts: `(m, n)`, or `(n,)` for one.
        tolerance: |g| at which a search has converged, in units of value / coordinate.
        max_iterations: steps from each start.
        longest_step: a longer step is shortened to this length, in units of the coordinates.

    Raises:
        ValueError: starts of another shape, or complex; a tolerance, a count or a length that is not positive and
            finite; a start at which the surface has no finite gradient and Hessian.

    Examples:
        Two starts, near the minimum and near the saddle of x^3 / 3 - x + y^2:

        >>> from descent.saddles import scalar_field
        >>> surface = scalar_field(lambda p: p[0] ** 3 / 3 - p[0] + p[1] ** 2, 2, "cubic")
        >>> search = find_critical_points(surface, [[0.8, 0.3], [-0.8, 0.3]])
        >>> search.points.round(6).tolist(), (search.eigenvalues < 0).sum(1).tolist()
        ([[1.0, 0.0], [-1.0, 0.0]], [0, 1])
    """
    points = as_points(starts).detach()
    points = points[None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] != surface.dimension or len(points) == 0:
        raise ValueError(f"starts of shape {np.shape(starts)}: expected (m, {surface.dimension}), at least one")
    check_whole(max_iterations=max_iterations)
    if not (0 < tolerance < np.inf and 0 < longest_step < np.inf):
        raise ValueError(
            f"tolerance={tolerance}, max_iterations={max_iterations}, longest_step={longest_step}: "
            "expected positive numbers, not infinite"
        )
    for i, point in enumerate(points):
        if not (surface.gradient(point).isfinite().all() and surface.hessian(point).isfinite().all()):
            raise ValueError(f"starts[{i}]: {surface.name} has no finite gradient and Hessian there")
    ends = [_follow(surface, point, tolerance, max_iterations, longest_step) for point in points]
    reached, norms, eigenvalues, iterations = zip(*ends, strict=True)
    points, norm = torch.stack(reached), torch.stack(norms).numpy()
    found = points.numpy(), surface.value(points).numpy(), norm, torch.stack(eigenvalues).numpy()
    return CriticalPointSearch(*found, np.array(iterations), norm <= tolerance)


def _follow(
    surface: SmoothFunction, point: Tensor, tolerance: float, most: int, longest: float
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The end of one search: point, |g|, eigenvalues there, steps taken. A step to where H is not finite ends it."""
    gradient = surface.gradient(point)
    eigenvalues, vectors = torch.linalg.eigh(surface.hessian(point))
    sign = torch.where(eigenvalues < 0, 1.0, -1.0)
    for iteration in range(most):
        if gradient.norm() <= tolerance:
            return point, gradient.norm(), eigenvalues, iteration
        least = LEAST_CURVATURE * float(eigenvalues.abs().max()) + float(np.finfo(float).tiny)
        step = vectors @ (sign * (vectors.mT @ gradient) / eigenvalues.abs().clamp(min=least))
        nearer = point + step * (longest / step.norm().clamp(min=longest))
        hessian = surface.hessian(nearer)
        if not hessian.isfinite().all():
            return point, gradient.norm(), eigenvalues, iteration
        point, gradient = nearer, surface.gradient(nearer)
        eigenvalues, vectors = torch.linalg.eigh(hessian)
    return point, gradient.norm(), eigenvalues, most
