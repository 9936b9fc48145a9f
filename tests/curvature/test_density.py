import numpy as np
import pytest
import torch
from dense import dense_matrix
from torch import nn

from descent.curvature.density import ProbeMean, estimate_trace, spectral_density
from descent.curvature.eigen import extreme_eigenpairs
from descent.curvature.operators import hessian
from descent.repro.seeding import global_seed, numpy_generator, torch_generator
from descent.training.loop import batch_cross_entropy

rng = np.random.default_rng(0)
VALUES = np.concatenate([[-9.0, -4.0], np.linspace(-1, 2, 195), [10.0, 20.0, 30.0]])
Q = np.linalg.qr(rng.standard_normal((200, 200)))[0]
MATRIX = (Q * VALUES) @ Q.T


def within(estimate: ProbeMean, exact: float, errors: float = 4) -> bool:
    return 0 < abs(estimate.value - exact) < errors * estimate.standard_error


@pytest.mark.parametrize("power", [1, 2])
def test_trace_is_within_its_error(power: int) -> None:
    exact = (VALUES**power).sum()
    few, many = (estimate_trace(MATRIX, n, numpy_generator(1, "probes"), power=power) for n in (50, 5000))
    assert within(few, exact)
    assert within(many, exact)
    matrix = np.linalg.matrix_power(MATRIX, power)
    variance = 2 * (np.square(matrix).sum() - np.square(np.diagonal(matrix)).sum())  # Hutchinson 1990
    assert many.standard_error == pytest.approx(np.sqrt(variance / 5000), rel=0.1)
    assert (few.samples, many.samples) == (50, 5000)


def test_trace_of_a_diagonal_is_exact_and_its_error_is_calibrated() -> None:
    found = estimate_trace(np.diag(VALUES), 3, numpy_generator(0, "probes"))
    assert found.value == pytest.approx(VALUES.sum())
    assert found.standard_error < 1e-12
    repeats = [estimate_trace(MATRIX, 20, numpy_generator(seed, "probes")) for seed in range(300)]
    scores = [(found.value - VALUES.sum()) / found.standard_error for found in repeats]
    assert abs(np.mean(scores)) < 0.3
    assert 0.85 < np.std(scores) < 1.25  # a t of 19 degrees of freedom has 1.06


@pytest.mark.parametrize("deflated", [False, True])
def test_moments_agree_with_exact_traces(deflated: bool) -> None:
    known = (VALUES[-3:], Q[:, -3:]) if deflated else None
    found = spectral_density(MATRIX, 12, 40, numpy_generator(0, "probes"), known=known)
    assert found.moment(0).value == pytest.approx(1)
    for power in (1, 2, 3, 4):
        assert within(found.moment(power), np.mean(VALUES**power))


def test_each_probe_is_a_gauss_quadrature() -> None:
    found = spectral_density(MATRIX, 6, 2, numpy_generator(0, "probes"))
    generator = numpy_generator(0, "probes")
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        start = generator.standard_normal(200)
        shares = (Q.T @ start) ** 2 / (start @ start)
        for power in range(12):  # exact to degree 2 m - 1
            assert weights @ nodes**power == pytest.approx(shares @ VALUES**power, rel=1e-9)


def test_no_eigenvalue_is_found_twice() -> None:
    found = spectral_density(MATRIX, 100, 2, numpy_generator(0, "probes"))
    for value in (-9, -4, 10, 20, 30):
        assert (np.abs(found.nodes - value) < 1e-6).sum(axis=1).tolist() == [1, 1]


def test_known_pairs_leave_less_to_chance() -> None:
    pairs = extreme_eigenpairs(MATRIX, 5, "magnitude", numpy_generator(0, "start"))
    plain = spectral_density(MATRIX, 20, 10, numpy_generator(0, "probes"))
    deflated = spectral_density(MATRIX, 20, 10, numpy_generator(0, "probes"), known=(pairs.values, pairs.vectors))
    assert deflated.moment(1).standard_error < plain.moment(1).standard_error / 2
    np.testing.assert_allclose(deflated.weights[:, -5:], 1 / 200)
    np.testing.assert_allclose(deflated.weights.sum(1), 1)
    assert deflated.nodes[:, :-5].max() < 2 + 1e-6
    assert deflated.nodes[:, :-5].min() > -1 - 1e-6


