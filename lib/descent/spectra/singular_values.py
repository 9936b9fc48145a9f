"""Singular values and vectors of a stack of gradients or weights through its Gram matrix, and null models for them.

Throughout, A is `(n, P)`, with a row for each recorded step and a column for each parameter, n far below P. Its Gram
matrix A A^T, `(n, n)`, holds every singular value and every left vector, one number for each step. It is summed over
blocks of columns straight from a store, so that A need not fit in memory. Centring and the scaling of rows act on the
Gram matrix alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from descent.repro.numbers import as_real, check_whole

Matrix = NDArray[np.float64]
BLOCK_BYTES = 64 * 2**20  # of the float64 copy of a block of columns; 32 to 128 MiB take the same time
SMALLEST = 1e-290  # a sum of squares below it loses digits
ROUNDING = 1e-10  # of a float64 Gram matrix, over its trace; one of float32 has about 1e-8


def real_rows(rows: ArrayLike) -> NDArray[Any]:
    """Rows `(n, P)` as an array, which is copied only if it has to be; raises ValueError if they are none."""
    array = as_real(rows, "rows")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"rows of shape {array.shape}: expected (steps, parameters), at least one of each")
    return array


def _blocks(rows: NDArray[Any], block_bytes: int) -> range:
    return range(0, rows.shape[1], max(1, block_bytes // (8 * rows.shape[0])))


def gram_matrix(rows: ArrayLike, block_bytes: int = BLOCK_BYTES, progress: str | None = None) -> Matrix:
    """The Gram matrix A A^T, `(n, P) -> (n, n)` float64, accumulated in float64 over blocks of columns.

    Each block is widened to float64 before it is multiplied, so that products of float32 entries are exact; sums in
    float32 would move the singular values by 1e-5 of the first. The extra memory is one block and two n x n matrices.

    Args:
        rows: `(n, P)` real numbers, in memory or mapped from a file; an array, or a tensor.
        block_bytes: of the float64 copy of a block.
        progress: text before a progress bar; None shows none.

    Raises:
        ValueError: no matrix of real numbers, or empty, an entry that is not finite, or a row whose largest entry has a
            square out of the range of float64, about 1e-145 to 1e154.

    Examples:
        >>> gram_matrix(np.array([[3.0, 4.0, 0.0], [0.0, 1.0, 1.0]]))
        array([[25.,  4.],
               [ 4.,  2.]])
    """
    array = real_rows(rows)
    starts = _blocks(array, block_bytes)
    total = np.zeros((len(array),) * 2)
    for start in tqdm(starts, desc=progress, disable=progress is None, unit="block"):
        block = array[:, start : start + starts.step].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            total += block @ block.T  # one operand twice: BLAS computes one triangle only
    squares = total.diagonal()
    for number in np.flatnonzero(~((squares > SMALLEST) & (squares < np.inf))):
        largest = np.abs(array[number].astype(np.float64)).max()
        if not np.isfinite(largest):
            raise ValueError(f"row {number} has an entry that is not finite")
        if largest > 0:
            raise ValueError(
                f"row {number}: the square of {largest:.3g} is out of the range of float64; scale the rows"
            )
    return total


def row_transform(gram_matrix: Matrix, centre: bool = False, unit_rows: bool = False) -> Matrix:
    """The matrix W, `(n, n)`, for which W A is A less the mean of its rows, and then with rows of norm 1.

    Each of the two is done if asked for. Rows of norm zero stay zero; so does a row that differs from the mean by less
    than the rounding of the Gram matrix, sqrt(n eps) of the greatest norm.
    """
    n = len(gram_matrix)
    transform = np.eye(n) - (1 / n if centre else 0)
    if unit_rows:
        norms = np.sqrt(np.einsum("ij,jk,ik->i", transform, gram_matrix, transform, optimize=True).clip(0))
        tiny = np.sqrt(n * np.finfo(float).eps * gram_matrix.diagonal().max()) if centre else 0
        transform = transform / np.where(norms > tiny, norms, np.inf)[:, None]
    return transform


@dataclass(frozen=True)
class Spectrum:
    """Singular values, in descending order, with their step-side vectors.

    Attributes:
        values: `(r,)` float64, in the units of A.
        left: `(n, r)` float64, orthonormal columns; column i says how strongly each step uses component i.
        transform: `(n, n)`; the matrix that is decomposed is `transform @ A`.
        floor: values below it cannot be told from zero. The Gram matrix has the squares, which halves the digits: the
            floor is sqrt(n eps) of the first value, or of the rows' norms before the mean was taken off if these are
            larger, with eps = 2.2e-16.
    """

    values: Matrix
    left: Matrix
    transform: Matrix
    floor: float

    def right(self, rows: ArrayLike, count: int, block_bytes: int = BLOCK_BYTES) -> Matrix:
        """The first `count` right vectors of `rows`, the A of this spectrum: `(P, count)` float64, orthonormal columns.

        Raises:
            ValueError: `count` exceeds the number of values above the floor, where directions are noise; or `rows` are
                not those of this spectrum.
        """
        array = real_rows(rows)
        available = int((self.values > self.floor).sum())
        if not 1 <= count <= available:
            raise ValueError(f"count={count}: expected 1 to {available}, the number of values above the floor")
        if len(array) != len(self.transform):
            raise ValueError(f"{len(array)} rows: expected the {len(self.transform)} of this spectrum")
        starts = _blocks(array, block_bytes)
        weights = (self.transform.T @ self.left[:, :count]) / self.values[:count]
        out = np.empty((array.shape[1], count))
        for start in starts:
            out[start : start + starts.step] = array[:, start : start + starts.step].T.astype(np.float64) @ weights
        if (np.abs((out**2).sum(0) - 1) > 1e-6 + 10 * (self.floor / self.values[:count]) ** 2).any():
            raise ValueError("the rows are not those of this spectrum: their right vectors have not length one")
        return out


def singular_spectrum(gram_matrix: Matrix, centre: bool = False, unit_rows: bool = False) -> Spectrum:
    """The singular values of A and its left vectors from its Gram matrix.

    Args:
        gram_matrix: `(n, n)`, in float64 precision; of a matrix A as such take `gram_matrix` first.
        centre: whether the mean of the rows is taken off first.
        unit_rows: whether each row, centred or not, is then scaled to norm 1.

    Raises:
        ValueError: no square matrix, an entry that is not finite, or no Gram matrix: not symmetric, or an eigenvalue
            below zero by more than rounding in float64, 1e-10 of the trace.

    Examples:
        >>> rows = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
        >>> singular_spectrum(gram_matrix(rows)).values
        array([5., 2.])
    """
    gram_matrix = _checked_gram(gram_matrix)
    plain = not (centre or unit_rows)
    transform = np.eye(len(gram_matrix)) if plain else row_transform(gram_matrix, centre, unit_rows)
    matrix = gram_matrix if plain else transform @ gram_matrix @ transform.T
    squares, vectors = scipy.linalg.eigh(matrix, driver="evd")
    values = np.sqrt(squares[::-1].clip(0))
    before = (
        0.0 if plain else float((np.abs(transform) @ np.sqrt(gram_matrix.diagonal())).max())
    )  # rounded at this size
    floor = float(max(values[0], before) * np.sqrt(len(values) * np.finfo(float).eps))
    return Spectrum(values, np.ascontiguousarray(vectors[:, ::-1]), transform, floor)


def _checked_gram(gram_matrix: ArrayLike) -> Matrix:
    matrix: Matrix = real_rows(gram_matrix).astype(np.float64)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"gram_matrix of shape {matrix.shape}: expected a square matrix")
    margin = ROUNDING * np.trace(matrix)
    with np.errstate(invalid="ignore"):
        positive = not matrix.any() or scipy.linalg.lapack.dpotrf(matrix + margin * np.eye(len(matrix)))[1] == 0
        symmetric = (np.abs(matrix - matrix.T) <= margin).all()
    if not (positive and symmetric):
        wanted = "expected A A^T in float64, as gram_matrix(A) gives it: finite, symmetric, no eigenvalue below zero"
        raise ValueError(f"gram_matrix is no Gram matrix: {wanted}")
    return matrix


def _checked_values(values: ArrayLike) -> Matrix:
    """Singular values, times a power of two that brings them to 0..1 and changes neither digits nor ratios."""
    sample = as_real(values, "values").astype(float)
    if sample.ndim != 1 or not sample.size or not ((sample >= 0) & (sample < np.inf)).all():
        raise ValueError(f"values {sample.ravel()[:3]} ...: expected (r,) finite numbers, none below zero")
    return np.ldexp(sample, -np.frexp(sample.max())[1])  # type: ignore[no-any-return]


def count_singular_values_above(values: ArrayLike, fraction: float) -> int:
    """The number of singular values `(r,)` that are at least `fraction` of the largest; 0 for a zero matrix.

    Raises:
        ValueError: `fraction` is not in [0, 1), or the values are not r finite numbers of at least 0.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction={fraction}: expected at least 0 and below 1")
    sample = _checked_values(values)
    return int((sample >= fraction * sample.max()).sum()) if sample.any() else 0


