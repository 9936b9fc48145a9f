"""Toy surfaces with value, gradient, Hessian and critical points in closed form.

Points are float64 tensors `(..., n)`: every leading dimension is a batch. The tests hold them against torch.func.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Kind = Literal["minimum", "saddle", "maximum", "degenerate saddle", "degenerate"]
Field = Callable[[Tensor], Tensor]
Array = NDArray[np.float64]
ZERO = 1e-8  # an eigenvalue below this share of the largest counts as zero


def classify(eigenvalues: ArrayLike, tolerance: float = ZERO) -> tuple[int, Kind]:
    """The index (number of negative eigenvalues) and the kind of a critical point, from its Hessian's spectrum `(n,)`.

    An eigenvalue of at most `tolerance * max(1, max |eigenvalue|)` counts as zero, and one such makes the point
    degenerate: a "degenerate saddle" where the others have both signs, else "degenerate", for the second derivative
    cannot say more.

    Raises:
        ValueError: no eigenvalue, or one that is not finite.
    """
    values = np.asarray(eigenvalues, float).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"eigenvalues={values}: expected at least one, all finite")
    signs = np.where(np.abs(values) <= tolerance * max(1.0, np.abs(values).max()), 0, np.sign(values))
    index, above = int((signs < 0).sum()), int((signs > 0).sum())
    if index + above < values.size:
        return index, "degenerate saddle" if index and above else "degenerate"
    return index, "minimum" if index == 0 else "maximum" if above == 0 else "saddle"


@dataclass(frozen=True)
class CriticalPoint:
    """A point at which the gradient is zero.

    Attributes:
        point: `(n,)` float64.
        value: of the surface there.
        eigenvalues: `(n,)` float64, of the Hessian there, ascending.
        index: the number of negative ones.
        kind: what the point is.
    """

    point: Array
    value: float
    eigenvalues: Array
    index: int
    kind: Kind

    @classmethod
    def of(cls, point: ArrayLike, value: float, eigenvalues: ArrayLike, tolerance: float = ZERO) -> CriticalPoint:
        """Index and kind by `classify`; the eigenvalues may come in any order."""
        ascending = np.sort(np.asarray(eigenvalues, float))
        return cls(np.array(point, float), float(value), ascending, *classify(ascending, tolerance))


@dataclass(frozen=True)
class SmoothFunction:
    """A function of n variables with its derivatives; each takes points `(..., n)`, float64.

    Attributes:
        name: for titles and messages.
        dimension: n.
        value: `(..., n) -> (...)`.
        gradient: `(..., n) -> (..., n)`.
        hessian: `(..., n) -> (..., n, n)`.
        critical_points: all of them in closed form, or () where they must be searched for.
    """

    name: str
    dimension: int
    value: Field
    gradient: Field
    hessian: Field
    critical_points: tuple[CriticalPoint, ...] = ()

    def __post_init__(self) -> None:
        for part in ("value", "gradient", "hessian"):
            object.__setattr__(self, part, self._checked(getattr(self, part)))

    def _checked(self, field: Field) -> Field:
        def checked(points: Tensor) -> Tensor:
            points = torch.as_tensor(points, dtype=torch.float64)
            if points.ndim == 0 or points.shape[-1] != self.dimension:
                raise ValueError(
                    f"points of shape {tuple(points.shape)}: expected (..., {self.dimension}), {self.name}"
                )
            return field(points)

        return checked


def _matrix(rows: list[list[Tensor]]) -> Tensor:
    """Entries of shape `(...)` -> `(..., n, n)`."""
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def classic_saddle() -> SmoothFunction:
    """x^2 - y^2: curvatures 2 and -2, one saddle of index 1 at the origin."""
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    return SmoothFunction(
        "classic saddle",
        2,
        lambda p: (signs * p * p).sum(-1),
        lambda p: 2 * signs * p,
        lambda p: torch.diag(2 * signs).expand(*p.shape, 2),
        (CriticalPoint.of([0, 0], 0, [-2, 2]),),
    )


def monkey_saddle() -> SmoothFunction:
    """x^3 - 3 x y^2: the origin's Hessian is zero, yet three ways lead down and three up."""
    origin = CriticalPoint(np.zeros(2), 0.0, np.zeros(2), 0, "degenerate saddle")
    return SmoothFunction(
        "monkey saddle",
        2,
        lambda p: p[..., 0] ** 3 - 3 * p[..., 0] * p[..., 1] ** 2,
        lambda p: torch.stack([3 * p[..., 0] ** 2 - 3 * p[..., 1] ** 2, -6 * p[..., 0] * p[..., 1]], -1),
        lambda p: 6 * _matrix([[p[..., 0], -p[..., 1]], [-p[..., 1], -p[..., 0]]]),
        (origin,),
    )


def saddle_curvatures(dimension: int, index: int, condition: float) -> Array:
    """Curvatures `(dimension,)`: positive ones log-spaced from 1 to 1/condition, then `index` of -1/condition.

    The ways down are the flattest directions, the hard case for a first-order method; a single positive one is 1.

    Raises:
        ValueError: `condition` below 1, or `index` not in 1..dimension - 1.
    """
    if not (math.isfinite(condition) and condition >= 1):
        raise ValueError(f"condition={condition}: expected at least 1, and finite")
    if not 1 <= index < dimension:
        raise ValueError(f"index={index}: expected 1 to {dimension - 1}, below the dimension")
    return np.append(np.geomspace(1, 1 / condition, dimension - index), np.full(index, -1 / condition))


