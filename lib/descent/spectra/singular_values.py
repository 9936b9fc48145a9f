"""Singular values and vectors of gradient stacks: exact through the Gram matrix, or randomised; null models.

Throughout, A is `(n, P)`: one row per recorded step, one column per parameter, n far below P. Then A A^T, the Gram
matrix `(n, n)`, holds every singular value and every step-side (left) vector; it is summed over column blocks straight
from the store, so A need not fit in memory. Centring and row normalisation act on the Gram matrix alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.extmath import randomized_svd
from tqdm import tqdm

Matrix = NDArray[np.float64]
BLOCK_BYTES = 64 * 2**20  # float64 copy of one column block; 32 to 128 MiB time alike


def _blocks(rows: NDArray[np.floating], block_bytes: int) -> range:
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"rows of shape {rows.shape}: expected (steps, parameters), at least one of each")
    return range(0, rows.shape[1], max(1, block_bytes // (8 * rows.shape[0])))


def gram_matrix(rows: NDArray[np.floating], block_bytes: int = BLOCK_BYTES, progress: str | None = None) -> Matrix:
    """The Gram matrix A A^T, `(n, P) -> (n, n)` float64, accumulated in float64 over blocks of columns.

    Each block is widened before it is multiplied, so products of float32 entries are exact; float32 accumulation
    would move the singular values by 1e-5 of the first. Extra memory: one block and two n x n matrices.

    Raises:
        ValueError: not a matrix, or empty, or an entry that is not finite.
    """
    starts = _blocks(rows, block_bytes)
    total = np.zeros((rows.shape[0],) * 2)
    for start in tqdm(starts, desc=progress, disable=progress is None, unit="block"):
        block = rows[:, start : start + starts.step].astype(np.float64)
        total += block @ block.T  # one operand twice: BLAS computes one triangle only
    if not np.isfinite(total).all():
        bad = int(np.flatnonzero(~np.isfinite(total.diagonal()))[0])
        raise ValueError(f"row {bad} has an entry that is not finite")
    return total


def row_transform(gram_matrix: Matrix, centre: bool = False, unit_rows: bool = False) -> Matrix:
    """The matrix W, `(n, n)`, for which W A is A less the mean of its rows, then scaled to rows of norm 1.

    Rows of norm zero stay zero.
    """
    n = len(gram_matrix)
    transform = np.eye(n) - (1 / n if centre else 0)
    if unit_rows:
        norms = np.sqrt(np.einsum("ij,jk,ik->i", transform, gram_matrix, transform, optimize=True).clip(0))
        tiny = np.finfo(float).eps * max(norms.max(), np.finfo(float).tiny)
        transform = transform / np.where(norms > tiny, norms, np.inf)[:, None]
    return transform


@dataclass(frozen=True)
class Spectrum:
    """Singular values, in descending order, with their step-side vectors.

    Attributes:
        values: `(r,)` float64, in the units of A.
        left: `(n, r)` float64, orthonormal columns; column i says how strongly each step uses component i.
        transform: `(n, n)`, the rows decomposed are `transform @ A`.
        floor: values below it cannot be told from zero. Squaring halves the digits, so for the Gram method it is
            sqrt(n eps) of the first value with eps = 2.2e-16; for a randomised one it is an estimate of its error.
    """

    values: Matrix
    left: Matrix
    transform: Matrix
    floor: float

    def right(self, rows: NDArray[np.floating], count: int, block_bytes: int = BLOCK_BYTES) -> Matrix:
        """The first `count` parameter-side vectors of `rows` (the A of this spectrum), `(P, count)` float64.

        Raises:
            ValueError: `count` exceeds the number of values above the floor, where directions are noise.
        """
        available = int((self.values > self.floor).sum())
        if not 1 <= count <= available:
            raise ValueError(f"count={count}: expected 1 to {available}, the number of values above the floor")
        starts = _blocks(rows, block_bytes)
        weights = (self.transform.T @ self.left[:, :count]) / self.values[:count]
        out = np.empty((rows.shape[1], count))
        for start in starts:
            out[start : start + starts.step] = rows[:, start : start + starts.step].T.astype(np.float64) @ weights
        return out


def singular_spectrum(gram_matrix: Matrix, centre: bool = False, unit_rows: bool = False) -> Spectrum:
    """The exact singular values of A from its Gram matrix, optionally mean-centred and row-normalised (in that order).

    Raises:
        ValueError: not a square symmetric matrix.
    """
    if gram_matrix.ndim != 2 or gram_matrix.shape[0] != gram_matrix.shape[1]:
        raise ValueError(f"gram_matrix of shape {gram_matrix.shape}: expected a square matrix")
    plain = not (centre or unit_rows)
    transform = np.eye(len(gram_matrix)) if plain else row_transform(gram_matrix, centre, unit_rows)
    matrix = gram_matrix if plain else transform @ gram_matrix @ transform.T
    squares, vectors = scipy.linalg.eigh(matrix, driver="evd")
    values = np.sqrt(squares[::-1].clip(0))
    floor = float(values[0] * np.sqrt(len(values) * np.finfo(float).eps))
    return Spectrum(values, np.ascontiguousarray(vectors[:, ::-1]), transform, floor)


def exact_svd(rows: NDArray[np.floating], centre: bool = False, unit_rows: bool = False) -> Spectrum:
    """The exact SVD of `(n, P)` rows through their Gram matrix; `min(n, P)` values. See `singular_spectrum`.

    Raises:
        ValueError: not a matrix, or empty, or an entry that is not finite.
    """
    full = singular_spectrum(gram_matrix(rows), centre, unit_rows)
    rank = min(rows.shape)
    return replace(full, values=full.values[:rank], left=full.left[:, :rank])


def randomised_svd(rows: NDArray[np.floating], count: int, seed: int, iterations: int = 4) -> Spectrum:
    """The first `count` values by scikit-learn's randomised SVD (Halko et al. 2011), behind the same interface.

    Args:
        rows: `(n, P)`, held in memory.
        count: number of values.
        seed: of the random test matrix.
        iterations: power iterations; more sharpen the last values.

    Raises:
        ValueError: `count` is not in 1..min(n, P).
    """
    _blocks(rows, BLOCK_BYTES)
    if not 1 <= count <= min(rows.shape):
        raise ValueError(f"count={count}: expected 1 to {min(rows.shape)}, the smaller side of rows")
    left, values, _ = randomized_svd(rows, count, n_iter=iterations, random_state=seed)
    floor = float(values[0]) * float(np.finfo(rows.dtype).eps) * np.sqrt(max(rows.shape))
    return Spectrum(values.astype(float), left.astype(float), np.eye(len(rows)), floor)


def count_singular_values_above(values: ArrayLike, fraction: float) -> int:
    """How many singular values are at least `fraction` of the largest; 0 for a zero matrix.

    Raises:
        ValueError: `fraction` is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction={fraction}: expected at least 0 and below 1")
    sample = np.asarray(values, float)
    return int((sample >= fraction * sample.max()).sum()) if sample.any() else 0


