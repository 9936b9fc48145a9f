"""Surfaces with saddles: value, gradient, Hessian and critical points in closed form, or of a function of one's own.

Everything is float64 and takes points `(..., n)` with any leading shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, jacrev, vmap

Kind = Literal["minimum", "saddle", "maximum", "degenerate saddle", "degenerate"]
Vector = NDArray[np.float64]
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CriticalPoint:
    """A point where the gradient vanishes.

    Attributes:
        point: `(n,)`.
        value: of the function there.
        eigenvalues: `(n,)` of the Hessian, in ascending order.
        index: how many of them are negative.
        kind: minimum, saddle or maximum; with a zero eigenvalue, `degenerate saddle` where the function is known to
            take values on both sides, else `degenerate`: the Hessian alone cannot tell.
    """

    point: Vector
    value: float
    eigenvalues: Vector
    index: int
    kind: Kind


def classify(eigenvalues: Vector, tolerance: float = 1e-9) -> tuple[int, Kind]:
    """Index and kind from a Hessian's eigenvalues `(n,)`; below `tolerance` of the largest (or 1) one counts as 0."""
    scale = tolerance * max(1.0, float(np.abs(eigenvalues).max()))
    negative, positive = int((eigenvalues < -scale).sum()), int((eigenvalues > scale).sum())
    if negative and positive:
        return negative, "saddle" if negative + positive == len(eigenvalues) else "degenerate saddle"
    if negative + positive < len(eigenvalues):
        return negative, "degenerate"
    return negative, "maximum" if negative else "minimum"


@dataclass(frozen=True)
class Surface:
    """A function of n variables with its derivatives.

    Attributes:
        name: of the function.
        dimension: n.
        value: `(..., n) -> (...)`.
        gradient: `(..., n) -> (..., n)`.
        hessian: `(..., n) -> (..., n, n)`.
        critical_points: all of them, where they are known in closed form; empty for a function of one's own.
    """

    name: str
    dimension: int
    value: Function
    gradient: Function
    hessian: Function
    critical_points: tuple[CriticalPoint, ...] = ()

    def critical_point(self, point: Vector, kind: Kind | None = None) -> CriticalPoint:
        """Describe a point `(n,)` at which the gradient is known to vanish; `kind` where the Hessian cannot tell."""
        at = torch.as_tensor(point, dtype=torch.float64)
        eigenvalues = torch.linalg.eigvalsh(self.hessian(at)).numpy()
        index, found = classify(eigenvalues)
        return CriticalPoint(np.asarray(point, float), float(self.value(at)), eigenvalues, index, kind or found)

    def with_critical_points(self, points: Vector, kind: Kind | None = None) -> Surface:
        """The same surface with these critical points `(m, n)` described."""
        known = tuple(self.critical_point(point, kind) for point in points)
        return Surface(self.name, self.dimension, self.value, self.gradient, self.hessian, known)


