from pathlib import Path

import numpy as np
import pytest

from descent.spectra.singular_values import (
    captured_energy,
    count_singular_values_above,
    gaussian_null_rows,
    gram_matrix,
    one_over_n_spectrum,
    participation_ratio,
    shuffled_null_rows,
    singular_spectrum,
    stable_rank,
)

rng = np.random.default_rng(0)


def with_spectrum(rows: int, columns: int, values: np.ndarray) -> np.ndarray:
    """A float64 matrix with exactly these singular values."""
    left = np.linalg.qr(rng.standard_normal((rows, len(values))))[0]
    right = np.linalg.qr(rng.standard_normal((columns, len(values))))[0]
    return (left * values) @ right.T


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (7, 5), (1, 9), (9, 1), (20, 300), (6, 6)])
def test_values_of_a_matrix_of_known_spectrum(rows: int, columns: int) -> None:
    values = np.linspace(3, 1, min(rows, columns))
    found = singular_spectrum(gram_matrix(with_spectrum(rows, columns, values)))
    assert found.values.shape == (rows,)
    np.testing.assert_allclose(found.values[: len(values)], values, rtol=1e-12)
    assert (found.values[len(values) :] < found.floor).all()


def test_rank_deficient_values_fall_below_the_stated_floor() -> None:
    matrix = with_spectrum(8, 30, np.array([5.0, 2.0, 1e-3]))
    found = singular_spectrum(gram_matrix(matrix))
    np.testing.assert_allclose(found.values[:3], [5, 2, 1e-3], rtol=1e-8)
    assert (found.values[3:] < found.floor).all()
    assert found.floor == pytest.approx(5 * np.sqrt(8 * np.finfo(float).eps))
    with pytest.raises(ValueError, match="count=4: expected 1 to 3"):
        found.right(matrix, 4)


def test_zero_matrix() -> None:
    found = singular_spectrum(gram_matrix(np.zeros((4, 6))))
    assert not found.values.any()
    assert (
        count_singular_values_above(found.values, 0.1),
        participation_ratio(found.values),
        stable_rank(found.values),
    ) == (0, 0, 0)


def test_vectors_rebuild_the_matrix_whatever_the_block_size() -> None:
    matrix = rng.standard_normal((6, 41))
    for block in (1, 500, 10**9):
        found = singular_spectrum(gram_matrix(matrix, block))
        right = found.right(matrix, 6, block)
        np.testing.assert_allclose((found.left * found.values) @ right.T, matrix, atol=1e-12)
        np.testing.assert_allclose(right.T @ right, np.eye(6), atol=1e-10)


def test_agrees_with_lapack_on_float32_rows() -> None:
    matrix = (rng.standard_normal((60, 10)) @ rng.standard_normal((10, 900))).astype(np.float32)
    matrix += 0.01 * rng.standard_normal(matrix.shape).astype(np.float32)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(singular_spectrum(gram_matrix(matrix)).values, expected, atol=1e-9 * expected[0])


@pytest.mark.parametrize("unit_rows", [False, True])
@pytest.mark.parametrize("centre", [False, True])
def test_centring_and_row_norms_on_the_gram_matrix_equal_those_on_the_rows(centre: bool, unit_rows: bool) -> None:
    matrix = rng.standard_normal((7, 50)) + 3 * rng.standard_normal(50)
    direct = matrix - matrix.mean(0) if centre else matrix
    direct = direct / np.linalg.norm(direct, axis=1, keepdims=True) if unit_rows else direct
    found = singular_spectrum(gram_matrix(matrix), centre, unit_rows)
    expected = np.linalg.svd(direct, compute_uv=False)
    np.testing.assert_allclose(found.values, expected, atol=1e-6 * expected[0])
    rank = 6 if centre else 7
    right = found.right(matrix, rank)
    np.testing.assert_allclose(np.linalg.norm(direct @ right, axis=0), expected[:rank], rtol=1e-9)


