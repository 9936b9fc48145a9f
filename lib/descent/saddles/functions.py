"""Smooth functions with their derivatives: saddles in closed form, and a reader's own function by `torch.func`.

Points are float64 tensors `(..., n)`, in which every leading dimension is a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.func import grad, jacrev, vmap

from descent.repro.numbers import as_real, check_whole

Field = Callable[[Tensor], Tensor]
Array = NDArray[np.float64]
ROWS_AT_ONCE = 4096  # rows of Hessians held in memory together


@dataclass(frozen=True)
class SmoothFunction:
    """A function of n variables with its derivatives, each of which takes points `(..., n)`, float64.

    Attributes:
        name: for titles and messages.
        dimension: n.
        value: `(..., n) -> (...)`.
        gradient: `(..., n) -> (..., n)`.
        hessian: `(..., n) -> (..., n, n)`.

    Raises:
        ValueError: from each of the three, for points of another dimension.
    """

    name: str
    dimension: int
    value: Field
    gradient: Field
    hessian: Field

    def __post_init__(self) -> None:
        for part in ("value", "gradient", "hessian"):
            object.__setattr__(self, part, self._checked(getattr(self, part)))

    def _checked(self, field: Field) -> Field:
        def checked(points: Tensor) -> Tensor:
            points = as_points(points)
            if points.ndim == 0 or points.shape[-1] != self.dimension:
                raise ValueError(
                    f"points of shape {tuple(points.shape)}: expected (..., {self.dimension}), {self.name}"
                )
            return field(points)

        return checked


def as_points(points: ArrayLike | Tensor) -> Tensor:
    """A float64 tensor of the numbers.

    Raises:
        ValueError: they are complex.
    """
    if points.is_complex() if isinstance(points, Tensor) else np.iscomplexobj(points):
        raise ValueError("points are complex: expected real coordinates")
    return torch.as_tensor(points if isinstance(points, Tensor) else as_real(points, "points"), dtype=torch.float64)


def classic_saddle() -> SmoothFunction:
    """x^2 - y^2, with curvatures 2 and -2 and one critical point, the saddle at the origin.

    Examples:
        >>> classic_saddle().gradient(torch.tensor([1.0, 3.0])).tolist()
        [2.0, -6.0]
    """
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    return SmoothFunction(
        "classic saddle",
        2,
        lambda p: (signs * p * p).sum(-1),
        lambda p: 2 * signs * p,
        lambda p: torch.diag(2 * signs).expand(*p.shape, 2),
    )


def monkey_saddle() -> SmoothFunction:
    """x^3 - 3 x y^2: the Hessian at the origin is zero, and yet three ways lead down from it and three up."""

    def hessian(p: Tensor) -> Tensor:
        x, y = p.unbind(-1)
        return 6 * torch.stack([torch.stack([x, -y], -1), torch.stack([-y, -x], -1)], -2)

    return SmoothFunction(
        "monkey saddle",
        2,
        lambda p: p[..., 0] ** 3 - 3 * p[..., 0] * p[..., 1] ** 2,
        lambda p: torch.stack([3 * p[..., 0] ** 2 - 3 * p[..., 1] ** 2, -6 * p[..., 0] * p[..., 1]], -1),
        hessian,
    )


def quadratic(curvatures: ArrayLike | Tensor, rotation: ArrayLike | Tensor | None = None) -> SmoothFunction:
    """1/2 sum_i h_i (Q x)_i^2 in n dimensions, with a critical point at the origin.

    Args:
        curvatures: h, `(n,)`, the eigenvalues of the Hessian.
        rotation: Q, orthogonal, `(n, n)`, such as scipy.stats.ortho_group draws; or a batch `(m, n, n)`, for which
            points are `(..., m, n)`, each row with its own rotation. None is the identity.

    Raises:
        ValueError: a curvature that is not finite, or Q of another shape or not orthogonal.

    Examples:
        >>> surface = quadratic([4.0, -2.0])
        >>> surface.value(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist()
        [2.0, -1.0]
    """
    h = torch.tensor(as_real(curvatures, "curvatures"), dtype=torch.float64)
    if h.ndim != 1 or len(h) == 0 or not h.isfinite().all():
        raise ValueError(f"curvatures={h.tolist()}: expected (n,), all finite")
    n = len(h)
    Q = torch.tensor(np.eye(n) if rotation is None else as_real(rotation, "rotation"), dtype=torch.float64)
    if Q.ndim not in (2, 3) or Q.shape[-2:] != (n, n):
        raise ValueError(f"rotation of shape {tuple(Q.shape)}: expected ({n}, {n}) or (m, {n}, {n})")
    if not torch.allclose(Q @ Q.mT, torch.eye(n, dtype=Q.dtype), rtol=0, atol=1e-10):
        raise ValueError("rotation: expected orthogonal matrices, Q Q^T within 1e-10 of the identity")
    matrix = Q.mT @ (h[:, None] * Q)

    form = "ij,...j->...i" if matrix.ndim == 2 else "mij,...mj->...mi"  # one product for all leading dimensions

    def gradient(p: Tensor) -> Tensor:
        if matrix.ndim == 3 and p.shape[-2:-1] != matrix.shape[:1]:
            raise ValueError(f"points of shape {tuple(p.shape)}: expected (..., {len(matrix)}, {n}), one a rotation")
        return torch.einsum(form, matrix, p)

    return SmoothFunction(
        f"quadratic in {n} dimensions",
        n,
        lambda p: (p * gradient(p)).sum(-1) / 2,
        gradient,
        lambda p: matrix.expand(*gradient(p).shape, n),
    )


def scalar_field(function: Field, dimension: int, name: str) -> SmoothFunction:
    """A function of the reader's own, with derivatives by `torch.func`.

    Args:
        function: a twice differentiable torch function of one point `(n,)`, float64, to a scalar, without side effects.
            A kink, such as that of a ReLU, goes unseen: its Hessian is that of the smooth pieces. Pieces are chosen by
            `torch.where`, as `torch.vmap` takes no branch.
        dimension: n.
        name: for titles and messages.

    Raises:
        ValueError: the function fails on a point `(n,)` or under `torch.vmap`, does not return a float64 scalar, draws
            random numbers, or has another gradient than it changes by, as one that detaches a part of the point.

    Examples:
        >>> surface = scalar_field(lambda p: p[0] ** 2 * p[1], 2, "x^2 y")
        >>> surface.hessian(torch.tensor([1.0, 3.0])).tolist()
        [[6.0, 2.0], [2.0, 0.0]]
    """
    check_whole(dimension=dimension)
    place = torch.linspace(0.13, 0.91, dimension, dtype=torch.float64)
    ways = torch.randn(3, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    what = f"a point of shape ({dimension},)"
    try:
        probe = function(place)
        if not isinstance(probe, Tensor) or probe.ndim != 0 or probe.dtype != torch.float64:
            got = f"{probe.dtype} {tuple(probe.shape)}" if isinstance(probe, Tensor) else type(probe).__name__
            raise ValueError(f"{name}: the function returned {got}: expected a torch.float64 scalar, shape ()")
        if not torch.isclose(function(place), probe, rtol=0, atol=0, equal_nan=True):
            raise ValueError(f"{name}: the function returns another number each time: expected one without randomness")
        below, above = (torch.stack([function(place + step * way) for way in ways]) for step in (-1e-5, 1e-5))
        rise = ways @ grad(function)(place)
        smooth = (above + below - 2 * probe).abs() <= 1e-3 * (above - below).abs()  # not at a kink
        wrong = ((above - below) / 2e-5 - rise).abs() > 1e-4 * rise.abs() + 1e-6 * (1 + probe.abs())
        if (smooth & wrong).any():
            raise ValueError(f"{name}: its gradient is not its own: expected a function that detaches no part of it")
        what = "several points at once, by torch.vmap, which takes torch.where and no branch"
        vmap(function)(ways)
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(f"{name}: the function fails on {what}: {error}") from error

    def batched(field: Field, rows: int, alone: Field) -> Field:
        def over(points: Tensor) -> Tensor:
            if points.ndim == 1:
                return alone(points)
            flat = vmap(field, chunk_size=max(1, ROWS_AT_ONCE // rows))(points.reshape(-1, dimension))
            return flat.reshape(*points.shape[:-1], *flat.shape[1:])

        return over

    def gradient_alone(point: Tensor) -> Tensor:  # in half the time that `torch.func` takes for one point
        with torch.enable_grad():
            point = point.detach().requires_grad_()
            return torch.autograd.grad(function(point), point, materialize_grads=True)[0]

    gradient = grad(function)
    hessian = jacrev(gradient, chunk_size=64)  # reverse over reverse: a fifth faster than forward over reverse
    value_of, slope_of = batched(function, 1, function), batched(gradient, 1, gradient_alone)
    return SmoothFunction(name, dimension, value_of, slope_of, batched(hessian, dimension, hessian))
