import math

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator

from descent.curvature.eigen import count_positive_definite, extreme_eigenpairs, saddle_free_step
from descent.repro.seeding import numpy_generator

rng = np.random.default_rng(0)


def with_spectrum(values: np.ndarray) -> np.ndarray:
    """A symmetric float64 matrix with exactly these eigenvalues."""
    Q = np.linalg.qr(rng.standard_normal((len(values),) * 2))[0]
    return (Q * values) @ Q.T


VALUES = np.concatenate([[-9.0, -4.0, -1.5], np.linspace(-1, 1, 94), [2.0, 5.0, 30.0]])
MATRIX = with_spectrum(VALUES)
WANTED = {"largest": [-3, -2, -1], "smallest": [0, 1, 2], "both": [0, -2, -1], "magnitude": [0, -2, -1]}


@pytest.mark.parametrize("which", WANTED)
@pytest.mark.parametrize("size", [100, 12])
def test_pairs_of_a_known_spectrum(which: str, size: int) -> None:
    values = np.delete(VALUES, np.arange(6, 6 + 100 - size))
    matrix = with_spectrum(values)
    found = extreme_eigenpairs(matrix, 3, which, numpy_generator(0, "start"), tolerance=1e-9)
    expected = np.sort(values[WANTED[which]])
    np.testing.assert_allclose(found.values, expected, atol=1e-9)
    np.testing.assert_allclose(matrix @ found.vectors, found.vectors * expected, atol=1e-7)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(3), atol=1e-10)
    assert found.converged
    assert found.residuals.max() <= 1e-9 * 30


def test_start_is_the_generators() -> None:
    first, second = (extreme_eigenpairs(MATRIX, 2, "largest", numpy_generator(3, "start")) for _ in range(2))
    assert np.array_equal(first.vectors, second.vectors)


def test_an_unconverged_run_says_so() -> None:
    matrix = with_spectrum(np.linspace(0, 1, 400))
    found = extreme_eigenpairs(matrix, 5, "largest", numpy_generator(0, "start"), tolerance=1e-12, max_matvecs=40)
    assert not found.converged
    assert found.matvecs <= 60
    assert len(found.values) == len(found.residuals) == found.vectors.shape[1] < 5
    found = extreme_eigenpairs(matrix, 5, "largest", numpy_generator(0, "start"), tolerance=1e-12, max_matvecs=4000)
    assert found.converged
    np.testing.assert_allclose(found.values, np.linspace(0, 1, 400)[-5:], atol=1e-11)


def test_noisy_products_do_not_pass_for_converged() -> None:
    noise = np.random.default_rng(1)

    def rough(vector: np.ndarray) -> np.ndarray:
        return MATRIX @ vector + 1e-3 * noise.standard_normal(vector.shape)

    operator = LinearOperator(MATRIX.shape, matvec=rough, dtype=np.float64)
    found = extreme_eigenpairs(operator, 3, "largest", numpy_generator(0, "start"), tolerance=1e-6)
    np.testing.assert_allclose(found.values, VALUES[-3:], atol=0.1)
    assert not found.converged


def test_matvecs_counts_every_product() -> None:
    calls = []

    def multiply(vector: np.ndarray) -> np.ndarray:
        calls.append(1)
        return MATRIX @ vector

    found = extreme_eigenpairs(
        LinearOperator(MATRIX.shape, matvec=multiply, dtype=np.float64), 2, "both", numpy_generator(0, "start")
    )
    assert found.matvecs == len(calls)


def test_zero_and_identity() -> None:
    for scale in (0.0, 2.0):
        for size in (10, 50):
            found = extreme_eigenpairs(scale * np.eye(size), 2, "largest", numpy_generator(0, "start"))
            np.testing.assert_allclose(found.values, [scale, scale], atol=1e-12)
            assert found.converged


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("which", ["smallest", "largest", "both"])
def test_an_eigenvalue_of_zero_is_found_at_its_end(which: str, sign: int) -> None:
    values = np.sort(sign * np.arange(50.0))
    found = extreme_eigenpairs(np.diag(values), 3, which, numpy_generator(0, "start"), tolerance=1e-9)
    np.testing.assert_allclose(found.values, np.sort(values[WANTED[which]]), atol=1e-7)
    assert found.converged
    flat = extreme_eigenpairs(-2 * np.eye(50), 2, which, numpy_generator(0, "start"))
    np.testing.assert_allclose(flat.values, [-2, -2], atol=1e-12)


