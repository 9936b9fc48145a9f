"""Symmetric operators known only by their products: extreme eigenpairs, saddle-free steps, and a null.

An operator is a SciPy `LinearOperator` or an array, `(P, P)` and symmetric; everything here is float64. Each iteration
returns its residuals and whether it `converged`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.sparse import issparse
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, aslinearoperator, eigsh

from descent.repro.numbers import as_real, check_whole

Array = NDArray[np.float64]
ARPACK = {"largest": "LA", "smallest": "SA", "both": "BE", "magnitude": "LM"}
ORDINARY = 30  # powers of two: of the scale of operators that are left as they are
SYMMETRIC = 1e-3  # of |u| |H w|: far above rounding in float32
BLOCK = 100_000  # random matrices held in memory together


class Products:
    """The products of an operator `(P, P)`, which are counted, and refused where they are not finite.

    Raises:
        ValueError: the operator is not square, or complex; later, a product has entries that are not finite, or the
            first two products tell that the operator is not symmetric.
    """

    def __init__(self, operator: LinearOperator | Array, *generators: object) -> None:
        plain = isinstance(operator, LinearOperator | np.ndarray) and not isinstance(operator, np.ma.MaskedArray)
        self.inner = aslinearoperator(operator if plain or issparse(operator) else as_real(operator, "operator"))
        if wrong := [each for each in generators if not isinstance(each, np.random.Generator)]:
            raise ValueError(f"generator is a {type(wrong[0])}: expected one of numpy, as numpy.random.default_rng(0)")
        rows, columns = self.inner.shape
        if rows != columns:
            raise ValueError(f"operator of shape {(rows, columns)}: expected a square one")
        if np.issubdtype(self.inner.dtype, np.complexfloating):
            raise ValueError(f"operator of {self.inner.dtype}: expected a real one")
        self.size, self.matvecs = int(rows), 0
        self._first: tuple[Array, Array] | None = np.empty((rows, 0)), np.empty((rows, 0))

    def __call__(self, vectors: Array) -> Array:
        """The product with a vector `(P,)`, or with each column of a matrix `(P, k)`, float64."""
        self.matvecs += 1 if vectors.ndim == 1 else vectors.shape[1]
        product = np.asarray(self.inner @ vectors, np.float64)
        if not np.isfinite(product).all():
            raise ValueError(f"product {self.matvecs} of the operator has entries that are not finite")
        if self._first is not None:
            self._check_symmetry(*map(np.column_stack, zip(self._first, (vectors, product), strict=True)))
        return product

    def _check_symmetry(self, vectors: Array, products: Array) -> None:
        """Compare u . H w with w . H u once there are two vectors, and keep the first one until then."""
        self._first = (vectors, products) if vectors.shape[1] < 2 else None
        inner = vectors.T @ products
        scale = length(vectors)[:, None] * length(products)
        if (np.abs(inner - inner.T) > SYMMETRIC * (scale + scale.T)).any():
            raise ValueError("the operator is not symmetric: u . H w and w . H u differ for two vectors u and w")


def length(vectors: Array) -> Array:
    """The norm of a vector `(P,)`, or of each column `(P, k)`, also where the squares are out of float64's range."""
    exponent = np.frexp(np.abs(vectors).max(0, initial=0))[1]
    scaled = np.ldexp(vectors, -exponent)  # by powers of two, which round nothing
    lengths: Array = np.ldexp(np.linalg.norm(scaled, axis=0 if vectors.ndim > 1 else None), exponent)
    return lengths


@dataclass(frozen=True)
class Eigenpairs:
    """Some eigenpairs of a symmetric operator, values in ascending order.

    Attributes:
        values: `(k,)`, in the operator's units; fewer than were asked for if the iteration did not find them all.
        vectors: `(P, k)`, orthonormal columns.
        residuals: `(k,)`, ||H v - lambda v||; an eigenvalue of H lies within the residual of each value.
        converged: whether all were found, each residual at most the tolerance times the largest |value|.
        matvecs: the number of products, those for the residuals included.
    """

    values: Array
    vectors: Array
    residuals: Array
    converged: bool
    matvecs: int