def _matrix(*rows: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def classic_saddle() -> Surface:
    """The surface z = x^2 - y^2: one saddle of index 1, at the origin."""
    surface = quadratic(np.array([2.0, -2.0]))
    return Surface("classic saddle", 2, surface.value, surface.gradient, surface.hessian, surface.critical_points)


def monkey_saddle() -> Surface:
    """The surface z = x^3 - 3 x y^2: at the origin the Hessian vanishes, and three valleys meet three ridges."""

    def value(p: Tensor) -> Tensor:
        return p[..., 0] ** 3 - 3 * p[..., 0] * p[..., 1] ** 2

    def gradient(p: Tensor) -> Tensor:
        x, y = p.unbind(-1)
        return torch.stack((3 * (x**2 - y**2), -6 * x * y), -1)

    def second(p: Tensor) -> Tensor:
        x, y = p.unbind(-1)
        return _matrix((6 * x, -6 * y), (-6 * y, -6 * x))

    surface = Surface("monkey saddle", 2, value, gradient, second)
    return surface.with_critical_points(np.zeros((1, 2)), "degenerate saddle")


def saddle_curvatures(dimension: int, index: int, condition: float) -> Vector:
    """Curvatures `(dimension,)` of a saddle, from 1 down: the negative ones are the flattest.

    `dimension - index` positive ones are spread evenly on a logarithmic scale from 1 to 1 / condition (a single one is
    1), and `index` negative ones are all -1 / condition, the hard case for a method that follows the gradient.

    Raises:
        ValueError: an index that is not in 1..dimension - 1, or a condition number below 1.
    """
    if not 1 <= index < dimension or condition < 1:
        raise ValueError(
            f"dimension={dimension}, index={index}, condition={condition}: "
            "expected 1 <= index < dimension and condition >= 1"
        )
    positive = np.logspace(0, -math.log10(condition), dimension - index)
    return np.concatenate([positive, np.full(index, -1 / condition)])


def quadratic(curvatures: Vector, rotation: Tensor | None = None) -> Surface:
    """The quadratic f = sum_i h_i (Q x)_i^2 / 2: index and kind from the signs of the curvatures h `(n,)`.

    Args:
        curvatures: the Hessian's eigenvalues, none of them zero.
        rotation: Q, orthogonal, `(n, n)`; or `(m, n, n)`, and row j of points `(..., m, n)` then has rotation j.

    Raises:
        ValueError: a curvature that is zero or not finite, or a rotation of another size.
    """
    h = torch.as_tensor(curvatures, dtype=torch.float64)
    n = len(h)
    if not (torch.isfinite(h) & (h != 0)).all():
        raise ValueError(f"curvatures={h.tolist()}: expected finite numbers other than zero")
    if rotation is not None and rotation.shape[-2:] != (n, n):
        raise ValueError(f"rotation of shape {tuple(rotation.shape)}: expected (..., {n}, {n})")
    matrix = torch.diag(h) if rotation is None else (rotation.mT * h) @ rotation

    def gradient(p: Tensor) -> Tensor:
        return h * p if rotation is None else (matrix @ p.unsqueeze(-1)).squeeze(-1)

    def value(p: Tensor) -> Tensor:
        return (p * gradient(p)).sum(-1) / 2

    def second(p: Tensor) -> Tensor:
        return matrix.expand(*p.shape, n).clone()

    index, kind = classify(h.numpy())
    origin = CriticalPoint(np.zeros(n), 0.0, np.sort(h.numpy()), index, kind)
    return Surface(f"quadratic of index {index} in {n} dimensions", n, value, gradient, second, (origin,))


def rosenbrock(a: float = 1.0, b: float = 100.0) -> Surface:
    """The function (a - x)^2 + b (y - x^2)^2: one minimum, at (a, a^2), in a curved valley. Rosenbrock 1960.

    Raises:
        ValueError: b is not positive.
    """
    if b <= 0:
        raise ValueError(f"b={b}: expected a positive number")

    def value(p: Tensor) -> Tensor:
        x, y = p.unbind(-1)
        return (a - x) ** 2 + b * (y - x**2) ** 2

    def gradient(p: Tensor) -> Tensor:
        x, y = p.unbind(-1)
        return torch.stack((-2 * (a - x) - 4 * b * x * (y - x**2), 2 * b * (y - x**2)), -1)

    def second(p: Tensor) -> Tensor:
        x, y = p.unbind(-1)
        return _matrix((2 - 4 * b * (y - 3 * x**2), -4 * b * x), (-4 * b * x, torch.full_like(x, 2 * b)))

    return Surface("Rosenbrock's", 2, value, gradient, second).with_critical_points(np.array([[a, a**2]]))


# The x of Himmelblau's nine critical points: elimination of y from the gradient (a resultant) leaves the product of
# these three polynomials, highest power first. All nine roots are real.
HIMMELBLAU_X = ((1, -3), (1, 3, -13, -38), (32, 0, -336, -104, 0, 1))


def himmelblau() -> Surface:
    """The function (x^2 + y - 11)^2 + (x + y^2 - 7)^2: four minima, four saddles and a maximum. Himmelblau 1972."""

    def value(p: Tensor) -> Tensor:
        x, y = p.unbind(-1)
        return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2

    def gradient(p: Tensor) -> Tensor:
        x, y = p.unbind(-1)
        first, second = x**2 + y - 11, x + y**2 - 7
        return torch.stack((4 * x * first + 2 * second, 2 * first + 4 * y * second), -1)

    def second(p: Tensor) -> Tensor:
        x, y = p.unbind(-1)
        return _matrix((12 * x**2 + 4 * y - 42, 4 * (x + y)), (4 * (x + y), 12 * y**2 + 4 * x - 26))

    x = np.concatenate([np.roots(factor).real for factor in HIMMELBLAU_X])
    root = np.sqrt(x**2 - 2 * x**3 + 21 * x + 7)  # the gradient's first part is a quadratic equation for y
    pairs = torch.as_tensor(np.stack([np.stack([x, -x + sign * root], -1) for sign in (1, -1)]))
    better = gradient(pairs).norm(dim=-1).argmin(0)  # its second part says which root
    points = pairs[better, torch.arange(len(x))]
    points = points - torch.linalg.solve(second(points), gradient(points))  # one Newton step for the last digits
    return Surface("Himmelblau's", 2, value, gradient, second).with_critical_points(points.numpy())


def from_function(function: Function, dimension: int, name: str = "a function") -> Surface:
    """The surface of a function given as torch code, `(n,) -> ()`; derivatives by `torch.func`.

    Raises:
        ValueError: at the origin the function is not a single finite float64 number, or has no second derivative.
    """
    if dimension < 1:
        raise ValueError(f"dimension={dimension}: expected at least 1")
    probe = torch.zeros(dimension, dtype=torch.float64)
    out = function(probe)
    if not isinstance(out, Tensor) or out.shape != () or out.dtype != torch.float64 or not torch.isfinite(out):
        raise ValueError(f"{name}: returned {out!r} at the origin; expected one finite float64 number")
    second = jacrev(grad(function), chunk_size=64)  # a quarter faster than in one piece at 300 variables
    if not torch.isfinite(second(probe)).all():
        raise ValueError(
            f"{name}: its second derivatives at the origin are not finite; expected a smooth function there"
        )

    def batched(derivative: Function) -> Function:
        def over(points: Tensor) -> Tensor:
            flat = points.reshape(-1, dimension)
            found = derivative(flat[0])[None] if len(flat) == 1 else vmap(derivative)(flat)
            return found.reshape((*points.shape[:-1], *found.shape[1:]))

        return over

    return Surface(name, dimension, batched(function), batched(grad(function)), batched(second))