def quadratic(curvatures: ArrayLike | Tensor, rotation: ArrayLike | Tensor | None = None) -> SmoothFunction:
    """1/2 sum_i h_i (Q x)_i^2 in n dimensions; its one critical point, the origin, has as many descents as h negatives.

    Args:
        curvatures: h, `(n,)`. A zero makes the origin degenerate, one point of a flat subspace.
        rotation: Q, orthogonal, `(n, n)`, such as scipy.stats.ortho_group draws; or a batch `(m, n, n)`, and then
            points are `(..., m, n)`, each row with its own rotation. None is the identity.

    Raises:
        ValueError: a curvature that is not finite, or Q of another shape or not orthogonal.
    """
    h = torch.as_tensor(curvatures, dtype=torch.float64).clone()
    if h.ndim != 1 or len(h) == 0 or not h.isfinite().all():
        raise ValueError(f"curvatures={h.tolist()}: expected (n,), all finite")
    n = len(h)
    Q = torch.eye(n, dtype=torch.float64) if rotation is None else torch.as_tensor(rotation, dtype=torch.float64)
    if Q.ndim not in (2, 3) or Q.shape[-2:] != (n, n):
        raise ValueError(f"rotation of shape {tuple(Q.shape)}: expected ({n}, {n}) or (m, {n}, {n})")
    if not torch.allclose(Q @ Q.mT, torch.eye(n, dtype=Q.dtype), rtol=0, atol=1e-10):
        raise ValueError("rotation: expected orthogonal matrices, Q Q^T within 1e-10 of the identity")
    matrix = Q.mT @ (h[:, None] * Q)

    form = "ij,...j->...i" if matrix.ndim == 2 else "mij,...mj->...mi"  # one product, however many leading dimensions

    def gradient(p: Tensor) -> Tensor:
        return torch.einsum(form, matrix, p)

    return SmoothFunction(
        f"quadratic in {n} dimensions",
        n,
        lambda p: (p * gradient(p)).sum(-1) / 2,
        gradient,
        lambda p: matrix.expand(*p.shape, n),
        (CriticalPoint.of(np.zeros(n), 0, h.numpy()),),
    )


def himmelblau() -> SmoothFunction:
    """A^2 + B^2 with A = x^2 + y - 11, B = x + y^2 - 7: four minima, four saddles, a maximum (Himmelblau 1972).

    The gradient (4xA + 2B, 2A + 4yB) with B = -2xA from its first entry leaves 2A (1 - 4xy) = 0. Either A = B = 0, so
    x^4 - 22x^2 + x + 114 = 0, or y = 1/(4x), so 32x^5 - 336x^3 - 104x^2 + 1 = 0: nine roots, and all are real.
    """

    def parts(p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, y = p[..., 0], p[..., 1]
        return x, y, x * x + y - 11, x + y * y - 7

    def value(p: Tensor) -> Tensor:
        _, _, A, B = parts(p)
        return A * A + B * B

    def gradient(p: Tensor) -> Tensor:
        x, y, A, B = parts(p)
        return torch.stack([4 * x * A + 2 * B, 2 * A + 4 * y * B], -1)

    def hessian(p: Tensor) -> Tensor:
        x, y, A, B = parts(p)
        cross = 4 * (x + y)
        return _matrix([[8 * x * x + 4 * A + 2, cross], [cross, 8 * y * y + 4 * B + 2]])

    zeros, others = np.roots([1, 0, -22, 1, 114]).real, np.roots([32, 0, -336, -104, 0, 1]).real
    roots = np.stack([np.append(zeros, others), np.append(11 - zeros**2, 1 / (4 * others))], -1)
    return _with_points(SmoothFunction("Himmelblau", 2, value, gradient, hessian), roots)


def _with_points(surface: SmoothFunction, roots: Array) -> SmoothFunction:
    """The surface with its critical points `(m, n)` polished by Newton, in order of index, then value."""
    points = torch.from_numpy(roots)
    for _ in range(3):
        points = points - torch.linalg.solve(surface.hessian(points), surface.gradient(points))
    spectra = torch.linalg.eigvalsh(surface.hessian(points)).numpy()
    found = [CriticalPoint.of(p, v, e) for p, v, e in zip(points.numpy(), surface.value(points), spectra, strict=True)]
    ordered = tuple(sorted(found, key=lambda one: (one.index, round(one.value, 9), *one.point)))  # minima tie at 0
    return SmoothFunction(surface.name, surface.dimension, surface.value, surface.gradient, surface.hessian, ordered)


def rosenbrock(a: float = 1.0, b: float = 100.0) -> SmoothFunction:
    """(a - x)^2 + b (y - x^2)^2: a curved valley with one critical point, the minimum (a, a^2) (Rosenbrock 1960).

    Two dimensions only: chains in more have critical points that no closed form gives.

    Raises:
        ValueError: `b` is not positive.
    """
    if not b > 0:
        raise ValueError(f"b={b}: expected a positive number")

    def hessian(p: Tensor) -> Tensor:
        x, y = p[..., 0], p[..., 1]
        return _matrix([[2 - 4 * b * y + 12 * b * x * x, -4 * b * x], [-4 * b * x, torch.full_like(x, 2 * b)]])

    def gradient(p: Tensor) -> Tensor:
        x, rise = p[..., 0], p[..., 1] - p[..., 0] ** 2
        return torch.stack([-2 * (a - x) - 4 * b * x * rise, 2 * b * rise], -1)

    def value(p: Tensor) -> Tensor:
        return (a - p[..., 0]) ** 2 + b * (p[..., 1] - p[..., 0] ** 2) ** 2

    return _with_points(SmoothFunction("Rosenbrock", 2, value, gradient, hessian), np.array([[a, a * a]], float))
