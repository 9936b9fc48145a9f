"""Standard errors, tolerances, default widths and generators of the estimates of curvature, each by a plain formula."""

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator

from descent.curvature.density import ProbeMean, estimate_trace, spectral_density
from descent.curvature.eigen import count_positive_definite, extreme_eigenpairs

rng = np.random.default_rng(0)
MATRIX = (lambda a: (a + a.T) / 2)(rng.standard_normal((60, 60)))


class Shifted(LinearOperator):
    """A matrix whose products with several vectors at once, which give the residuals, are off by a share of 4e-5."""

    def __init__(self, matrix: np.ndarray, off: float) -> None:
        super().__init__(float, matrix.shape)
        self.matrix, self.off = matrix, off

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        return self.matrix @ vector

    def _matmat(self, vectors: np.ndarray) -> np.ndarray:
        return (1 + self.off) * (self.matrix @ vectors)


@pytest.mark.parametrize(("tolerance", "converged"), [(1e-5, False), (3.9e-5, False), (4.1e-5, True), (1e-4, True)])
def test_converged_means_residuals_within_the_tolerance(tolerance: float, converged: bool) -> None:
    operator = Shifted(np.diag(np.arange(1.0, 61)), 4e-5)
    pairs = extreme_eigenpairs(operator, 2, "largest", np.random.default_rng(0), tolerance=tolerance)
    np.testing.assert_allclose(pairs.residuals, [59 * 4e-5, 60 * 4e-5], rtol=1e-2)
    assert pairs.converged is converged


def test_the_default_tolerance_is_1e_5() -> None:
    for off, converged in ((0.9e-5, True), (1.1e-5, False)):
        pairs = extreme_eigenpairs(Shifted(np.diag(np.arange(1.0, 61)), off), 2, "largest", np.random.default_rng(0))
        assert pairs.converged is converged


def test_the_generator_decides_where_the_iteration_starts() -> None:
    def unfinished(seed: int) -> np.ndarray:
        seen = []
        operator = LinearOperator(MATRIX.shape, matvec=lambda v: (seen.append(v.copy()), MATRIX @ v)[1], dtype=float)
        extreme_eigenpairs(operator, 1, "largest", np.random.default_rng(seed), max_matvecs=25)
        return seen[0]

    assert np.array_equal(unfinished(0), unfinished(0))
    assert not np.allclose(unfinished(0), unfinished(1))


def test_a_standard_error_has_the_root_of_the_number() -> None:
    mean = ProbeMean.of(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (mean.value, mean.samples) == (2.5, 4)
    assert mean.standard_error == pytest.approx(np.sqrt(5 / 3) / 2)
    many = ProbeMean.of(np.tile([1.0, 2.0, 3.0, 4.0], 100))
    assert many.standard_error == pytest.approx(np.sqrt(400 * 1.25 / 399) / 20)


def test_the_density_is_the_mean_of_its_probes_curves_with_their_error() -> None:
    found = spectral_density(MATRIX, 6, 5, np.random.default_rng(0))
    low, high = found.nodes.min(), found.nodes.max()
    assert found.width == pytest.approx((high - low) / 100)
    np.testing.assert_allclose(found.grid, np.linspace(low - 5 * found.width, high + 5 * found.width, 1024))
    away = (found.grid[None, :, None] - found.nodes[:, None]) / found.width
    curves = (np.exp(-(away**2) / 2) * found.weights[:, None]).sum(2) / (found.width * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(found.density, curves.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.standard_error, curves.std(0, ddof=1) / np.sqrt(5), atol=1e-12)
    np.testing.assert_allclose(found.weights.sum(1), 1)


def test_without_a_range_and_a_size_the_width_is_a_hundredth() -> None:
    assert spectral_density(np.zeros((30, 30)), 1, 2, np.random.default_rng(0)).width == pytest.approx(0.01)


@pytest.mark.parametrize(
    "estimate",
    [
        lambda generator: estimate_trace(MATRIX, 3, generator).value,
        lambda generator: spectral_density(MATRIX, 4, 3, generator).mass_below(0).value,
        lambda generator: count_positive_definite(1, 10_000, generator),
    ],
)
def test_the_generator_decides_the_probes(estimate) -> None:
    assert estimate(np.random.default_rng(0)) == estimate(np.random.default_rng(0))
    assert estimate(np.random.default_rng(0)) != estimate(np.random.default_rng(1))


def test_the_probes_of_a_trace_are_the_generators_signs() -> None:
    generator = np.random.default_rng(5)
    signs = np.array([generator.choice([-1.0, 1.0], 60) for _ in range(4)])
    quadratic = np.einsum("si,ij,sj->s", signs, MATRIX, signs)
    found = estimate_trace(MATRIX, 4, np.random.default_rng(5))
    assert found.value == pytest.approx(quadratic.mean())
    assert found.standard_error == pytest.approx(quadratic.std(ddof=1) / 2)
    squares = ((signs @ MATRIX) ** 2).sum(1)
    assert estimate_trace(MATRIX, 4, np.random.default_rng(5), power=2).value == pytest.approx(squares.mean())
