"""The expected loss of small toy models, by quadrature: one feature alone, two on one dimension, and a few in any W.

An input is 0 with probability 1 - d, d the density, else uniform on 0 to 1; noise on it is Gaussian, and the target has
none. The output is ReLU(W^T W (x + noise) + b). Losses are per feature, importance 1. The candidates and the phase
diagram are those of Elhage et al. 2022 (Toy Models of Superposition, "Superposition as a phase change").
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import ndtr
from scipy.stats import qmc
from torch import Tensor

from descent.experiments.toy_models import ToyModels, checked_weights
from descent.repro.numbers import as_real, check_whole
from descent.repro.seeding import numpy_generator

Array = NDArray[np.float64]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(96)
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2  # from -1 to 1 onto 0 to 1
KINDS = ("single", "pair")
MOST_FEATURES = 10  # of `expected_losses`, which goes through all sets of them


def _density(x: Array) -> Array:
    """That of a standard Gaussian."""
    density: Array = np.exp(-np.square(x) / 2) / np.sqrt(2 * np.pi)
    return density


def _error(mean: Array, spread: float, target: Array | float) -> Array:
    """The expectation of (ReLU(mean + spread xi) - target)^2 over a standard Gaussian xi, elementwise."""
    if spread == 0:
        return np.square(np.maximum(mean, 0) - target)
    z = mean / spread
    first = mean * ndtr(z) + spread * _density(z)
    second = (mean**2 + spread**2) * ndtr(z) + mean * spread * _density(z)
    error: Array = second - 2 * target * first + np.square(target)
    return error


def _check(density: float, noise: float = 0.0, kind: str = "pair") -> None:
    if not 0 < density <= 1:
        raise ValueError(f"density={density}: expected one above 0 and at most 1")
    if not 0 <= noise < np.inf:
        raise ValueError(f"noise={noise}: expected a standard deviation of at least 0")
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")


def _over_x(mean: Array, spread: float, target: Array | float) -> float:
    """The expected error over x, uniform on 0 to 1; `mean` and `target` are at NODES."""
    return float(WEIGHTS @ _error(mean, spread, target))


def learnt_loss(kind: str, scale: float, bias: float, density: float, noise: float = 0.0) -> float:
    """The expected squared error of a feature that is learnt.

    Args:
        kind: "single", a feature with a dimension of its own, or "pair", two features antipodal on one.
        scale: squared length of the column of W, the same for both of a pair.
        bias: that of the feature's output.
        density: d of the feature, or of both.
        noise: standard deviation of the noise on each input.

    Raises:
        ValueError: an unknown kind, a density or noise out of range, a scale below 0.
    """
    _check(density, noise, kind)
    if scale < 0:
        raise ValueError(f"scale={scale}: expected a squared length, at least 0")
    absent, spread = 1 - density, scale * noise
    nothing = float(_error(np.array(bias), spread * (1 if kind == "single" else np.sqrt(2)), 0.0))
    if kind == "single":
        return absent * nothing + density * _over_x(scale * NODES + bias, spread, NODES)
    spread *= np.sqrt(2)
    own = _over_x(scale * NODES + bias, spread, NODES)
    other = _over_x(-scale * NODES + bias, spread, 0.0)
    y = NODES[:, None]  # each row is for one y, its kink near x = y
    x = np.concatenate([y * NODES, y + (1 - y) * NODES], 1)
    parts = np.concatenate([y * WEIGHTS, (1 - y) * WEIGHTS], 1)
    both = float(WEIGHTS @ (parts * _error(scale * (x - y) + bias, spread, x)).sum(1))
    return absent**2 * nothing + density * absent * (own + other) + density**2 * both


def ignored_loss(density: float) -> float:
    """The expected squared error of a feature that is not learnt: its variance, with the bias at its mean."""
    _check(density)
    return density / 3 - density**2 / 4


class LossMinimum(NamedTuple):
    """A minimum of the expected loss: squared length, bias and the loss there."""

    scale: float
    bias: float
    loss: float


def _bounded_bias(kind: str, density: float, noise: float) -> tuple[float, float]:
    """The best bias of -1 to 1 at length one, and its loss."""
    _check(density, noise, kind)
    minimum = minimize_scalar(
        lambda bias: learnt_loss(kind, 1.0, bias, density, noise),
        bounds=(-1, 1), method="bounded", options={"xatol": 1e-7},
    )  # fmt: skip
    return float(minimum.x), float(minimum.fun)


@cache
def best_bias(kind: str, density: float, noise: float = 0.0) -> LossMinimum:
    """The best bias at length one; raises as `learnt_loss` does, and where much noise takes it below -1."""
    bias, loss = _bounded_bias(kind, density, noise)
    if bias < -0.999:
        raise ValueError(f"noise={noise}: the best bias at length one lies below -1, where hardly anything passes")
    return LossMinimum(1.0, bias, loss)


@cache
def best_length_and_bias(kind: str, density: float, noise: float = 0.0) -> LossMinimum:
    """The best length and bias together, never worse than length 0; raises as `learnt_loss` does."""
    for start in ([1.0, _bounded_bias(kind, density, noise)[0]], [0.1, density / 2]):  # the second if noise is large
        minimum = minimize(
            lambda point: learnt_loss(kind, abs(point[0]), point[1], density, noise),
            start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12},
        )  # fmt: skip
        if not minimum.success:
            raise ValueError(f"{kind}, density={density}, noise={noise}: the search for a minimum did not converge")
        if minimum.fun < ignored_loss(density):
            return LossMinimum(abs(float(minimum.x[0])), float(minimum.x[1]), float(minimum.fun))
    return LossMinimum(0.0, density / 2, ignored_loss(density))


def candidate_losses(density: float, importance: float) -> dict[str, float]:
    """The loss for n = 2 and m = 1, summed over feature 1 (importance 1) and 2, for each use of the one dimension.

    Returns:
        "first", W = (1, 0); "second", W = (0, 1); "both", W = (1, -1), each with its best bias.

    Raises:
        ValueError: a density out of range, an importance that is not positive.
    """
    if not 0 < importance < np.inf:
        raise ValueError(f"importance={importance}: expected a positive number")
    lost, shared = ignored_loss(density), best_bias("pair", density).loss
    return {"first": importance * lost, "second": lost, "both": (1 + importance) * shared}


def sharing_boundary(density: ArrayLike) -> Array:
    """The least relative importance at which two features share a dimension, `(k,) -> (k,)`; NaN where they never do.

    By symmetry they share it up to the inverse of this. At bias 0, which is nearly best, it is 2 d / (4 - 5 d).

    Raises:
        ValueError: densities that are no real numbers, not in one row, or out of range.
    """
    ratios, given = [], np.atleast_1d(as_real(density, "density"))
    if given.ndim > 1:
        raise ValueError(f"density of shape {given.shape}: expected (k,)")
    for d in given:
        shared, lost = best_bias("pair", float(d)).loss, ignored_loss(float(d))
        ratios.append(shared / (lost - shared) if 2 * shared <= lost else np.nan)
    return np.array(ratios)


def bias_noise_ratio(density: float) -> float:
    """The ratio beta in b = -beta s, the best bias of a learnt feature whose ReLU gets little noise, of deviation s.

    Where a feature is absent the ReLU must clip the noise; where it is present the bias is an error of -beta s. At
    length one, beta would solve (1 - d) (phi(beta) - beta (1 - Phi(beta))) = d beta. As the squared length moves, too,
    to 1 + 1.5 beta s, it makes up for the bias on average over x; a quarter of the cost remains, and d / 4 takes the
    place of d on the right. Neither depends on the noise. For a feature with a dimension of its own, s is the noise of
    its input; in a pair that of the other is added, and s is sqrt(2) times that, if both are rarely present together.

    Raises:
        ValueError: a density out of range.
    """
    _check(density)

    def slope(beta: float) -> float:
        clipped = float(_density(np.array(beta)) - beta * ndtr(-beta))
        return (1 - density) * clipped - density / 4 * beta

    return float(brentq(slope, 0.0, 40.0))


def expected_losses(toys: ToyModels, W: Tensor, b: Tensor, points: int = 256, seed: int = 0) -> Array:
    """The expected losses of models of few features, `(k,)`: mean per input and feature, weighted by importance.

    The 2^n sets of features that can be present together are gone through one by one. In each the inputs are `points`
    of a scrambled Sobol sequence, and its mean error counts with the chance of the set at the densities of the model.
    So rare sets have as many points as frequent ones, and solutions can be ranked whose losses differ by 1e-3.

    Args:
        toys: the models; no more than MOST_FEATURES features, kind "relu", no noise.
        W: `(k, m, n)`.
        b: `(k, n)`.
        points: for each set, a power of two.
        seed: of the scrambling; how far two seeds differ is the error.

    Raises:
        ValueError: models of another kind, with noise or too many features, weights of other shapes, other `points`.
    """
    check_whole(points=points)
    check_whole(0, seed=seed)
    density, importance, noise = (values.double().numpy() for values in toys.tensors())
    if toys.kind != "relu" or noise.any() or toys.n > MOST_FEATURES:
        given = f"{toys.n} features, kind {toys.kind!r}, noise up to {noise.max():g}"
        raise ValueError(f"models of {given}: expected at most {MOST_FEATURES}, 'relu' and no noise")
    if points & (points - 1):
        raise ValueError(f"points={points}: expected a power of two")
    maps, biases = (values.double().numpy() for values in checked_weights(toys, W, b))
    sobol = qmc.Sobol(toys.n, rng=numpy_generator(seed, "expected losses")).random(points).T  # (n, points)
    sets = np.arange(2**toys.n) >> np.arange(toys.n)[:, None] & 1  # (n, 2^n), whether each feature is present
    x = (sets[:, :, None] * sobol[:, None]).reshape(toys.n, -1)
    losses = []
    for w, bias, d, weight in zip(maps, biases, density, importance, strict=True):
        error = np.maximum(w.T @ (w @ x) + bias[:, None], 0) - x
        chance = np.where(sets, d[:, None], 1 - d[:, None]).prod(0)
        losses.append((weight @ np.square(error, out=error)).reshape(-1, points).mean(1) @ chance / toys.n)
    return np.array(losses)