def participation_ratio(values: ArrayLike) -> float:
    """(sum s^2)^2 / sum s^4 of singular values s `(r,)`, from 1 to r: r for equal ones; 0 for a zero matrix.

    Raises:
        ValueError: the values are not r finite numbers of at least 0.
    """
    squares = np.square(_checked_values(values))
    return float(squares.sum() ** 2 / (squares**2).sum()) if squares.any() else 0.0


def stable_rank(values: ArrayLike) -> float:
    """The sum of s^2 over the largest s^2: squared Frobenius over squared spectral norm; 0 for a zero matrix.

    Raises:
        ValueError: the values are not r finite numbers of at least 0.
    """
    squares = np.square(_checked_values(values))
    return float(squares.sum() / squares.max()) if squares.any() else 0.0


def captured_energy(gram_matrix: Matrix, sample: NDArray[np.int64]) -> tuple[Matrix, Matrix]:
    """How well the first k right vectors of some rows describe the others, for each k: a share and a remaining norm.

    P_k projects on the first k right vectors of the m rows in `sample`, less those whose singular value is below the
    floor of a `Spectrum`. The rows g that are not in `sample` are held out, in their order.

    Args:
        gram_matrix: `(n, n)` of all rows.
        sample: indices of the m sampled rows, from 0, each once.

    Returns:
        energy: `(m,)`; entry k - 1 is the sum of ||P_k g||^2 over the held-out rows g over the sum of ||g||^2, 0 to 1.
        residual: `(n - m, m)`; entry k - 1 of a held-out row is ||g - P_k g|| / ||g||, 0 to 1, and 1 if g is zero.

    Raises:
        ValueError: `sample` holds no such indices, or leaves no row held out that is not zero; no Gram matrix.

    Examples:
        >>> rows = np.array([[2.0, 0.0], [3.0, 4.0]])
        >>> energy, residual = captured_energy(gram_matrix(rows), np.array([0]))
        >>> energy.round(6).tolist(), residual.round(6).tolist()
        ([0.36], [[0.8]])
    """
    gram_matrix = _checked_gram(gram_matrix)
    chosen = np.unique(sample)
    held_out = np.setdiff1d(np.arange(len(gram_matrix)), chosen)
    if chosen.dtype.kind not in "iu" or not len(sample) == len(chosen) == len(gram_matrix) - len(held_out) > 0:
        raise ValueError(f"sample={sample}: expected indices of rows, 0 to {len(gram_matrix) - 1}, each once")
    if not gram_matrix.diagonal()[held_out].any():
        raise ValueError(f"sample of {len(sample)} of {len(gram_matrix)} rows: expected at least one row held out")
    inner = singular_spectrum(gram_matrix[np.ix_(sample, sample)])
    usable = inner.values > inner.floor  # directions below the floor are noise and capture nothing
    inverse = np.where(usable, 1 / np.where(usable, inner.values, 1), 0)
    squares = ((gram_matrix[np.ix_(held_out, sample)] @ inner.left) * inverse) ** 2
    norms = gram_matrix.diagonal()[held_out]
    running = np.cumsum(squares, axis=1)
    residual = np.sqrt((1 - running / np.where(norms > 0, norms, 1)[:, None]).clip(0, 1))
    return running.sum(axis=0) / norms.sum(), residual


