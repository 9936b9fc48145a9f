"""Spectra of symmetric operators that are known only by their products: eigenpairs, index, saddle-free steps.

An operator is a SciPy `LinearOperator` or an array, `(P, P)` and symmetric; everything here is float64. An iteration
returns its residuals and whether it `converged`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh
from tqdm import tqdm

from descent.curvature.lanczos import Array, Products, lanczos_tridiagonalise

ARPACK = {"largest": "LA", "smallest": "SA", "both": "BE", "magnitude": "LM"}
DENSE_BYTES = 2**30  # a dense matrix above this is refused: 11,585 parameters


@dataclass(frozen=True)
class Eigenpairs:
    """Some eigenpairs of a symmetric operator, values in ascending order.

    Attributes:
        values: `(k,)`, in the operator's units; fewer than asked for when the iteration did not find them all.
        vectors: `(P, k)`, orthonormal columns.
        residuals: `(k,)`, ||H v - lambda v||; an eigenvalue lies within its residual of each value.
        converged: all were found, each residual at most the tolerance times the largest |value|.
        matvecs: products spent, those for the residuals included.
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

    A space no larger than the Lanczos basis, max(20, 2 count + 1), is solved densely. ARPACK from one start vector can
    miss copies of an exactly repeated eigenvalue.

    Args:
        operator: `(P, P)`, symmetric.
        count: 1 to P; at least 2 for `both`.
        which: largest, smallest, both (half from each end, an odd one from the top) or
            magnitude (largest absolute value).
        generator: draws the start vector.
        tolerance: of `converged`, relative; float32 products cannot be expected below about 1e-6.
        max_matvecs: bound on products, kept to within one Lanczos basis; a run that meets it is not an error.

    Raises:
        ValueError: an unknown `which`, a count out of range, or products that are not finite.
    """
    if which not in ARPACK:
        raise ValueError(f"which={which!r}: expected one of {', '.join(ARPACK)}")
    multiply = Products(operator)
    least = 2 if which == "both" else 1
    if not least <= count <= multiply.size:
        raise ValueError(f"count={count}: expected {least} to {multiply.size}, the operator's size")
    basis = max(20, 2 * count + 1)
    if multiply.size <= basis:
        values, vectors = np.linalg.eigh(_symmetrised(multiply(np.eye(multiply.size))))
        keep = _end(values, count, which)
        values, vectors = values[keep], vectors[:, keep]
    else:
        restarts = max(1, (max_matvecs - basis) // (basis - count))
        start = generator.standard_normal(multiply.size)
        options = {"which": ARPACK[which], "v0": start, "ncv": basis, "maxiter": restarts, "tol": tolerance / 2}
        values, vectors = _arpack(multiply, count, options)
    residuals = np.linalg.norm(multiply(vectors) - vectors * values, axis=0) if len(values) else np.zeros(0)
    converged = len(values) == count and bool((residuals <= tolerance * np.abs(values).max()).all())
    return Eigenpairs(values, vectors, residuals, converged, multiply.matvecs)


def _arpack(multiply: Products, count: int, options: dict[str, Any]) -> tuple[Array, Array]:
    """What ARPACK found, in ascending order; all or not."""
    linear = LinearOperator((multiply.size,) * 2, matvec=multiply, dtype=np.float64)
    try:
        values, vectors = eigsh(linear, count, **options)
    except ArpackNoConvergence as found:
        values, vectors = found.eigenvalues, found.eigenvectors
    except ArpackError as error:
        if "error -9:" not in str(error):
            raise
        return np.zeros(count), np.eye(multiply.size, count)  # H times a random vector is zero, so H is
    order = np.argsort(values)
    return values[order], vectors[:, order]


def _end(values: Array, count: int, which: str) -> NDArray[np.int64]:
    """Positions of the wanted values among all, which ascend; `both` takes the odd one from the top, as ARPACK does."""
    every = np.arange(len(values))
    if which == "magnitude":
        return np.sort(np.argsort(np.abs(values))[-count:])
    low = {"largest": 0, "smallest": count, "both": count // 2}[which]
    return np.concatenate([every[:low], every[len(values) - (count - low) :]])


def _symmetrised(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2


def dense_matrix(
    operator: LinearOperator | Array, *, max_bytes: int = DENSE_BYTES, block: int = 64, progress: str | None = None
) -> Array:
    """The whole matrix, `(P, P)`, from P products in blocks of columns; the mean of it and its transpose.

    Raises:
        ValueError: it would take more than `max_bytes`, or products are not finite.
    """
    multiply = Products(operator)
    if (needed := 8 * multiply.size**2) > max_bytes:
        raise ValueError(f"a dense matrix of {multiply.size:,} rows takes {needed:,} bytes: max_bytes={max_bytes:,}")
    matrix = np.empty((multiply.size,) * 2)
    for start in tqdm(range(0, multiply.size, block), desc=progress, disable=progress is None, unit="block"):
        columns = slice(start, min(start + block, multiply.size))
        matrix[:, columns] = multiply(np.eye(multiply.size, columns.stop - start, -start))
    return _symmetrised(matrix)


def negative_eigenvalue_count(eigenvalues: ArrayLike, tolerance: float) -> tuple[int, float]:
    """Number of negative eigenvalues and their share: the index of a critical point (Dauphin et al. 2014, sec. 2).

    Args:
        eigenvalues: `(P,)`, all of them.
        tolerance: a value counts as negative below -tolerance times the largest |value|; rounding scatters zero
            eigenvalues to either side.

    Raises:
        ValueError: no eigenvalues, or a negative tolerance.
    """
    values = np.asarray(eigenvalues, float)
    if values.ndim != 1 or len(values) == 0 or tolerance < 0:
        raise ValueError(f"eigenvalues of shape {values.shape}, tolerance={tolerance}: expected (P,) and at least 0")
    count = int((values < -tolerance * np.abs(values).max()).sum())
    return count, count / len(values)


def saddle_free_step(
    operator: LinearOperator | Array, gradient: Array, vectors: int, damping: float = 0.0
) -> NDArray[np.float64]:
    """The step -|H|^-1 g in the Krylov space of g, `(P,)` (Dauphin et al. 2014, algorithm 1).

    |H| takes absolute eigenvalues: the step descends along negative curvature where Newton's climbs. The space is that
    of g, H g, ..., built by Lanczos; the step is exact when `vectors` reaches P or the space is exhausted. Directions
    of zero curvature are left out when nothing damps them.

    Args:
        operator: the Hessian, `(P, P)`.
        gradient: `(P,)`, of the same loss.
        vectors: dimensions of the space, hence products.
        damping: added to every |eigenvalue|, in the operator's units.

    Raises:
        ValueError: a gradient of another length or not finite, no vectors, a negative damping.
    """
    multiply = Products(operator)
    if gradient.shape != (multiply.size,) or not np.isfinite(gradient).all():
        raise ValueError(f"gradient of shape {gradient.shape}: expected ({multiply.size},), all finite")
    if vectors < 1 or not damping >= 0:
        raise ValueError(f"vectors={vectors}, damping={damping}: expected at least 1 and at least 0")
    norm = np.linalg.norm(gradient)
    if norm == 0:
        return np.zeros(multiply.size)
    diagonal, off, basis = lanczos_tridiagonalise(
        multiply, np.asarray(gradient, np.float64), min(vectors, multiply.size)
    )
    values, rotation = scipy.linalg.eigh_tridiagonal(diagonal, off)
    scale = np.abs(values) + damping
    usable = scale > len(values) * np.finfo(float).eps * scale.max()
    inverse = np.where(usable, 1 / np.where(usable, scale, 1), 0)
    step: Array = -norm * basis.T @ (rotation @ (inverse * rotation[0]))
    return step
