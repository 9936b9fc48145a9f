"""What is no number, no Gram matrix or no path gives no number: it is refused by name, or stays NaN.

Large and small numbers, integers and tensors give what they give on paper.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from descent.spectra import (
    answer_share,
    captured_energy,
    count_singular_values_above,
    excluded_logits,
    frequency_norms,
    gaussian_null_rows,
    gini,
    gram_matrix,
    key_frequencies,
    neuron_frequencies,
    one_over_n_spectrum,
    participation_ratio,
    path_corners,
    principal_path,
    random_walk,
    restricted_logits,
    shuffled_null_rows,
    singular_spectrum,
    stable_rank,
    sum_waves,
    trajectory_plane,
    turning_angles,
)

rng = np.random.default_rng(0)
ROWS = rng.standard_normal((6, 40))
NAN, INF = math.nan, math.inf

# --- rows and their Gram matrix


@pytest.mark.parametrize("scale", [1e-100, 1e100, 1e-140, 1e150, 2.0**-300])
def test_rows_of_any_size_in_range_have_their_values(scale: float) -> None:
    found = singular_spectrum(gram_matrix(scale * ROWS))
    expected = np.linalg.svd(ROWS, compute_uv=False) * scale
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)
    assert count_singular_values_above(found.values, 0.5) == (expected >= 0.5 * expected[0]).sum()
    assert participation_ratio(found.values) == pytest.approx(participation_ratio(expected / scale))
    assert stable_rank(found.values) == pytest.approx(stable_rank(expected / scale))


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (1e160 * ROWS, r"row 0: the square of .*e\+160 is out of the range of float64; scale the rows"),
        (1e-170 * ROWS, r"row 0: the square of .*e-170 is out of the range of float64"),
        (np.vstack([ROWS, 1e-200 * ROWS[:1]]), r"row 6: the square of .*e-200 is out of the range of float64"),
        (np.vstack([ROWS, np.full((1, 40), 1e-150)]), r"row 6: the square of 1e-150 is out"),
        (np.vstack([ROWS, np.full((1, 40), NAN)]), "row 6 has an entry that is not finite"),
        (np.where(np.arange(40) == 3, INF, ROWS), "row 0 has an entry that is not finite"),
        (ROWS[0], r"rows of shape \(40,\): expected \(steps, parameters\)"),
        (ROWS[:, :0], r"rows of shape \(6, 0\): expected"),
        (ROWS + 1j, "rows is of type complex128: expected real numbers"),
        (ROWS > 0, "rows is of type bool: expected real numbers"),
        ([["a", "b"]], "rows is of type <U1: expected real numbers"),
    ],
)
def test_rows_that_have_no_gram_matrix_are_refused(rows: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        gram_matrix(rows)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.float16, np.float32])
def test_integers_and_short_floats_are_widened_first(dtype: Any) -> None:
    rows = np.array([[100, 3, 0], [0, 120, 100]], dtype)  # squares out of int8, uint8 and float16
    assert gram_matrix(rows).tolist() == [[10009, 360], [360, 24400]]
    assert gram_matrix(torch.from_numpy(rows)).tolist() == [[10009, 360], [360, 24400]]
    assert gram_matrix(rows.tolist()).tolist() == [[10009, 360], [360, 24400]]


def test_a_row_of_zeros_is_no_underflow() -> None:
    assert gram_matrix(np.vstack([np.zeros(40), ROWS]))[0].tolist() == [0] * 7
    assert not gram_matrix(np.zeros((2, 5), np.float32)).any()


LOW = (rng.standard_normal((60, 3)) @ rng.standard_normal((3, 5000))).astype(np.float32)
SQUARE = rng.standard_normal((40, 40))


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        (SQUARE, "gram_matrix is no Gram matrix: expected A A^T in float64, as gram_matrix"),
        (SQUARE + SQUARE.T, "no eigenvalue below zero"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "no Gram matrix"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "no Gram matrix: expected .* symmetric"),
        (-np.eye(3), "no Gram matrix"),
        (np.diag([1.0, 0.0, -1e-8]), "no Gram matrix"),
        (np.array([[1.0, NAN], [NAN, 1.0]]), "finite"),
        (np.diag([INF, 1.0]), "finite"),
        (LOW @ LOW.T, "in float64"),
        (np.eye(3)[:2], r"gram_matrix of shape \(2, 3\): expected a square matrix"),
        (np.zeros((0, 0)), r"shape \(0, 0\)|expected 1 to 0"),
        (1j * np.eye(2), "complex128: expected real numbers"),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        singular_spectrum,
        lambda gram: singular_spectrum(gram, centre=True),
        lambda gram: singular_spectrum(gram, unit_rows=True),
        lambda gram: principal_path(gram, 1),
        lambda gram: captured_energy(gram, np.array([0])),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_matrix_that_is_no_gram_matrix_is_refused(use: Callable[[Any], Any], matrix: Any, sentence: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=sentence.replace("^", r"\^")):
            use(matrix)


def test_gram_matrices_of_all_kinds_are_accepted() -> None:
    """Singular, tiny, of integers, of tensors, and with rounding that is not symmetric."""
    low = gram_matrix(rng.standard_normal((30, 3)) @ rng.standard_normal((3, 5000)))
    assert (singular_spectrum(low).values[3:] < singular_spectrum(low).floor).all()
    assert singular_spectrum(np.array([[4, 0], [0, 9]])).values.tolist() == [3, 2]
    assert singular_spectrum(torch.diag(torch.tensor([4.0, 9.0]))).values.tolist() == [3, 2]  # type: ignore[arg-type]
    assert singular_spectrum(np.zeros((3, 3))).values.tolist() == [0, 0, 0]
    assert singular_spectrum(np.array([[1e-250]])).values[0] == pytest.approx(1e-125)
    skewed = low * (1 + 1e-15 * rng.standard_normal(low.shape))
    np.testing.assert_allclose(singular_spectrum(skewed).values[:3], singular_spectrum(low).values[:3])
    wide = gram_matrix(rng.standard_normal((80, 20_000)).astype(np.float32).repeat(4, 0))  # of rank 80
    assert (singular_spectrum(wide).values[80:] <= singular_spectrum(wide).floor).all()


def test_small_rows_have_length_one_where_rows_are_scaled() -> None:
    """A row far below the rounding of the largest keeps its own direction, unless the mean was taken off."""
    rows = np.array([[1.0, 0, 0], [0, 1e-60, 0], [0, 0, 1e-120]])
    np.testing.assert_allclose(singular_spectrum(gram_matrix(rows), unit_rows=True).values, [1, 1, 1])
    near = np.array([[1e8, 0, 1.0], [1e8, 1e-9, 0], [1e8, 0, 0], [1e8, 0, 0]])  # 1e-9 is lost in the products
    values = singular_spectrum(gram_matrix(near), centre=True, unit_rows=True).values
    assert np.square(values).sum() in (pytest.approx(1), pytest.approx(4), pytest.approx(0))


@pytest.mark.parametrize("far", [0.0, 1.0, 1e3, 1e6])
def test_what_a_far_mean_has_rounded_away_lies_below_the_floor(far: float) -> None:
    """Rows of rank two beside their mean: of a large mean, its rounding must not count as a third direction."""
    rows = far + np.vstack([SQUARE[:2], -SQUARE[:2], SQUARE[0] + SQUARE[1]])
    found = singular_spectrum(gram_matrix(rows), centre=True)
    expected = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    above = found.values > found.floor
    assert above.sum() == 2
    np.testing.assert_allclose(found.values[above], expected[above], rtol=1e-3)
    with pytest.raises(ValueError, match="count=3: expected 1 to 2, the number of values above the floor"):
        found.right(rows, 3)


def test_right_vectors_are_of_the_rows_of_the_spectrum_only() -> None:
    found = singular_spectrum(gram_matrix(ROWS))
    assert found.right(torch.from_numpy(ROWS), 2).shape == (40, 2)
    with pytest.raises(ValueError, match="5 rows: expected the 6 of this spectrum"):
        found.right(ROWS[:5], 2)
    for other in (ROWS + 0.1, rng.permutation(ROWS), 2 * ROWS):
        with pytest.raises(ValueError, match="the rows are not those of this spectrum: their right vectors have not"):
            found.right(other, 2)


# --- measures of singular values


@pytest.mark.parametrize("measure", [participation_ratio, stable_rank, lambda s: count_singular_values_above(s, 0.1)])
@pytest.mark.parametrize(
    "values", [[1.0, NAN], [NAN], [INF, 1.0], [1.0, -0.1], [], [[1.0, 0.5], [0.2, 0.1]], 3.0, [-INF]]
)
def test_what_is_no_list_of_singular_values_is_refused(measure: Callable[[Any], float], values: Any) -> None:
    with pytest.raises(ValueError, match=r"values \[.*\] \.\.\.: expected \(r,\) finite numbers, none below zero"):
        measure(values)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1.0, 1e160, 1e300, 5e-324 * 2**40])
def test_measures_do_not_change_with_the_scale(scale: float) -> None:
    values = scale * np.array([4.0, 2.0, 1.0])
    assert count_singular_values_above(values, 0.5) == 2
    assert participation_ratio(values) == pytest.approx(21**2 / (256 + 16 + 1))
    assert stable_rank(values) == pytest.approx(21 / 16)


@pytest.mark.parametrize("fraction", [NAN, -0.1, 1.0, INF])
def test_fractions_are_from_0_to_1(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"fraction={fraction}: expected at least 0 and below 1"):
        count_singular_values_above([1.0], fraction)


@pytest.mark.parametrize("sample", [[], [0, 0], [-1], [6], [True, False, True, False, False, False], [0.0, 1.0]])
def test_samples_are_indices(sample: Any) -> None:
    with pytest.raises(ValueError, match=r"sample=.*: expected indices of rows, 0 to 5, each once"):
        captured_energy(gram_matrix(ROWS), np.array(sample))


def test_nothing_is_captured_of_rows_of_zeros() -> None:
    rows = np.vstack([ROWS[:2], np.zeros((2, 40))])
    with pytest.raises(ValueError, match="sample of 2 of 4 rows: expected at least one row held out"):
        captured_energy(gram_matrix(rows), np.array([0, 1]))


# --- null models


@pytest.mark.parametrize(
    ("norms", "columns", "sentence"),
    [
        ([1.0, NAN], 5, "expected .* finite numbers, none below zero"),
        ([1.0, -2.0], 5, "none below zero"),
        ([[1.0], [2.0]], 5, r"expected \(r,\) finite numbers"),
        ([], 5, r"expected \(r,\)"),
        ([1e60], 5, r"columns=5, norms up to 1e\+60: expected columns, and norms of float32"),
        ([1.0, 1e-60], 5, "norms up to 1: expected columns, and norms of float32"),
        ([1.0], 0, "columns=0"),
    ],
)
def test_norms_of_no_rows_are_refused(norms: Any, columns: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        gaussian_null_rows(norms, columns, np.random.default_rng(0))


def test_gaussian_rows_have_their_norms_and_zeros_stay() -> None:
    rows = gaussian_null_rows([3.0, 0.0, 1e-20], 50, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(rows.astype(float), axis=1), [3, 0, 1e-20], rtol=1e-5)


def test_shuffled_rows_of_anything_keep_their_entries() -> None:
    for rows in (torch.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]):
        assert np.sort(shuffled_null_rows(rows, np.random.default_rng(0)), 1).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match=r"rows of shape \(3,\): expected"):
        shuffled_null_rows(np.arange(3), np.random.default_rng(0))


@pytest.mark.parametrize("count", [0, -2])
def test_a_spectrum_of_no_value_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"count={count}: expected at least 1"):
        one_over_n_spectrum(count)


# --- paths


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32])
def test_a_path_of_any_type_is_the_same(dtype: Any) -> None:
    points = np.array([[0, 200, 3], [10, 150, 3], [40, 100, 3], [50, 5, 3]], dtype)  # differences are below zero
    expected, found = trajectory_plane(points.astype(float)), trajectory_plane(points)
    np.testing.assert_allclose(found.coordinates, expected.coordinates, atol=1e-3)
    np.testing.assert_allclose(trajectory_plane(torch.from_numpy(points)).explained, expected.explained, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (np.array([[0.0, 0], [1, NAN], [2, 3]]), "row 1 has an entry that is not finite"),
        (1e170 * ROWS, "is out of the range of float64"),
        (ROWS + 1j, "complex128: expected real numbers"),
        (ROWS[:2], "expected at least three points"),
        (np.outer(np.arange(5.0), ROWS[0]), "5 points on one line"),
        (ROWS[[0, 0, 0, 0]], "4 equal points: expected a path that moves"),
    ],
)
def test_a_plane_needs_a_path(rows: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        trajectory_plane(rows)


@pytest.mark.parametrize("offset", [0.0, 1.0, 3.7, 1e6])
def test_equal_points_have_no_components_wherever_they_are(offset: float) -> None:
    points = np.full((7, 30), offset)
    with pytest.raises(ValueError, match="7 equal points: expected a path that moves"):
        principal_path(points @ points.T, 1)


def test_moves_that_the_products_cannot_hold_are_no_path() -> None:
    """From a far origin the Gram matrix has lost the path; from one of its points it has not."""
    points = 1e5 + 1e-5 * np.cumsum(rng.standard_normal((9, 200)), 0)
    with pytest.raises(ValueError, match="9 equal points"):
        principal_path(points @ points.T, 1)
    near = points - points[-1]
    expected = np.linalg.svd(near - near.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(principal_path(near @ near.T, 1)[1], expected / expected.sum(), atol=1e-9)


PATH = np.stack([np.linspace(0, 1, 50), np.linspace(0, 1, 50) ** 2], 1)
TIMES = np.arange(50.0)


@pytest.mark.parametrize("use", [turning_angles, lambda path, times, **how: path_corners(path, times, 2, **how)])
@pytest.mark.parametrize(
    ("path", "times", "how", "sentence"),
    [
        (np.where(np.arange(50)[:, None] == 7, NAN, PATH), TIMES, {}, "expected a path of finite numbers, and times"),
        (PATH, np.where(TIMES == 3, NAN, TIMES), {}, "times that ascend"),
        (PATH, TIMES[::-1], {}, "times that ascend"),
        (PATH[:, 0], TIMES, {}, r"path of shape \(50,\), times of \(50,\): expected at least three points"),
        (PATH, TIMES[:9], {}, r"times of \(9,\)"),
        (PATH, TIMES, {"window": 0.001}, r"window=0\.001: expected 0\.005 to 0\.995"),
        (PATH, TIMES, {"window": 0.999}, r"window=0\.999"),
        (PATH, TIMES, {"window": NAN}, "window=nan"),
        (PATH, TIMES, {"smooth": 0}, "smooth=0: expected at least 1, a whole number"),
        (np.ones((50, 2)), TIMES, {}, "50 equal points"),
    ],
)
def test_turns_need_a_path(use: Any, path: Any, times: Any, how: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        use(path, times, **how)


def test_a_turn_without_a_chord_has_no_angle() -> None:
    """A path that goes up and down the same way has, half a window behind, been at the same place: no right angle."""
    times = np.linspace(0, 39.9, 400)  # half a window, 20 of the 400 places, is once up and once down
    path = np.abs((times + 1) % 2 - 1)[:, None]
    _, angles = turning_angles(path, times, window=0.1)
    assert np.isnan(angles).mean() > 0.5
    straight, corners = turning_angles(PATH, TIMES)[1], path_corners(path, times, 3)[1]
    assert np.isfinite(straight).all()
    assert np.isfinite(corners).all()


@pytest.mark.parametrize(("points", "size"), [(2, 10), (5, 4)])
def test_a_walk_has_points_and_room(points: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"points={points}, size={size}: expected at least three points"):
        random_walk(points, size, 0)


# --- Fourier measures

P = 7
A, B, C = (axis.double() for axis in torch.meshgrid(*[torch.arange(P)] * 3, indexing="ij"))
LOGITS = torch.cos(2 * math.pi * 2 * (A + B - C) / P).reshape(P * P, P)


def with_nan(values: torch.Tensor) -> torch.Tensor:
    changed = values.clone()
    changed[3, 1] = NAN
    return changed


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e160, 1e300])
def test_fourier_measures_of_any_scale(scale: float) -> None:
    table = torch.cos(2 * math.pi * 3 * torch.arange(P).double() / P)[:, None]
    norms = frequency_norms(scale * table) / scale
    torch.testing.assert_close(norms, frequency_norms(table), rtol=1e-12, atol=1e-12)
    assert answer_share(scale * LOGITS, [2]) == pytest.approx(1)
    assert answer_share(scale * LOGITS, [3]) == pytest.approx(0, abs=1e-20)
    frequency, share = neuron_frequencies(scale * LOGITS)
    assert frequency.tolist() == [2] * P
    torch.testing.assert_close(share, torch.ones(P).double())


def test_integers_and_arrays_are_taken_as_numbers() -> None:
    table = torch.arange(P * 2).reshape(P, 2)
    expected = frequency_norms(table.double())
    assert torch.equal(frequency_norms(table), expected)
    assert torch.equal(frequency_norms(table.numpy()), expected)  # type: ignore[arg-type]


def test_nan_stays_nan_in_fourier_measures() -> None:
    assert frequency_norms(with_nan(LOGITS[:P])).isnan().all()
    assert math.isnan(answer_share(with_nan(LOGITS), [2]))
    assert restricted_logits(with_nan(LOGITS), [2])[:, 1].isnan().all()
    assert excluded_logits(with_nan(LOGITS), [2])[:, 1].isnan().all()
    assert math.isnan(gini(torch.tensor([1.0, NAN])))
    assert math.isnan(gini(torch.tensor([1.0, INF])))


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("use", [neuron_frequencies, key_frequencies])
def test_a_neuron_that_is_not_finite_has_no_frequency(use: Any, bad: float) -> None:
    neurons = LOGITS.clone()
    neurons[5, 4] = bad
    with pytest.raises(ValueError, match="neuron 4 has a number that is not finite"):
        use(neurons)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e9, -7.7])
def test_what_does_not_vary_has_no_share(value: float) -> None:
    assert answer_share(torch.full((P * P, P), value), [2]) == 0
    assert answer_share(torch.full((P * P, P), value).float(), [1, 2, 3]) == 0
    assert neuron_frequencies(torch.full((P * P, 2), value))[1].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("frequencies", "said"), [([2, 2], "2"), ([0], "0"), ([4], "4"), ([1, 2, 1], "1"), ([-1], "-1")]
)
def test_frequencies_come_once_and_in_range(frequencies: list[int], said: str) -> None:
    for use in (lambda f: sum_waves(P, f), lambda f: restricted_logits(LOGITS, f), lambda f: answer_share(LOGITS, f)):
        with pytest.raises(ValueError, match=f"frequency {said}: expected 1 to 3 for p=7, each once"):
            use(frequencies)


@pytest.mark.parametrize("how", [{"cut": NAN}, {"cut": 85}, {"cut": -0.1}, {"fewest": 0}])
def test_cuts_that_are_none_are_refused(how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cut=.*: expected 0 <= cut < 1|fewest=0: expected at least 1"):
        key_frequencies(LOGITS, **how)


@pytest.mark.parametrize(
    "use",
    [frequency_norms, lambda values: answer_share(values, [1]), neuron_frequencies, lambda v: excluded_logits(v, [])],
)
@pytest.mark.parametrize(
    "values", [torch.ones(9), torch.ones(9, 3, 2), torch.ones(9, 3) + 1j], ids=["vector", "cube", "complex"]
)
def test_tables_are_matrices_of_real_numbers(use: Any, values: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"values of shape .*: expected a matrix of real numbers"):
        use(values)