def gaussian_null_rows(norms: ArrayLike, columns: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Rows of independent Gaussian entries, scaled to the given norms `(n,)`: float32 `(n, columns)`.

    A null model: nothing is there beyond the size of each gradient.

    Raises:
        ValueError: the norms are not n finite numbers of at least 0 that float32 can hold, or no column.
    """
    _checked_values(norms)
    norms = as_real(norms, "norms")
    with np.errstate(over="ignore"):
        sizes = np.asarray(norms, np.float32)
    if columns < 1 or not np.isfinite(sizes).all() or (sizes == 0).sum() > (norms == 0).sum():
        raise ValueError(f"columns={columns}, norms up to {np.max(norms):.3g}: expected columns, and norms of float32")
    rows = generator.standard_normal((len(sizes), columns), dtype=np.float32)
    rows *= (sizes / np.linalg.norm(rows, axis=1))[:, None]
    return rows


def shuffled_null_rows(rows: ArrayLike, generator: np.random.Generator) -> NDArray[np.floating]:
    """The entries of each row in a random order of its own, `(n, P)`.

    A null model: rows keep their entries and norms, and have no direction in common.

    Raises:
        ValueError: no matrix of real numbers, or empty.
    """
    return generator.permuted(real_rows(rows), axis=1)


def one_over_n_spectrum(count: int) -> Matrix:
    """The values 1, 1/2, ..., 1/count, of which ten are at least a tenth of the first, whatever the count above ten.

    Raises:
        ValueError: no value.
    """
    check_whole(count=count)
    return 1 / np.arange(1, count + 1)
