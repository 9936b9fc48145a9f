"""Values on paper, and borders that exact numbers can meet."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from descent.spectra import singular_values
from descent.spectra.fourier_modulo_p import gini, key_frequencies, neuron_frequencies
from descent.spectra.singular_values import (
    Spectrum,
    captured_energy,
    gaussian_null_rows,
    gram_matrix,
    one_over_n_spectrum,
    row_transform,
    singular_spectrum,
)
from descent.spectra.trajectory import principal_path, random_walk, trajectory_plane, turning_angles

# --- frequencies


def waves(p: int = 7) -> torch.Tensor:
    """Neurons of frequency 1, 2 and 3, nothing else."""
    a = torch.arange(p).double().repeat_interleave(p)
    return torch.stack([torch.cos(2 * math.pi * k * a / p) for k in (1, 2, 3)], dim=1)


def test_the_mean_of_a_neuron_is_its_own_and_no_variance() -> None:
    frequency, share = neuron_frequencies(waves() + torch.tensor([-50.0, 0.0, 1000.0]))
    assert frequency.tolist() == [1, 2, 3]
    np.testing.assert_allclose(share, 1, atol=1e-12)


def test_a_small_neuron_beside_large_ones_has_its_frequency() -> None:
    frequency, share = neuron_frequencies(waves() * torch.tensor([1.0, 1e-14, 1e-100], dtype=torch.float64))
    assert frequency.tolist() == [1, 2, 3]
    np.testing.assert_allclose(share, 1, atol=1e-12)


def test_a_cut_of_zero_takes_what_varies_and_one_is_none() -> None:
    assert key_frequencies(waves(), cut=0) == [1, 2, 3]
    assert key_frequencies(torch.zeros(49, 2), cut=0) == [], "a share at the cut is not above it"
    for cut in (1, 1.5):
        with pytest.raises(ValueError, match=f"cut={cut}: expected 0 <= cut < 1"):
            key_frequencies(waves(), cut=cut)


def test_the_gini_coefficient_of_a_table_is_that_of_all_its_numbers() -> None:
    assert gini(torch.tensor([[1.0, 3.0], [0.0, 0.0]])) == pytest.approx((1 * 1 + 3 * 3) / (4 * 4))


# --- singular values


def test_values_at_the_floor_are_noise() -> None:
    spectrum = Spectrum(np.array([1.0, 0.5]), np.eye(2), np.eye(2), floor=0.5)
    with pytest.raises(ValueError, match="count=2: expected 1 to 1"):
        spectrum.right(np.diag([1.0, 0.5]), 2)
    with pytest.raises(ValueError, match="count=0: expected 1 to 1"):
        spectrum.right(np.diag([1.0, 0.5]), 0)
    assert spectrum.right(np.diag([1.0, 0.5]), 1).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(
    ("floor", "length", "taken"),
    [(0.2, 2.09, True), (0.2, 2.103, False), (0.0, 2 * (1 + 4e-7), True), (0.0, 2 * (1 + 6e-7), False)],
)
def test_right_vectors_have_length_one_to_ten_squares_of_the_floor(floor: float, length: float, taken: bool) -> None:
    """One row, whose value is said to be 2: the squared length of its right vector is off by length^2 / 4 - 1."""
    spectrum = Spectrum(np.array([2.0]), np.eye(1), np.eye(1), floor)
    allowed = 1e-6 + 10 * (floor / 2) ** 2
    assert (length**2 / 4 - 1 <= allowed) == taken
    if taken:
        assert spectrum.right([[length]], 1).item() == pytest.approx(length / 2)
    else:
        with pytest.raises(ValueError, match="the rows are not those of this spectrum"):
            spectrum.right([[length]], 1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_floor_of_rows_of_any_size(scale: float) -> None:
    found = singular_spectrum(gram_matrix(scale * np.diag([3.0, 2.0])))
    assert found.floor == pytest.approx(3 * scale * math.sqrt(2 * 2.0**-52), rel=1e-12)


def test_a_block_holds_as_many_columns_as_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[range] = []

    def watched(starts: range, **_: Any) -> range:
        seen.append(starts)
        return starts

    monkeypatch.setattr(singular_values, "tqdm", watched)
    rows = np.ones((3, 100))
    for block in (3 * 8 * 10, 3 * 8 * 11 - 1, 1, 10**9):
        assert (gram_matrix(rows, block) == 100).all()
    assert seen[:3] == [range(0, 100, 10), range(0, 100, 10), range(0, 100, 1)]
    assert len(seen[3]) == 1


def test_an_entry_that_is_not_finite_is_named_without_a_warning() -> None:
    """Warnings are errors to pytest here."""
    for row in ([np.inf, -np.inf], [np.inf, 0.0]):
        with pytest.raises(ValueError, match="row 1 has an entry that is not finite"):
            gram_matrix(np.array([[1.0, 0.0], row]))


def test_rows_are_taken_as_they_are_unless_told_otherwise() -> None:
    assert row_transform(np.diag([4.0, 9.0])).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_row_at_the_mean_becomes_zero_at_any_scale(scale: float) -> None:
    """Rows a, b and their mean, which is that of the three: a difference of rounding has no direction."""
    one, two = scale * np.random.default_rng(0).standard_normal((2, 30)) + 7 * scale
    transform = row_transform(gram_matrix(np.stack([one, two, (one + two) / 2])), centre=True, unit_rows=True)
    assert transform[2].tolist() == [0, 0, 0]
    rows = transform @ np.stack([one, two, (one + two) / 2])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 1, 0], rtol=1e-6)


def test_energy_of_one_sampled_row_on_paper() -> None:
    """(3, 4) has 3 of its 5 along (2, 0)."""
    for scale in (1e-3, 1.0, 1e3):
        energy, residual = captured_energy(gram_matrix(scale * np.array([[2.0, 0.0], [3.0, 4.0]])), np.array([0]))
        np.testing.assert_allclose(energy, [0.36], rtol=1e-14)
        np.testing.assert_allclose(residual, [[0.8]], rtol=1e-14)


def test_a_sampled_row_of_zeros_captures_nothing() -> None:
    energy, residual = captured_energy(gram_matrix(np.array([[0.0, 0.0], [3.0, 4.0]])), np.array([0]))
    assert energy.tolist() == [0]
    assert residual.tolist() == [[1]]


def test_a_direction_below_the_floor_captures_nothing_of_a_row_that_lies_in_it() -> None:
    """The second direction of the sampled rows is the third row's own, but below 1e8 sqrt(n eps) = 2 it is noise."""
    rows = np.array([[1e8, 0.0], [1e8, 1.0], [0.0, 1.0]])
    energy, residual = captured_energy(gram_matrix(rows), np.array([0, 1]))
    np.testing.assert_allclose(energy, [0, 0], atol=1e-12)
    np.testing.assert_allclose(residual, [[1, 1]], atol=1e-12)


