"""Principal coordinates of a path, and its corners, against paths whose turns are known."""

from itertools import pairwise

import numpy as np
import pytest

from descent.spectra.singular_values import gram_matrix
from descent.spectra.trajectory import path_corners, principal_path, turning_angles

BENT = np.array([[0.0, 0], [1, 0], [1, 2], [4, 2]])  # turns by a right angle after 1 and after 3 of 6


def along(points: np.ndarray, count: int) -> np.ndarray:
    """Points along straight pieces, `count` on each, at an uneven pace."""
    share = np.linspace(0, 1, count, endpoint=False)[:, None] ** 2
    pieces = [a + share * (b - a) for a, b in pairwise(points)]
    return np.concatenate([*pieces, points[-1:]])


def test_a_path_in_its_principal_coordinates_has_its_distances():
    generator = np.random.default_rng(0)
    path = generator.standard_normal((7, 2)) * (3, 1) @ np.linalg.qr(generator.standard_normal((5, 2)))[0].T + 4
    found, shares = principal_path(gram_matrix(path), 2)
    np.testing.assert_allclose(
        np.linalg.norm(np.diff(found, axis=0), axis=1), np.linalg.norm(np.diff(path, axis=0), axis=1)
    )
    assert found.shape == (7, 2)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose([shares.sum(), shares[:2].sum()], 1)
    assert shares[0] > shares[1]


def test_corners_are_where_the_path_turns_whatever_its_pace():
    path = along(BENT, 40)
    times = np.arange(len(path))
    when, angle = path_corners(path, times, 2)
    np.testing.assert_allclose(when, [40, 80], atol=3)
    np.testing.assert_allclose(angle, np.pi / 2, atol=0.2)
    assert len(path_corners(path, times, 1)[0]) == 1


def test_trembling_is_smoothed_away():
    path = along(BENT, 60) + 0.05 * np.random.default_rng(0).standard_normal((181, 2))
    times = np.arange(len(path))
    np.testing.assert_allclose(path_corners(path, times, 2, 0.1, 15)[0], [60, 120], atol=8)
    still = np.concatenate([along(BENT, 60), np.tile(BENT[-1:], (60, 1))])  # a stop at the end is no corner
    np.testing.assert_allclose(path_corners(still, np.arange(241), 2)[0], [60, 120], atol=4)


def test_a_turn_is_the_same_in_another_frame_and_at_another_scale():
    path = along(BENT, 40)
    turned = 7 * path @ np.linalg.qr(np.random.default_rng(1).standard_normal((2, 2)))[0] + 5
    times = np.arange(len(path))
    np.testing.assert_allclose(turning_angles(path, times)[1], turning_angles(turned, times)[1], atol=1e-6)


def test_a_circle_turns_alike_everywhere_and_a_line_nowhere():
    angle = np.linspace(0, np.pi, 2001)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(turning_angles(circle, angle, 0.1)[1], 0.05 * np.pi, rtol=0.02)
    line = np.linspace(0, 1, 9)[:, None] * np.ones(3)
    assert turning_angles(line, np.arange(9))[1].max() < 1e-6


@pytest.mark.parametrize(
    ("path", "window", "message"),
    [
        (BENT[:2], 0.1, "three points"),
        (BENT[[0, 0, 0, 0]], 0.1, "equal points"),
        (BENT, 1.5, "window=1.5"),
    ],
)
def test_what_is_not_a_path_is_refused(path, window, message):
    with pytest.raises(ValueError, match=message):
        turning_angles(path, np.arange(len(path)), window)


def test_components_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="count=5"):
        principal_path(np.eye(4), 5)
    with pytest.raises(ValueError, match="equal points"):
        principal_path(np.zeros((4, 4)), 2)
