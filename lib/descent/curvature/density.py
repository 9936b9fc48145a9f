"""Trace and density of eigenvalues of a symmetric operator from random probes, with standard errors over the probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike
from scipy.sparse.linalg import LinearOperator
from tqdm import tqdm

from descent.curvature.eigen import Array, Eigenpairs, Products, lanczos_tridiagonalise, length
from descent.repro.numbers import as_real, check_whole

GRID_POINTS = 1024


@dataclass(frozen=True)
class ProbeMean:
    """A mean over independent probes.

    Attributes:
        value: the mean.
        standard_error: of the mean, the probes' standard deviation over the root of their number.
        samples: the number of probes.
    """

    value: float
    standard_error: float
    samples: int

    @classmethod
    def of(cls, probes: Array) -> ProbeMean:
        """The estimate from one number per probe, `(s,)`."""
        return cls(float(probes.mean()), float(_standard_error(probes)), len(probes))


def _standard_error(probes: Array) -> Array:
    """Of the mean over the first axis, also where squares are out of float64's range."""
    exponent = np.frexp(np.abs(probes).max(initial=0))[1]
    error: Array = np.ldexp(np.ldexp(probes, -exponent).std(axis=0, ddof=1) / np.sqrt(len(probes)), exponent)
    return error


@dataclass(frozen=True)
class Density:
    """The density of eigenvalues, each of which counts 1 / P, and the quadrature that it comes from.

    Attributes:
        grid: `(g,)`, the places at which the density is given, in the operator's units.
        density: `(g,)`, share of the eigenvalues per unit, each smeared to a Gaussian of standard deviation `width`.
        standard_error: `(g,)`, of `density`, over the probes.
        width: in the operator's units.
        nodes: `(s, m)`, for each probe a row of Ritz values, and at its end the eigenvalues known beforehand.
        weights: `(s, m)`, share of the spectrum at each node; rows sum to 1.
    """

    grid: Array
    density: Array
    standard_error: Array
    width: float
    nodes: Array
    weights: Array

    def mean_of(self, function: Callable[[Array], Array]) -> ProbeMean:
        """The mean of a function over all eigenvalues, tr f(H) / P; `function` acts on arrays elementwise."""
        return ProbeMean.of((self.weights * function(self.nodes)).sum(1))

    def moment(self, power: int) -> ProbeMean:
        """Mean of the eigenvalues to a power, tr H^power / P; a probe's own moments are exact up to 2 steps - 1."""
        return self.mean_of(lambda nodes: nodes**power)

    def mass_below(self, bound: float) -> ProbeMean:
        """Share of the eigenvalues below `bound`; at 0 an estimate of the index over P.

        Each Ritz value stands for a stretch of the spectrum. At a bound within a dense stretch the share is off by up
        to a node's weight, which the standard error does not count. Rounding scatters zero eigenvalues to either side
        of zero: a bound a little below it leaves them out.

        Raises:
            ValueError: the bound is NaN.
        """
        if np.isnan(bound):
            raise ValueError(f"bound={bound}: expected a number")
        return self.mean_of(lambda nodes: (nodes < bound).astype(float))


def estimate_trace(
    operator: LinearOperator | Array,
    samples: int,
    generator: np.random.Generator,
    *,
    power: int = 1,
    progress: str | None = None,
) -> ProbeMean:
    """The trace of H, or of H^2 at the same cost: the mean of z^T H z over random signs z (Hutchinson 1990).

    Each sample takes one product. The standard error falls as 1 / sqrt(samples); for a diagonal H and power 1 it is
    zero.

    Args:
        operator: `(P, P)`, symmetric.
        samples: vectors of random signs, at least two.
        generator: draws them.
        power: 1 for tr H, in the operator's units; 2 for tr H^2, in their squares.
        progress: text before a progress bar; None shows none.

    Raises:
        ValueError: fewer than two samples, or another power; an operator that is not symmetric or not finite.

    Examples:
        >>> estimate = estimate_trace(np.ones((50, 50)), 400, np.random.default_rng(0))
        >>> abs(estimate.value - 50) < 3 * estimate.standard_error, estimate.samples
        (True, 400)
    """
    check_whole(2, samples=samples)
    if power not in (1, 2):
        raise ValueError(f"power={power}: expected 1 or 2")
    multiply = Products(operator, generator)
    probes = np.empty(samples)
    for i in tqdm(range(samples), desc=progress, disable=progress is None, unit="sample"):
        signs = generator.choice([-1.0, 1.0], multiply.size)
        product = multiply(signs)
        probes[i] = product @ (signs if power == 1 else product)
    return ProbeMean.of(probes)