def extreme_eigenpairs(
    operator: LinearOperator | Array,
    count: int,
    which: str,
    generator: np.random.Generator,
    *,
    tolerance: float = 1e-5,
    max_matvecs: int = 1000,
) -> Eigenpairs:
    """The `count` eigenpairs at an end of the spectrum, by ARPACK's restarted Lanczos method (Lehoucq et al. 1998).

    An operator no larger than the Lanczos basis, max(20, 2 count + 1), is solved densely. ARPACK starts from one vector
    and can miss copies of an exactly repeated eigenvalue.

    Args:
        operator: `(P, P)`, symmetric.
        count: 1 to P; at least 2 for "both".
        which: "largest", "smallest", "both" (half from each end, an odd one from the top) or "magnitude" (largest
            absolute value).
        generator: draws the start vector.
        tolerance: of `converged`, relative; products in float32 cannot be expected to reach less than about 1e-6.
        max_matvecs: bound on the products, exceeded by less than one Lanczos basis; a run that reaches it returns what
            it has, with `converged` False. Where zero would be at the wanted end and was not found, a second run of as
            many products looks for it.

    Raises:
        ValueError: an unknown `which`, a count or a tolerance out of range; an operator that is complex, that is not
            symmetric, or whose products are not finite.

    Examples:
        >>> pairs = extreme_eigenpairs(np.diag(np.arange(50.0)), 2, "both", np.random.default_rng(0))
        >>> pairs.values.round(6), pairs.converged
        (array([ 0., 49.]), True)
    """
    if which not in ARPACK:
        raise ValueError(f"which={which!r}: expected one of {', '.join(ARPACK)}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance}: expected at least 0")
    multiply = Products(operator, generator)
    least = 2 if which == "both" else 1
    check_whole(0, max_matvecs=max_matvecs)
    if not isinstance(count, int | np.integer) or not least <= count <= multiply.size:
        raise ValueError(f"count={count}: expected {least} to {multiply.size}, the operator's size, a whole number")
    basis = max(20, 2 * count + 1)
    if multiply.size <= basis:
        matrix = multiply(np.eye(multiply.size))
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        keep = _end(values, count, which)
        values, vectors = values[keep], vectors[:, keep]
    else:
        restarts = max(1, (max_matvecs - basis) // (basis - count))
        start = generator.standard_normal(multiply.size)
        options: dict[str, Any] = {
            "which": ARPACK[which],
            "v0": start,
            "ncv": basis,
            "maxiter": restarts,
            "tol": tolerance / 2,
        }
        values, vectors = _arpack(multiply, count, options)
        low = _count_from_below(count, which)
        if which != "magnitude" and ((values[:low] > 0).any() or (values[low:] < 0).any()):  # zero belongs before these
            shift = 2 * float(length(multiply(start)) / length(start))
            options["tol"] *= np.abs(values).max() / (np.abs(values).max() + shift)  # which ARPACK takes of the sums
            values, vectors = _arpack(multiply, count, options, shift)
    residuals = length(multiply(vectors) - vectors * values) if len(values) else np.zeros(0)
    converged = len(values) == count and bool((residuals <= tolerance * np.abs(values).max()).all())
    return Eigenpairs(values, vectors, residuals, converged, multiply.matvecs)


def _arpack(multiply: Products, count: int, options: dict[str, Any], shift: float = 0.0) -> tuple[Array, Array]:
    """The eigenpairs that ARPACK found, in ascending order, be they as many as asked for or fewer.

    ARPACK multiplies its start by the operator, which leaves nothing of eigenvectors at zero: it cannot find them. It
    finds them as eigenvectors of the operator plus a shift. Its thresholds are absolute: an operator that is very large
    or small is brought to a scale of one, by a power of two.
    """
    scale: list[int] = []

    def shifted(vector: Array) -> Array:
        product = multiply(vector) + shift * vector
        if not scale:
            exponent = int(np.frexp(length(product) / length(vector))[1])
            scale.append(exponent if abs(exponent) > ORDINARY else 0)
        return np.ldexp(product, -scale[0])

    linear = LinearOperator((multiply.size,) * 2, matvec=shifted, dtype=np.float64)
    try:
        values, vectors = eigsh(linear, count, **options)
    except ArpackNoConvergence as unfinished:
        values, vectors = unfinished.eigenvalues, unfinished.eigenvectors
    except ArpackError as error:
        if "error -9:" not in str(error):
            raise
        return np.zeros(count), np.eye(multiply.size, count)  # H times a random vector is zero, so H is
    order = np.argsort(values)
    return np.ldexp(values[order], scale[0]) - shift, vectors[:, order]


def _end(values: Array, count: int, which: str) -> NDArray[np.int64]:
    """Positions of the wanted values among all, which ascend; `both` takes the odd one from the top, as ARPACK does."""
    every = np.arange(len(values))
    if which == "magnitude":
        return np.sort(np.argsort(np.abs(values))[-count:])
    low = _count_from_below(count, which)
    return np.concatenate([every[:low], every[len(values) - (count - low) :]])


def _count_from_below(count: int, which: str) -> int:
    return {"largest": 0, "smallest": count, "both": count // 2}.get(which, 0)


def lanczos_tridiagonalise(
    multiply: Callable[[Array], Array], start: Array, steps: int, away: Array | None = None
) -> tuple[Array, Array, Array]:
    """Lanczos' method with full reorthogonalisation (Parlett 1998, section 6.9).

    Args:
        multiply: the operator's product with a vector `(P,)`.
        start: `(P,)`, the first basis vector up to its length.
        steps: products at most.
        away: `(P, k)`, orthonormal eigenvectors that the basis is kept orthogonal to.

    Returns:
        Diagonal `(m,)` and off-diagonal `(m - 1,)` of the operator in its basis, and the basis as rows `(m, P)`; m is
        below `steps` where the Krylov space of `start` is exhausted before.
    """
    basis = np.empty((steps, len(start)))
    diagonal, off = np.zeros(steps), np.zeros(steps)
    vector = start / length(start)
    for step in range(steps):
        basis[step] = vector
        product = multiply(vector)
        diagonal[step] = vector @ product
        scale = max(np.abs(diagonal).max(), off.max(), np.finfo(float).tiny)
        known = basis[: step + 1]
        for _ in range(2):  # twice is enough
            product = product - known.T @ (known @ product)
            product = product if away is None else product - away @ (away.T @ product)
        off[step] = length(product)
        if off[step] <= 1e-10 * scale:
            break
        vector = product / off[step]
    return diagonal[: step + 1], off[:step], basis[: step + 1]


def saddle_free_step(
    operator: LinearOperator | Array, gradient: Array, vectors: int, damping: float = 0.0
) -> NDArray[np.float64]:
    """The step -|H|^-1 g in the Krylov space of g, `(P,)` (Dauphin et al. 2014, algorithm 1).

    |H| has the absolute values of H's eigenvalues: the step descends along negative curvature, where Newton's climbs.
    The Krylov space, of g, H g, ..., is built by Lanczos' method; the step is exact when `vectors` reaches P or the
    space is exhausted. Without damping, directions of zero curvature are left out.

    Args:
        operator: the Hessian, `(P, P)`.
        gradient: `(P,)`, of the same loss.
        vectors: dimensions of the space, hence products.
        damping: added to every |eigenvalue|, in the operator's units.

    Raises:
        ValueError: a gradient of another length, complex or not finite, no vectors, a negative or infinite damping, an
            operator that is not symmetric.

    Examples:
        Newton's step from here, (-1, -1), would climb the second axis to the saddle:

        >>> saddle_free_step(np.diag([2.0, -4.0]), np.array([2.0, -4.0]), vectors=2).round(12)
        array([-1.,  1.])
    """
    multiply, gradient = Products(operator), as_real(gradient, "gradient")
    if gradient.shape != (multiply.size,) or not np.isfinite(gradient).all():
        raise ValueError(f"gradient of shape {gradient.shape}: expected ({multiply.size},), all finite and real")
    check_whole(vectors=vectors)
    if not 0 <= damping < np.inf:
        raise ValueError(f"damping={damping}: expected at least 0, finite")
    norm = length(gradient)
    if norm == 0:
        return np.zeros(multiply.size)
    diagonal, off, basis = lanczos_tridiagonalise(multiply, gradient.astype(float), min(vectors, multiply.size))
    values, rotation = scipy.linalg.eigh_tridiagonal(diagonal, off)
    scale = np.abs(values) + damping
    usable = scale > len(values) * np.finfo(float).eps * scale.max()
    inverse = np.where(usable, 1 / np.where(usable, scale, 1), 0)
    step: Array = -norm * basis.T @ (rotation @ (inverse * rotation[0]))
    return step


def count_positive_definite(size: int, count: int, generator: np.random.Generator) -> int:
    """How many of `count` random symmetric matrices `(size, size)` have positive eigenvalues only.

    The matrices are of the Gaussian orthogonal ensemble: a null for the index of a Hessian, whose entries would know
    nothing of each other. A symmetric matrix is positive definite if every pivot of its Gaussian elimination is
    positive, and is dropped at its first pivot that is not. The exact shares are 1/2, (2 - sqrt 2) / 4 and
    (pi - 2 sqrt 2) / (4 pi) at sizes 1 to 3, and exp(-size^2 ln 3 / 4) to leading order (Dean and Majumdar 2006).

    Raises:
        ValueError: a size or a count below 1.
    """
    check_whole(size=size, count=count)
    positive = 0
    for start in range(0, count, BLOCK):
        a = generator.standard_normal((min(BLOCK, count - start), size, size))
        a += a.transpose(0, 2, 1)
        for k in range(size):
            a = a[a[:, k, k] > 0]
            a[:, k + 1 :, k + 1 :] -= a[:, k + 1 :, k, None] * (a[:, None, k, k + 1 :] / a[:, None, k, k, None])
        positive += len(a)
    return positive