def test_unit_rows_leave_a_zero_row_at_zero() -> None:
    matrix = np.vstack([np.zeros(8), rng.standard_normal((2, 8))])
    values = singular_spectrum(gram_matrix(matrix), unit_rows=True).values
    assert np.square(values).sum() == pytest.approx(2)


def test_store_and_memory_give_equal_bits(tmp_path: Path) -> None:
    matrix = rng.standard_normal((9, 700)).astype(np.float32)
    matrix.tofile(tmp_path / "rows")
    stored = np.memmap(tmp_path / "rows", np.float32, "r", shape=matrix.shape)
    for block in (9 * 8 * 64, 10**9):
        assert np.array_equal(gram_matrix(matrix, block), gram_matrix(stored, block))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gram_matrix(np.zeros((0, 5))), r"shape \(0, 5\): expected \(steps, parameters\)"),
        (lambda: gram_matrix(np.zeros(5)), r"shape \(5,\): expected"),
        (lambda: gram_matrix(np.array([[1.0], [np.nan]])), "row 1 has an entry that is not finite"),
        (lambda: singular_spectrum(np.zeros((2, 3))), r"shape \(2, 3\): expected a square matrix"),
        (lambda: count_singular_values_above([1.0], 1.0), r"fraction=1\.0: expected at least 0 and below 1"),
        (lambda: captured_energy(np.eye(3), np.arange(3)), "expected at least one row held out"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_measures_on_spectra_known_on_paper() -> None:
    assert count_singular_values_above([1.0, 0.5, 0.1, 0.09], 0.1) == 3
    assert participation_ratio(np.ones(6)) == pytest.approx(6)
    assert participation_ratio([2.0, 0, 0]) == pytest.approx(1)
    assert stable_rank([2.0, 1.0, 1.0]) == pytest.approx(1.5)
    for length in (10, 50, 2000):
        assert count_singular_values_above(one_over_n_spectrum(length), 0.1) == 10


def test_captured_energy_equals_a_projection_done_by_hand() -> None:
    matrix = rng.standard_normal((12, 30))
    sample = np.array([0, 3, 4, 8, 9])
    energy, residual = captured_energy(matrix @ matrix.T, sample)
    held_out = np.delete(matrix, sample, axis=0)
    right = np.linalg.svd(matrix[sample], full_matrices=False)[2]
    for k in (1, 3, 5):
        projected = held_out @ right[:k].T @ right[:k]
        assert energy[k - 1] == pytest.approx(np.square(projected).sum() / np.square(held_out).sum())
        relative = np.linalg.norm(held_out - projected, axis=1) / np.linalg.norm(held_out, axis=1)
        np.testing.assert_allclose(residual[:, k - 1], relative, rtol=1e-8)


def test_captured_is_everything_when_held_out_rows_lie_in_the_span() -> None:
    matrix = rng.standard_normal((3, 20))
    rows = np.vstack([matrix, matrix[0] + matrix[1], np.zeros(20)])
    energy, residual = captured_energy(rows @ rows.T, np.arange(3))
    assert energy[-1] == pytest.approx(1)
    assert residual[0, -1] < 1e-6


def test_nulls_keep_what_they_promise() -> None:
    rows = (rng.standard_normal((5, 400)) * np.array([[1], [2], [3], [0], [5]])).astype(np.float32)
    shuffled = shuffled_null_rows(rows, np.random.default_rng(0))
    assert np.array_equal(np.sort(shuffled, axis=1), np.sort(rows, axis=1))
    assert not np.array_equal(shuffled, rows)
    norms = np.linalg.norm(rows, axis=1)
    noise = gaussian_null_rows(norms, 400, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(noise, axis=1), norms, rtol=1e-5)
    cosine = noise[0] @ noise[1] / (norms[0] * norms[1])
    assert abs(cosine) < 5 / np.sqrt(400)
