"""Lanczos' method on a symmetric operator that is known only by its products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, aslinearoperator

Array = NDArray[np.float64]


class Products:
    """An operator's products, counted, and refused where they are not finite.

    Args:
        operator: a SciPy `LinearOperator` or an array, `(P, P)`.

    Raises:
        ValueError: not square; later, a product with entries that are not finite.
    """

    def __init__(self, operator: LinearOperator | Array) -> None:
        self.inner = aslinearoperator(operator)
        rows, columns = self.inner.shape
        if rows != columns:
            raise ValueError(f"operator of shape {(rows, columns)}: expected a square one")
        self.size, self.matvecs = int(rows), 0

    def __call__(self, vectors: Array) -> Array:
        """The product with a vector `(P,)` or the columns of `(P, k)`, float64."""
        self.matvecs += 1 if vectors.ndim == 1 else vectors.shape[1]
        product = np.asarray(self.inner @ vectors, np.float64)
        if not np.isfinite(product).all():
            raise ValueError(f"product {self.matvecs} of the operator has entries that are not finite")
        return product


def lanczos_tridiagonalise(
    multiply: Callable[[Array], Array], start: Array, steps: int, away: Array | None = None
) -> tuple[Array, Array, Array]:
    """Lanczos with full reorthogonalisation: diagonal `(m,)`, off-diagonal `(m - 1,)`, basis rows `(m, P)`.

    m is below `steps` when the Krylov space of `start` is exhausted before. `away`, `(P, k)` orthonormal, spans
    eigenvectors that the basis is kept orthogonal to.
    """
    basis = np.empty((steps, len(start)))
    diagonal, off = np.zeros(steps), np.zeros(steps)
    vector = start / np.linalg.norm(start)
    for step in range(steps):
        basis[step] = vector
        product = multiply(vector)
        diagonal[step] = vector @ product
        scale = max(np.abs(diagonal).max(), off.max(), np.finfo(float).tiny)
        known = basis[: step + 1]
        for _ in range(2):  # twice is enough (Parlett 1998, sec. 6.9)
            product = product - known.T @ (known @ product)
            product = product if away is None else product - away @ (away.T @ product)
        off[step] = np.linalg.norm(product)
        if off[step] <= 1e-10 * scale:
            break
        vector = product / off[step]
    return diagonal[: step + 1], off[:step], basis[: step + 1]