def absolute_inverse(matrix: np.ndarray, damping: float = 0.0) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors / (np.abs(values) + damping)) @ vectors.T


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_saddle_free_step_is_exact_with_a_full_space(damping: float) -> None:
    matrix = with_spectrum(np.array([-3.0, -0.5, 0.2, 1.0, 1.0, 8.0]))
    gradient = rng.standard_normal(6)
    for vectors in (6, 50):
        step = saddle_free_step(matrix, gradient, vectors, damping)
        np.testing.assert_allclose(step, -absolute_inverse(matrix, damping) @ gradient, rtol=1e-9)


def test_saddle_free_step_descends_a_saddle_on_both_sides() -> None:
    step = saddle_free_step(np.diag([2.0, -4.0]), np.array([2.0, -4.0]), 2)
    np.testing.assert_allclose(
        step, [-1, 1], atol=1e-12
    )  # Newton's would be (-1, -1): up the second axis, to the saddle


def test_saddle_free_step_of_an_exhausted_space_is_exact() -> None:
    matrix = np.diag([5.0, -2.0, 0.0, 3.0])
    np.testing.assert_allclose(saddle_free_step(matrix, np.array([1.0, 1, 0, 0]), 4), [-0.2, -0.5, 0, 0], atol=1e-12)
    np.testing.assert_allclose(saddle_free_step(2 * np.eye(30), np.ones(30), 20), -0.5 * np.ones(30), atol=1e-12)
    assert not saddle_free_step(matrix, np.zeros(4), 4).any()


def test_saddle_free_step_leaves_out_flat_directions_unless_damped() -> None:
    matrix, gradient = np.diag([1.0, 0.0]), np.array([3.0, 4.0])
    np.testing.assert_allclose(saddle_free_step(matrix, gradient, 2), [-3, 0], atol=1e-12)
    np.testing.assert_allclose(saddle_free_step(matrix, gradient, 2, 1.0), [-1.5, -4], atol=1e-12)


def test_one_vector_is_a_gradient_step_of_the_rayleigh_length() -> None:
    gradient = rng.standard_normal(100)
    curvature = gradient @ MATRIX @ gradient / (gradient @ gradient)
    np.testing.assert_allclose(saddle_free_step(MATRIX, gradient, 1), -gradient / abs(curvature))


@pytest.mark.parametrize(
    ("size", "exact"), [(1, 0.5), (2, (2 - math.sqrt(2)) / 4), (3, (math.pi - 2 * math.sqrt(2)) / (4 * math.pi))]
)
def test_share_of_positive_definite_matrices(size, exact):
    count = 150_000
    share = count_positive_definite(size, count, numpy_generator(0, "GOE")) / count
    assert abs(share - exact) < 4 * math.sqrt(exact * (1 - exact) / count)


def test_positive_definite_agrees_with_eigenvalues():
    matrices = numpy_generator(5, "same").standard_normal((3000, 4, 4))
    eigenvalues = np.linalg.eigvalsh(matrices + matrices.transpose(0, 2, 1))
    assert count_positive_definite(4, 3000, numpy_generator(5, "same")) == (eigenvalues > 0).all(1).sum()
    with pytest.raises(ValueError, match="size=0: expected at least 1"):
        count_positive_definite(0, 5, numpy_generator(0, "x"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda g: extreme_eigenpairs(MATRIX, 3, "lowest", g),
            "which='lowest': expected one of largest, smallest, both",
        ),
        (lambda g: extreme_eigenpairs(MATRIX, 0, "largest", g), "count=0: expected 1 to 100"),
        (lambda g: extreme_eigenpairs(MATRIX, 1, "both", g), "count=1: expected 2 to 100"),
        (lambda g: extreme_eigenpairs(MATRIX[:5], 2, "both", g), r"operator of shape \(5, 100\): expected a square"),
        (lambda g: extreme_eigenpairs(MATRIX * np.nan, 2, "both", g), "product 1 .* entries that are not finite"),
        (lambda g: saddle_free_step(MATRIX, np.ones(5), 3), r"gradient of shape \(5,\): expected \(100,\)"),
        (lambda g: saddle_free_step(MATRIX, np.full(100, np.inf), 3), "all finite"),
        (lambda g: saddle_free_step(MATRIX, np.ones(100), 0), "vectors=0: expected at least 1"),
        (lambda g: saddle_free_step(MATRIX, np.ones(100), 1, -1.0), "damping=-1.0: expected"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(numpy_generator(0, "start"))  # type: ignore[operator]