def spectral_density(
    operator: LinearOperator | Array,
    steps: int,
    samples: int,
    generator: np.random.Generator,
    *,
    known: tuple[Array, Array] | Eigenpairs | None = None,
    width: float | None = None,
    grid: ArrayLike | None = None,
    progress: str | None = None,
) -> Density:
    """The density of eigenvalues by stochastic Lanczos quadrature (Lin et al. 2016, section 3.2; Ghorbani et al. 2019).

    Each probe is a random direction, whose Lanczos matrix gives a Gauss quadrature of the spectrum. Lanczos vectors are
    fully reorthogonalised, so that no eigenvalue is found twice. A sample takes `steps` products, fewer where its
    Krylov space is exhausted, and memory for `(steps, P)` numbers.

    Eigenpairs that are `known` are counted exactly, and the probes are drawn orthogonal to them. A few outliers carry
    most of the probes' variance: without them the same error takes several times fewer samples.

    Args:
        operator: `(P, P)`, symmetric.
        steps: Lanczos steps per probe.
        samples: probes, at least two.
        generator: draws the probes, Gaussian.
        known: values `(k,)` and orthonormal vectors `(P, k)`, k below P, or what `eigen.extreme_eigenpairs` returns.
        width: of each eigenvalue's Gaussian; None takes a hundredth of the range of the Ritz values.
        grid: `(g,)`, ascending; None takes 1,024 points, to five widths beyond the Ritz values at either side.
        progress: text before a progress bar; None shows none.

    Raises:
        ValueError: steps, samples or width out of range, a grid that does not ascend, known pairs that are not finite,
            not orthonormal, of another shape or of another operator, an operator that is not symmetric or not finite.

    Examples:
        A quarter of the eigenvalues of this matrix is 1, the rest is 3:

        >>> matrix = np.diag([1.0] * 100 + [3.0] * 300)
        >>> density = spectral_density(matrix, steps=2, samples=50, generator=np.random.default_rng(0))
        >>> share = density.mass_below(2)
        >>> abs(share.value - 0.25) < 3 * share.standard_error, density.nodes[0].round(9)
        (True, array([1., 3.]))
    """
    multiply = Products(operator, generator)
    known = (known.values, known.vectors) if isinstance(known, Eigenpairs) else known
    known = (np.zeros(0), np.zeros((multiply.size, 0))) if known is None else known
    values, vectors = (as_real(part, "known") for part in known)
    check_whole(steps=steps)
    check_whole(2, samples=samples)
    grid = None if grid is None else as_real(grid, "grid").astype(float)
    if vectors.shape != (multiply.size, len(values)) or len(values) >= multiply.size:
        raise ValueError(
            f"known vectors of shape {vectors.shape}: expected ({multiply.size}, {len(values)}), k below P"
        )
    if not (np.isfinite(values).all() and np.allclose(vectors.T @ vectors, np.eye(len(values)), atol=1e-3)):
        raise ValueError("known pairs: expected finite values and orthonormal vectors")
    _check_known(multiply, values, vectors)
    if (width is not None and not 0 < width < np.inf) or (grid is not None and not _ascends(grid)):
        raise ValueError(f"width={width}, or the grid: expected a finite width above 0, and a grid (g,) that ascends")
    rank = min(steps, multiply.size - len(values))
    nodes, weights = np.zeros((2, samples, rank + len(values)))
    for i in tqdm(range(samples), desc=progress, disable=progress is None, unit="sample"):
        nodes[i], weights[i] = _probe(multiply, rank, generator, values, vectors)
    return _smeared(nodes, weights, width, grid)


def _check_known(multiply: Products, values: Array, vectors: Array) -> None:
    """Refuse eigenpairs that are not the operator's, of which one product of their sum tells."""
    if len(values):
        sums = np.column_stack([vectors.sum(1), np.ones(multiply.size)])
        product, other = (multiply.inner @ sums).T
        largest = max(np.abs(values).max(), length(other) / multiply.size**0.5)
        if not length(product - vectors @ values) <= 0.1 * largest * len(values) ** 0.5:
            raise ValueError("known pairs are not the operator's: expected those of extreme_eigenpairs of it")


def _ascends(grid: Array) -> bool:
    return grid.ndim == 1 and bool((np.diff(grid) > 0).all())


def _probe(
    multiply: Products, steps: int, generator: np.random.Generator, values: Array, vectors: Array
) -> tuple[Array, Array]:
    """Nodes and weights, `(steps + k,)` each, from one random direction orthogonal to the k known vectors."""
    start = generator.standard_normal(multiply.size)
    start -= vectors @ (vectors.T @ start)
    diagonal, off, _ = lanczos_tridiagonalise(multiply, start, steps, vectors)
    ritz, rotation = scipy.linalg.eigh_tridiagonal(diagonal, off)
    free = (multiply.size - len(values)) / multiply.size
    lacking = steps - len(ritz)  # where the space was exhausted: filled with a node of weight zero
    nodes = np.concatenate([ritz, np.full(lacking, ritz[0]), values])
    weights = np.concatenate([rotation[0] ** 2 * free, np.zeros(lacking), np.full(len(values), 1 / multiply.size)])
    return nodes, weights


def _smeared(nodes: Array, weights: Array, width: float | None, grid: Array | None) -> Density:
    """The density with a Gaussian at each node `(s, m)`; without a width or a grid the nodes decide them."""
    low, high = float(nodes.min()), float(nodes.max())
    if width is None:  # a single eigenvalue has no range
        width = (high - low or abs(high) or 1.0) / 100
    if grid is None:
        grid = np.linspace(low - 5 * width, high + 5 * width, GRID_POINTS)
    curves = np.empty((len(nodes), len(grid)))
    for i, (row, shares) in enumerate(zip(nodes, weights, strict=True)):
        curves[i] = np.exp(-0.5 * ((grid[:, None] - row) / width) ** 2) @ shares / (width * np.sqrt(2 * np.pi))
    return Density(grid, curves.mean(axis=0), _standard_error(curves), width, nodes, weights)