@pytest.mark.parametrize("deflated", [False, True])
def test_density_is_the_smeared_spectrum_within_its_error(deflated: bool) -> None:
    known = (VALUES[-3:], Q[:, -3:]) if deflated else None
    found = spectral_density(MATRIX, 60, 100, numpy_generator(0, "probes"), known=known, width=0.5)
    kernel = np.exp(-(((found.grid[:, None] - VALUES) / 0.5) ** 2) / 2) / (0.5 * np.sqrt(2 * np.pi))
    difference = np.abs(found.density - kernel.mean(1))
    assert (difference <= 4 * found.standard_error + 1e-6).all()
    assert difference.max() > 1e-5
    step = found.grid[1] - found.grid[0]
    assert found.density.sum() * step == pytest.approx(1, abs=1e-5)
    assert found.grid[0] < -9 - 2
    assert found.grid[-1] > 30 + 2


def test_mass_below_is_the_index_over_p() -> None:
    negative = np.linspace(-2, -1, 60)
    values = np.concatenate([negative, np.linspace(1, 3, 140)])
    found = spectral_density((Q * values) @ Q.T, 30, 40, numpy_generator(0, "probes"))
    assert within(found.mass_below(0), 0.3)
    assert found.mass_below(-2.1).value == 0
    assert found.mass_below(3.1).value == pytest.approx(1)


def test_exhausted_spaces_and_zero_operators() -> None:
    two = spectral_density(np.diag([1.0] * 10 + [3.0] * 30), 8, 30, numpy_generator(0, "probes"))
    assert within(two.mass_below(2), 0.25)
    assert ((two.weights > 0).sum(1) == 2).all()
    one = spectral_density(2 * np.eye(30), 8, 3, numpy_generator(0, "probes"), grid=[1, 1.99, 2, 2.01, 4])
    assert (one.moment(1).value, one.moment(1).standard_error) == (pytest.approx(2), pytest.approx(0))
    assert (one.density.argmax(), one.grid.tolist()) == (2, [1, 1.99, 2, 2.01, 4])
    zero = spectral_density(np.zeros((5, 5)), 8, 3, numpy_generator(0, "probes"))
    assert zero.moment(2).value == 0


def test_density_of_a_networks_hessian_has_its_moments() -> None:
    with global_seed(0, "net"):
        model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs = torch.randn(20, 3, generator=torch_generator(0, "data"), dtype=torch.float64)
    operator = hessian(model, batch_cross_entropy, [(inputs, torch.arange(20) % 3)])
    matrix = dense_matrix(operator)
    found = spectral_density(operator, 10, 30, numpy_generator(0, "probes"))
    for power in (1, 2, 3):
        assert within(found.moment(power), np.trace(np.linalg.matrix_power(matrix, power)) / len(matrix))
    assert within(estimate_trace(operator, 100, numpy_generator(0, "signs")), np.trace(matrix))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: estimate_trace(MATRIX, 1, g), "samples=1: expected at least 2"),
        (lambda g: estimate_trace(MATRIX, 5, g, power=3), "power=3: expected 1 or 2"),
        (lambda g: spectral_density(MATRIX, 0, 2, g), "steps=0: expected at least 1"),
        (lambda g: spectral_density(MATRIX, 5, 1, g), "samples=1: expected"),
        (lambda g: spectral_density(MATRIX, 5, 2, g, width=0.0), "width=0.0, .* expected a finite width above 0"),
        (lambda g: spectral_density(MATRIX, 5, 2, g, grid=[1, 0]), "a grid \\(g,\\) that ascends"),
        (lambda g: spectral_density(MATRIX, 5, 2, g, known=(VALUES, Q)), r"shape \(200, 200\): .* k below P"),
        (lambda g: spectral_density(MATRIX, 5, 2, g, known=(VALUES[:2], Q[:2])), r"\(2, 200\): expected \(200, 2\)"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(numpy_generator(0, "probes"))  # type: ignore[operator]