def test_what_remains_of_a_row_in_the_span_is_zero_and_never_nan() -> None:
    for seed in range(20):
        rows = np.random.default_rng(seed).standard_normal((3, 20))
        _, residual = captured_energy(gram_matrix(np.vstack([rows, rows.sum(0)])), np.arange(3))
        assert residual[0, -1] < 1e-6


def test_a_sample_of_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match="expected indices of rows, 0 to 2, each once"):
        captured_energy(np.eye(3), np.zeros(0, int))


def test_the_values_one_over_n() -> None:
    assert one_over_n_spectrum(1).tolist() == [1]
    assert one_over_n_spectrum(4).tolist() == [1, 1 / 2, 1 / 3, 1 / 4]


def test_null_rows_are_float32_and_may_have_one_column() -> None:
    rows = gaussian_null_rows([2.0, 0.5], 1, np.random.default_rng(0))
    assert rows.dtype == np.float32
    assert np.abs(rows).tolist() == [[2.0], [0.5]]
    with pytest.raises(ValueError, match="is of type complex128: expected real numbers"):
        gaussian_null_rows([1j], 3, np.random.default_rng(0))


# --- paths


def test_as_many_components_as_points_may_be_asked_for() -> None:
    path, _ = principal_path(np.diag([1.0, 2.0, 3.0]), 3)
    assert path.shape == (3, 3)


def test_the_smallest_random_walk_and_the_numbers_of_its_seed() -> None:
    assert random_walk(3, 3, 0).shape == (3, 3)
    np.testing.assert_allclose(random_walk(3, 5, 0)[:2, :2], [[12.356293, 7.475840], [7.475840, 6.877928]], atol=1e-6)


