"""The shape of a loss surface: the share of it that leads down to its centre, and how far from convex it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from descent.curvature.eigen import extreme_eigenpairs
from descent.curvature.operators import hessian
from descent.landscape.directions import Direction, network_at, weight_matrices
from descent.landscape.surface import LossSurface
from descent.repro.numbers import as_real
from descent.repro.seeding import numpy_generator

Array = NDArray[np.float64]
ROUNDING = 16 * np.finfo(float).eps  # of a second difference, over the largest of its losses
EIGENVALUES = ("smallest", "largest", "residual", "converged")


def descent_centre_cosine(surface: LossSurface, centre: tuple[float, float] = (0.0, 0.0)) -> Array:
    """Cosine between steepest descent within the plane and the way to the centre, `(m, n)`.

    The gradient is the second-order difference quotient of the logarithm of the loss, which has the direction of the
    loss's own gradient and is less coarse where the loss grows steeply. The cosine is NaN at the centre, where the
    gradient vanishes, on holes (where the loss is not finite, or zero), beside them, and for the one-sided quotients of
    an edge two lines away from them as well.

    Raises:
        ValueError: fewer than three grid lines in a direction, or a loss below zero, which has no logarithm.
    """
    if min(surface.loss.shape) < 3:
        raise ValueError(f"a grid of {surface.loss.shape}: expected at least 3 lines in each direction")
    if (surface.loss < 0).any():
        raise ValueError(f"a loss of {np.nanmin(surface.loss):.3g}: expected none below zero, so add a constant to all")
    with np.errstate(divide="ignore", invalid="ignore"):
        usable = np.isfinite(surface.loss) & (surface.loss > 0)
        height = np.log(np.where(usable, surface.loss, np.nan))
        slope = np.array(np.gradient(height, surface.alpha, surface.beta, edge_order=2))
        way = np.array(np.meshgrid(centre[0] - surface.alpha, centre[1] - surface.beta, indexing="ij"))
        lengths = np.linalg.norm(slope, axis=0) * np.linalg.norm(way, axis=0)
        cosine: Array = -(slope * way).sum(0) / np.where(usable & (lengths > 0), lengths, np.nan)
    return cosine


def star_shaped_share(surface: LossSurface, centre: tuple[float, float] = (0.0, 0.0)) -> float:
    """Share of the grid from which a small gradient step within the plane comes nearer to the centre, 0 to 1.

    It is 1 for a surface that falls towards its centre along every ray, whose level sets are then star-shaped, and
    about one half for a surface that has nothing to do with the centre. Points at which `descent_centre_cosine` is NaN
    do not count.

    Raises:
        ValueError: no point counts.

    Examples:
        >>> axis = np.linspace(-1, 1, 5)
        >>> bowl = LossSurface(axis, axis, {"loss": 1 + axis[:, None] ** 2 + axis**2}, images=1, precision="float32")
        >>> star_shaped_share(bowl)
        1.0
    """
    cosine = descent_centre_cosine(surface, centre)
    counted = np.isfinite(cosine)
    if not counted.any():
        raise ValueError(f"none of {cosine.size} grid points has a finite gradient")
    return float((cosine[counted] > 0).mean())


def plane_nonconvexity(surface: LossSurface) -> Array:
    """`nonconvexity_ratio` of the 2 x 2 Hessian within the plane, `(m - 2, n - 2)` for the inner grid points.

    The Hessian is that of second-order difference quotients of the loss on its equally spaced grid. Its two eigenvalues
    are weighted means of the full Hessian's (Li et al. 2018, section 6) and lie between its extremes: a ratio of zero
    does not mean that the loss is convex, while a large one means that it is not. Beside holes the ratio is NaN.

    Raises:
        ValueError: fewer than three grid lines in a direction, or unequal steps.
    """
    if min(surface.loss.shape) < 3:
        raise ValueError(f"a grid of {surface.loss.shape}: expected at least 3 lines in each direction")
    steps = [np.diff(axis) for axis in (surface.alpha, surface.beta)]
    if not all(step[0] and np.allclose(step, step[0], atol=0) for step in steps):
        raise ValueError("the grid has unequal steps, or steps of zero: expected equal ones in each direction")
    loss, (a, b) = np.where(np.isfinite(surface.loss), surface.loss, np.nan), (step[0] for step in steps)
    inner = loss[1:-1, 1:-1]
    aa = (loss[2:, 1:-1] - 2 * inner + loss[:-2, 1:-1]) / a**2
    bb = (loss[1:-1, 2:] - 2 * inner + loss[1:-1, :-2]) / b**2
    ab = (loss[2:, 2:] - loss[2:, :-2] - loss[:-2, 2:] + loss[:-2, :-2]) / (4 * a * b)
    middle, radius = (aa + bb) / 2, np.hypot((aa - bb) / 2, ab)
    rounding = ROUNDING * np.abs(sliding_window_view(loss, (3, 3))).max((2, 3)) * (1 / a**2 + 1 / b**2)
    low, high = (np.where(np.abs(end) <= rounding, 0, end) for end in (middle - radius, middle + radius))
    return nonconvexity_ratio(low, high)


@dataclass(frozen=True, eq=False)
class HessianExtremes:
    """Extreme eigenvalues of the Hessian of the cross-entropy at points of a plane; a task for `descent.repro.sweep`.

    The Hessian is that of the mean over all examples, in all weights of more than one dimension: biases and batch
    normalisation are left out (Li et al. 2018, section 6). It is taken on copies of the model, in evaluation mode and
    in the weights' own precision.

    Attributes:
        model: a trained network.
        inputs: `(n, ...)`.
        targets: `(n,)` classes.
        directions: as for `Evaluator`.
        tolerance: of the eigenvalues, relative to the larger one; 1e-2 is that of Li et al.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    directions: Sequence[Direction]
    tolerance: float = 1e-2

    def __call__(self, points: ArrayLike) -> dict[str, Array]:
        """The extreme eigenvalues at points `(s, k)`.

        Returns:
            `smallest` and `largest` `(s,)`, in units of loss / weight^2; `residual` `(s,)`, the larger of both pairs';
            `converged` `(s,)`, 1 or 0. Where the loss or a product with its Hessian is not finite, the first three are
            NaN and `converged` is 0.
        """
        rows = [self._at(point) for point in np.atleast_2d(as_real(points, "points"))]
        return {name: np.array([row[name] for row in rows], float) for name in EIGENVALUES}

    def _at(self, point: Array) -> dict[str, float]:
        model = network_at(self.model, self.directions, point).eval()
        names = list(weight_matrices(model))
        generator = numpy_generator(0, "eigenvalues on a plane")
        try:
            operator = hessian(model, _cross_entropy, [(self.inputs, self.targets)], names)
            pairs = extreme_eigenpairs(operator, 2, "both", generator, tolerance=self.tolerance, max_matvecs=400)
        except ValueError as error:
            if "finite" not in str(error):
                raise
            return {**dict.fromkeys(EIGENVALUES, np.nan), "converged": 0.0}
        smallest, largest = pairs.values if len(pairs.values) == 2 else (np.nan, np.nan)
        return dict(zip(EIGENVALUES, (smallest, largest, pairs.residuals.max(initial=0), pairs.converged), strict=True))


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def nonconvexity_ratio(smallest: ArrayLike, largest: ArrayLike) -> Array:
    """|smallest / largest| eigenvalue of a Hessian, near 0 where the loss is almost convex (Li et al. 2018, figure 7).

    The ratio is 0 where no eigenvalue is negative, and 1 where some are and none is positive; it is NaN where one is
    not finite. Arguments and result have one shape, `(...)`.

    Raises:
        ValueError: a smallest eigenvalue above the largest.

    Examples:
        >>> nonconvexity_ratio([-1.0, 2.0, -3.0], [10.0, 5.0, -2.0])
        array([0.1, 0. , 1. ])
    """
    low, high = as_real(smallest, "smallest").astype(float), as_real(largest, "largest").astype(float)
    if (low > high).any():
        raise ValueError("a smallest eigenvalue is above the largest: expected (smallest, largest)")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(np.minimum(low, 0) / high)
    result: Array = np.where(np.isfinite(low) & np.isfinite(high), np.where(high > 0, ratio, low < 0), np.nan)
    return result
