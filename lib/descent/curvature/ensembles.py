"""Random symmetric matrices: what a Hessian would look like if its entries knew nothing of each other."""

from __future__ import annotations

import numpy as np

BLOCK = 100_000  # matrices held in memory together


def count_positive_definite(size: int, count: int, generator: np.random.Generator) -> int:
    """How many of `count` matrices of the Gaussian orthogonal ensemble have positive eigenvalues only.

    A symmetric matrix is positive definite when every pivot of its elimination is positive, which needs no eigenvalues;
    a matrix leaves at its first pivot that is not. Exact shares: 1/2, (2 - sqrt 2) / 4 and (pi - 2 sqrt 2) / (4 pi) at
    sizes 1 to 3; to leading order in the size exp(-size^2 ln 3 / 4) (Dean and Majumdar 2006).

    Raises:
        ValueError: a size or a count below 1.
    """
    if size < 1 or count < 1:
        raise ValueError(f"size={size}, count={count}: expected at least 1 each")
    found = 0
    for start in range(0, count, BLOCK):
        a = generator.standard_normal((min(BLOCK, count - start), size, size))
        a += a.transpose(0, 2, 1)
        for k in range(size):
            a = a[a[:, k, k] > 0]
            a[:, k + 1 :, k + 1 :] -= a[:, k + 1 :, k, None] * (a[:, None, k, k + 1 :] / a[:, None, k, k, None])
        found += len(a)
    return found