def test_the_plane_of_whole_numbers_goes_through_the_last_of_them() -> None:
    rows = np.array([[100, 3, 0], [0, 120, 100], [-100, -7, 1]], np.int8)  # differences out of int8
    plane = trajectory_plane(rows)
    assert plane.gram.tolist() == [
        [200**2 + 10**2 + 1, 200 * 100 + 10 * 127 - 99, 0],
        [200 * 100 + 10 * 127 - 99, 100**2 + 127**2 + 99**2, 0],
        [0, 0, 0],
    ]


CORNER = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("window", "taken"),
    [(0.005, True), (0.0049, False), (0.006, True), (0.994, True), (0.995, False), (0.9951, False)],
)
def test_windows_from_two_places_to_all_but_two(window: float, taken: bool) -> None:
    if taken:
        when, angle = turning_angles(CORNER, np.arange(3), window)
        assert len(when) == len(angle) == 400 - 2 * round(200 * window)
        assert np.isfinite(angle).all()
    else:
        with pytest.raises(ValueError, match=f"window={window}: expected 0.005 to 0.995"):
            turning_angles(CORNER, np.arange(3), window)


@pytest.mark.parametrize("rest", [0, 1, 2])
def test_a_path_may_rest_and_time_stand_still(rest: int) -> None:
    path = np.repeat(CORNER, [1 + 2 * (rest == place) for place in range(3)], axis=0)
    times = np.repeat([0.0, 1.0, 2.0], [1 + 2 * (rest == place) for place in range(3)])
    when, angle = turning_angles(path, times)
    expected = turning_angles(CORNER, np.arange(3.0))
    np.testing.assert_allclose(when, expected[0], atol=1e-12)
    np.testing.assert_allclose(angle, expected[1], atol=1e-7)


def test_a_path_that_moves_in_its_last_step_alone_has_angles() -> None:
    _, angle = turning_angles(np.array([[0.0], [0.0], [1.0]]), np.arange(3))
    np.testing.assert_allclose(angle, 0, atol=1e-7)


@pytest.mark.parametrize("seed", range(6))
def test_a_path_that_goes_back_on_itself_turns_by_half_a_circle_or_not_at_all(seed: int) -> None:
    there = np.random.default_rng(seed).standard_normal(3)
    _, angle = turning_angles(np.outer([0.0, 1.0, 0.0], there), np.arange(3))  # no chord is without length
    assert ((angle < 1e-6) | (angle > np.pi - 1e-6)).all()
    assert (angle > 1).any()


@pytest.mark.parametrize("rests", [(1, 1, 1), (3, 1, 1), (1, 1, 3)])
def test_a_chord_from_a_place_to_the_same_place_has_no_direction(rests: tuple[int, int, int]) -> None:
    """Of 400 places the two in the middle, of which chords of one place join, are one point before and after the turn.

    Their chord is zero but for rounding, of which no angle is made.
    """
    for seed in range(10):
        there = np.random.default_rng(seed).standard_normal(3)
        path = np.repeat(np.outer([0.0, 1.0, 0.0], there), rests, axis=0)
        _, angle = turning_angles(path, np.arange(len(path)), window=0.005)
        assert np.flatnonzero(np.isnan(angle)).tolist() == [198, 199]  # places 199 and 200


def test_beyond_its_ends_a_path_is_smoothed_with_the_points_at_its_ends() -> None:
    path = np.random.default_rng(0).standard_normal((9, 2)).cumsum(0)
    index = [[min(max(place + step, 0), 8) for step in (-2, -1, 0, 1, 2)] for place in range(9)]
    by_hand = np.stack([path[near].mean(0) for near in index])
    expected = turning_angles(by_hand, np.arange(9))
    for found, right in zip(turning_angles(path, np.arange(9), smooth=5), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-7)


def test_times_are_real_and_a_path_has_coordinates() -> None:
    with pytest.raises(ValueError, match="times is of type complex128"):
        turning_angles(CORNER, np.arange(3) * 1j)
    with pytest.raises(ValueError, match="3 equal points: expected a path that moves"):
        turning_angles(np.zeros((3, 0)), np.arange(3))


def test_differences_that_float32_cannot_hold_are_taken_from_the_last_point() -> None:
    plane = trajectory_plane(np.array([[3e38, 0], [0, 1e38], [-3e38, 0]], np.float32))
    np.testing.assert_allclose(plane.gram, [[3.6e77, 1.8e77, 0], [1.8e77, 1e77, 0], [0, 0, 0]], rtol=1e-6)
