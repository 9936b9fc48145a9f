"""Thresholds have a case close to either side, and estimators a value that is worked out on paper."""

import math

import numpy as np
import pytest
import torch

from descent.spectra.fourier_modulo_p import key_frequencies, neuron_frequencies
from descent.spectra.singular_values import (
    captured_energy,
    count_singular_values_above,
    gaussian_null_rows,
    participation_ratio,
    shuffled_null_rows,
    singular_spectrum,
    stable_rank,
)
from descent.spectra.trajectory import path_corners, principal_path, random_walk, trajectory_plane


def test_the_participation_ratio_is_that_of_squares() -> None:
    assert participation_ratio([2.0, 1.0]) == pytest.approx(25 / 17)  # (4 + 1)^2 / (16 + 1); of s itself it is 9 / 5
    assert participation_ratio([3.0, 4.0, 0.0]) == pytest.approx(625 / 337)
    assert stable_rank([4.0, 2.0]) == pytest.approx(1.25)


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 2), (0.5001, 1), (0.25, 3), (0.2501, 2), (0.0, 4)])
def test_a_value_at_the_threshold_is_counted(fraction: float, count: int) -> None:
    assert count_singular_values_above([8.0, 4.0, 2.0, 0.0], fraction) == count


def neurons(*shares: float, p: int = 7) -> torch.Tensor:
    """One neuron of frequency k for each k-th share: a wave with this share of the variance, the rest elsewhere."""
    a, b = (part.flatten() for part in torch.meshgrid(*[torch.arange(p).double()] * 2, indexing="ij"))
    columns = []
    for k, share in enumerate(shares, 1):
        own, other = (torch.cos(2 * math.pi * n * x / p) for n, x in ((k, a), (k % 3 + 1, b)))
        columns.append(math.sqrt(share) * own + math.sqrt(1 - share) * other + 5)
    return torch.stack(columns, dim=1)


def test_the_cut_decides_which_frequencies_are_key() -> None:
    made = neurons(0.9, 0.8, 0.6)
    frequency, share = neuron_frequencies(made)
    assert frequency.tolist() == [1, 2, 3]
    np.testing.assert_allclose(share, [0.9, 0.8, 0.6], atol=1e-12)
    for cut, keys in ((0.95, []), (0.85, [1]), (0.7, [1, 2]), (0.55, [1, 2, 3])):
        assert key_frequencies(made, cut) == keys
    assert key_frequencies(made) == [1], "0.85 is the source's"
    assert key_frequencies(torch.cat([made, made[:, :1]], dim=1), 0.7, fewest=2) == [1]


def test_corners_closer_than_a_window_are_one() -> None:
    """A step sideways of a twentieth of the length has two right angles, which a window of a tenth holds as one."""
    places = np.linspace(0, 1, 2001)
    x = np.interp(places, [0, 0.475, 0.525, 1], [0, 0.475, 0.475, 0.95])
    y = np.interp(places, [0, 0.475, 0.525, 1], [0, 0, 0.05, 0.05])
    path, times = np.stack([x, y], axis=1), np.arange(2001.0)
    apart, _ = path_corners(path, times, 5, window=0.02)
    together, _ = path_corners(path, times, 5, window=0.1)
    assert len(apart) == 2
    np.testing.assert_allclose(apart, [950, 1050], atol=20)
    assert len(together) == 1
    assert 900 < together[0] < 1100


def bent(height: float) -> np.ndarray:
    """Points on a line, of which the one in the middle is off it."""
    return np.array([[0.0, 0.0], [1.0, height], [2.0, 0.0]])


def test_a_path_is_flat_below_a_share_of_1e_12() -> None:
    shares = {height: principal_path(bent(height) @ bent(height).T, 1)[1][1] for height in (1e-3, 1e-5, 1e-7)}
    assert shares[1e-3] > 1e-8
    assert 1e-11 < shares[1e-5] < 1e-10, "a threshold a thousand times as wide would refuse it"
    trajectory_plane(bent(1e-5))
    with pytest.raises(ValueError, match="3 points on one line"):
        trajectory_plane(bent(1e-7))


def test_what_is_drawn_depends_on_the_generator_alone() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    for draw in (
        lambda seed: gaussian_null_rows(np.ones(3), 50, np.random.default_rng(seed)),
        lambda seed: shuffled_null_rows(rows, np.random.default_rng(seed)),
        lambda seed: random_walk(5, 60, seed),
    ):
        assert np.array_equal(draw(0), draw(0))
        assert not np.array_equal(draw(0), draw(1))


def test_directions_below_the_floor_capture_nothing() -> None:
    """Rounding of the products of two equal rows gives a second direction, in which a third row would seem to lie."""
    equal = np.array([[1.0, 1.0 - 4e-16], [1.0 - 4e-16, 1.0]])
    gram = np.block([[equal, np.array([[0.0], [1e-8]])], [np.array([[0.0, 1e-8, 1.0]])]])
    found = singular_spectrum(equal)
    assert 1e-8 < found.values[1] < found.floor
    energy, residual = captured_energy(gram, np.array([0, 1]))
    np.testing.assert_allclose(energy, [0, 0], atol=1e-12)
    np.testing.assert_allclose(residual, [[1, 1]], atol=1e-12)