def participation_ratio(values: ArrayLike) -> float:
    """(sum s^2)^2 / sum s^4: the number of equal values that would spread the energy as evenly; 0 for a zero matrix."""
    squares = np.square(np.asarray(values, float))
    return float(squares.sum() ** 2 / (squares**2).sum()) if squares.any() else 0.0


def stable_rank(values: ArrayLike) -> float:
    """The sum of s^2 over the largest: squared Frobenius over squared spectral norm; 0 for a zero matrix."""
    squares = np.square(np.asarray(values, float))
    return float(squares.sum() / squares.max()) if squares.any() else 0.0


def captured_energy(gram_matrix: Matrix, sample: NDArray[np.int64]) -> tuple[Matrix, Matrix]:
    """How much of the rows outside `sample` lies in the span of the first k right vectors of the rows inside it.

    Args:
        gram_matrix: `(n, n)` of all rows.
        sample: indices of the m sampled rows.

    Returns:
        energy: `(m,)`, entry k - 1 the share of the held-out rows' total squared norm that k vectors capture.
        residual: `(n - m, m)`, per held-out row the relative norm ||g - P_k g|| / ||g|| left by k vectors.

    Raises:
        ValueError: `sample` leaves no row held out.
    """
    held_out = np.setdiff1d(np.arange(len(gram_matrix)), sample)
    if len(held_out) == 0:
        raise ValueError(f"sample of {len(sample)} of {len(gram_matrix)} rows: expected at least one row held out")
    inner = singular_spectrum(gram_matrix[np.ix_(sample, sample)])
    usable = inner.values > inner.floor  # directions below the floor are noise and capture nothing
    inverse = np.where(usable, 1 / np.where(usable, inner.values, 1), 0)
    squares = ((gram_matrix[np.ix_(held_out, sample)] @ inner.left) * inverse) ** 2
    norms = gram_matrix.diagonal()[held_out]
    running = np.cumsum(squares, axis=1)
    residual = np.sqrt((1 - running / np.where(norms > 0, norms, 1)[:, None]).clip(0, 1))
    return running.sum(axis=0) / norms.sum(), residual


def gaussian_null_spectrum(norms: ArrayLike, columns: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Rows of iid Gaussian entries, rescaled to the given row norms `(n,)`: float32 `(n, columns)`.

    "Nothing going on" beyond the size of each gradient.
    """
    sizes = np.asarray(norms, np.float32)
    rows = generator.standard_normal((len(sizes), columns), dtype=np.float32)
    rows *= (sizes / np.linalg.norm(rows, axis=1))[:, None]
    return rows


def shuffled_null_spectrum(rows: NDArray[np.floating], generator: np.random.Generator) -> NDArray[np.floating]:
    """Each row's entries in an order of its own: the same entries and norms, no direction in common. `(n, P)`."""
    return generator.permuted(rows, axis=1)


def one_over_n_spectrum(count: int) -> Matrix:
    """The values 1, 1/2, ..., 1/count: at any count of ten or more, ten of them are at least a tenth of the first."""
    return 1 / np.arange(1, count + 1)
