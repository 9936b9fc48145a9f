"""A reader's own function as a surface, and the search for critical points of any index, maxima and saddles included.

Descending the value finds minima only, and Newton's method, whose signs change on the way, wanders. Lowering |g|, the
norm of the gradient, ends mostly at gradient-flat points, where H g = 0 with g != 0 (Frye et al. 2021, Critical
point-finding methods reveal gradient-flat regions of deep network losses). The search here follows eigenvectors
instead: up along the k lowest, down along the others, k fixed at the start (Cerjan and Miller 1981, On finding
transition states; for any k Yin, Zhang and Zhang 2019, High-index optimization-based shrinking dimer method).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.func import grad, jacrev, vmap
from tqdm import tqdm

from descent.saddles.functions import ZERO, Array, CriticalPoint, Field, SmoothFunction

ROWS_AT_ONCE = 4096  # rows of Hessians held in memory together
LEAST_CURVATURE = 1e-7  # of the largest in size: a smaller one is raised to it before the gradient is divided by it


def scalar_field(function: Field, dimension: int, name: str) -> SmoothFunction:
    """A surface of the reader's own, derivatives by torch.func; its critical points are to be searched for.

    Args:
        function: a twice differentiable torch function of one point `(n,)`, float64, to a scalar, without side effects.
            A kink (a ReLU's) goes unseen: its Hessian is that of the smooth pieces.
        dimension: n.
        name: for titles and messages.

    Raises:
        ValueError: the function fails on a point `(n,)`, or returns no float64 scalar.
    """
    try:
        probe = function(torch.linspace(0.1, 0.9, dimension, dtype=torch.float64))
    except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(f"{name}: the function fails on a point of shape ({dimension},): {error}") from error
    if not isinstance(probe, Tensor) or probe.ndim != 0 or probe.dtype != torch.float64:
        got = f"{probe.dtype} {tuple(probe.shape)}" if isinstance(probe, Tensor) else type(probe).__name__
        raise ValueError(f"{name}: the function returned {got}: expected a torch.float64 scalar, shape ()")

    def batched(field: Field, rows: int) -> Field:
        def over(points: Tensor) -> Tensor:
            if points.ndim == 1:
                return field(points)
            flat = vmap(field, chunk_size=max(1, ROWS_AT_ONCE // rows))(points.reshape(-1, dimension))
            return flat.reshape(*points.shape[:-1], *flat.shape[1:])

        return over

    gradient = grad(function)
    hessian = jacrev(gradient, chunk_size=64)  # reverse over reverse, measured a fifth faster than forward over reverse
    return SmoothFunction(name, dimension, batched(function, 1), batched(gradient, 1), batched(hessian, dimension))


@dataclass(frozen=True)
class CriticalPointSearch:
    """Where each of m starts ended.

    Attributes:
        points: `(m, n)` float64.
        values: `(m,)` of the surface there.
        gradient_norms: `(m,)`, |g| there.
        eigenvalues: `(m, n)` of the Hessian there, ascending.
        iterations: `(m,)`, Hessians decomposed on the way.
        converged: `(m,)` bool; False is no critical point, be it gradient-flat or out of iterations.
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
    progress: str | None = None,
) -> CriticalPointSearch:
    """Search from each start for a point of zero gradient, of the index that the Hessian has at the start.

    Each step goes up along as many of the lowest eigenvectors as were negative at the start, and down along the others,
    by |gradient / curvature| in each direction. Near a point of that index this is Newton's method, and converges
    quadratically. Nothing ensures that it gets there: an end whose gradient is larger than the tolerance is reported
    as not converged.

    Args:
        surface: twice differentiable, of n variables; one Hessian `(n, n)` is held at a time.
        starts: `(m, n)`, or `(n,)` for one.
        tolerance: |g| at which a start has converged, in units of value / coordinate.
        max_iterations: steps per start.
        longest_step: a longer step is shortened to this length, in units of the coordinates.
        progress: text before a progress bar over the starts; None shows none.

    Raises:
        ValueError: starts of another shape; a tolerance, a count or a length that is not positive; a start at which
            the surface has no finite gradient and Hessian.
    """
    points = torch.as_tensor(starts, dtype=torch.float64).detach()
    points = points[None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] != surface.dimension or len(points) == 0:
        raise ValueError(f"starts of shape {np.shape(starts)}: expected (m, {surface.dimension}), at least one")
    if not (tolerance > 0 and max_iterations > 0 and longest_step > 0):
        raise ValueError(
            f"tolerance={tolerance}, max_iterations={max_iterations}, longest_step={longest_step}: "
            "expected positive numbers"
        )
    for i, point in enumerate(points):
        if not (surface.gradient(point).isfinite().all() and surface.hessian(point).isfinite().all()):
            raise ValueError(f"starts[{i}]: {surface.name} has no finite gradient and Hessian there")
    bar = tqdm(points, desc=progress, disable=progress is None, unit="start")
    ends = [_follow(surface, point, tolerance, max_iterations, longest_step) for point in bar]
    found = torch.stack([point for point, _, _, _ in ends])
    norms = torch.stack([norm for _, norm, _, _ in ends])
    eigenvalues = torch.stack([spectrum for _, _, spectrum, _ in ends])
    iterations = np.array([count for _, _, _, count in ends], dtype=np.int64)
    values = surface.value(found).numpy()
    return CriticalPointSearch(
        found.numpy(), values, norms.numpy(), eigenvalues.numpy(), iterations, norms.numpy() <= tolerance
    )


def _follow(
    surface: SmoothFunction, point: Tensor, tolerance: float, most: int, longest: float
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The end of one search: point, |g|, eigenvalues there, steps. It ends early before numbers cease to be finite."""
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


def distinct_points(search: CriticalPointSearch, separation: float) -> NDArray[np.int64]:
    """Indices of the converged ends that lie further than `separation` (Euclidean) from every earlier one kept.

    Raises:
        ValueError: `separation` is negative.
    """
    if not separation >= 0:
        raise ValueError(f"separation={separation}: expected at least 0")
    kept: list[int] = []
    for i in np.flatnonzero(search.converged):
        if not kept or np.linalg.norm(search.points[kept] - search.points[i], axis=1).min() > separation:
            kept.append(int(i))
    return np.array(kept, dtype=np.int64)


def as_critical_points(
    search: CriticalPointSearch, separation: float, tolerance: float = ZERO
) -> tuple[CriticalPoint, ...]:
    """The distinct converged ends with index and kind, in order of their starts. See `distinct_points` and `classify`.

    Next to a point with a zero curvature |g| is small already at some distance, so that eigenvalues which should be
    zero come out near the root of the search's tolerance: pass a larger `tolerance` here to have them counted as zero.

    Raises:
        ValueError: `separation` is negative.
    """
    return tuple(
        CriticalPoint.of(search.points[i], search.values[i], search.eigenvalues[i], tolerance)
        for i in distinct_points(search, separation)
    )
