"""Principal components of a path, random walks, and the corners of paths whose turns are known."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from descent.spectra.singular_values import gram_matrix
from descent.spectra.trajectory import (
    path_corners,
    principal_path,
    random_walk,
    trajectory_plane,
    turning_angles,
)

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


def test_the_plane_of_a_path_is_scikit_learns() -> None:
    rows = np.random.default_rng(0).standard_normal((7, 30)).cumsum(0)
    plane, relative = trajectory_plane(rows), rows - rows[-1]
    pca = PCA(svd_solver="full").fit(relative)
    np.testing.assert_allclose(plane.explained, pca.explained_variance_ratio_[:6], atol=1e-12)
    signs = np.sign((plane.directions * pca.components_[:2]).sum(1))
    np.testing.assert_allclose(signs[:, None] * plane.directions, pca.components_[:2], atol=1e-6)
    np.testing.assert_allclose(plane.coordinates, relative @ pca.components_[:2].T * signs, atol=1e-10)
    np.testing.assert_allclose(plane.gram, relative @ relative.T, atol=1e-10)
    assert plane.directions.dtype == np.float32


def test_the_coordinates_of_a_path_need_only_its_gram_matrix() -> None:
    rows = np.random.default_rng(1).standard_normal((9, 40)).cumsum(0)
    plane, relative = trajectory_plane(rows), rows - rows[-1]
    path, _ = principal_path(relative @ relative.T, 2)
    found = path - path[-1]
    np.testing.assert_allclose(found, plane.coordinates, atol=1e-9)
    np.testing.assert_allclose(found, relative @ plane.directions.T, atol=1e-4)  # signs and all; these are float32
    np.testing.assert_allclose(found[-1], [0, 0], atol=1e-12)
    assert np.ptp(found, axis=0).min() > 1


def test_the_plane_is_that_of_the_largest_variances() -> None:
    cross = np.zeros((6, 3))
    cross[:5] = [[9, 0, 0], [-9, 0, 0], [0, 5, 0], [0, -5, 0], [0, 0, 1]]  # the plane is that of the first two axes
    plane = trajectory_plane(cross)
    np.testing.assert_allclose(np.abs(plane.directions), np.eye(2, 3), atol=1e-7)
    variances = np.array([162, 50, 1 - 1 / 6])
    np.testing.assert_allclose(plane.explained, [*variances / variances.sum(), 0, 0], atol=1e-12)


def test_rows_may_be_float32_on_disk(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    rows.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=rows.shape)
    plane = trajectory_plane(mapped)
    np.testing.assert_allclose(plane.explained, trajectory_plane(rows.astype(float)).explained, rtol=1e-6)
    np.testing.assert_allclose(plane.directions @ plane.directions.T, np.eye(2), atol=1e-6)


def test_what_spans_no_plane_is_refused() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 6))
    with pytest.raises(ValueError, match=r"rows of shape \(2, 6\): expected at least three points"):
        trajectory_plane(rows[:2])
    for value, row in ((np.nan, 1), (np.inf, 1), (np.nan, 3), (np.inf, 3)):
        bad = rows.copy()
        bad[row, 2] = value
        with pytest.raises(ValueError, match=f"row {row} has an entry that is not finite"):
            trajectory_plane(bad)
    with pytest.raises(ValueError, match="4 equal points: expected a path that moves"):
        trajectory_plane(np.ones((4, 6)))
    with pytest.raises(ValueError, match="4 points on one line: expected a path that spans a plane"):
        trajectory_plane(np.outer([0.0, 1.0, 3.0, 4.0], rows[0]))


def test_shares_of_variance_of_a_right_angle() -> None:
    corners = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])  # deviations' squares: 4 along the diagonal, 4/3 across
    np.testing.assert_allclose(principal_path(corners @ corners.T, 1)[1], [0.6 * 5 / 4, 0.25, 0], atol=1e-14)


def test_random_walks_have_the_shares_of_simulated_ones() -> None:
    points, size, count = 5, 6, 1500  # few dimensions, where the shares scatter most
    drawn = [principal_path(random_walk(points, size, seed), 1)[1] for seed in range(count)]
    generator = np.random.default_rng(0)
    walks = generator.standard_normal((count, points - 1, size)).cumsum(1)
    walks = np.concatenate([np.zeros((count, 1, size)), walks], 1)
    simulated = np.array([principal_path(walk @ walk.T, 1)[1] for walk in walks])
    error = np.sqrt((np.var(drawn, axis=0) + simulated.var(0)) / count)
    assert (np.abs(np.mean(drawn, axis=0) - simulated.mean(0)) < 4 * error + 1e-12).all()
    np.testing.assert_allclose(np.std(drawn, axis=0), simulated.std(0), rtol=0.1, atol=1e-12)


def test_a_random_walk_of_many_dimensions_has_antogninis_shares() -> None:
    for points in (10, 200):
        shares = np.mean([principal_path(random_walk(points, 10**8, seed), 1)[1] for seed in range(3)], axis=0)[:-1]
        k = np.arange(1, points)
        exact = 1.5 / ((points**2 - 1) * np.sin(np.pi * k / (2 * points)) ** 2)  # of the expected Gram matrix
        np.testing.assert_allclose(shares, exact, atol=1e-3)
    assert shares[:2] == pytest.approx([6 / np.pi**2, 6 / (4 * np.pi**2)], abs=2e-3)
    assert shares[:2].sum() == pytest.approx(0.76, abs=2e-3)


def test_a_random_walk_ends_at_the_origin_and_its_seed_decides_it() -> None:
    walk = random_walk(4, 9, 0)
    assert not walk[-1].any()
    assert not walk[:, -1].any()
    assert np.array_equal(walk, random_walk(4, 9, 0))
    assert not np.array_equal(walk, random_walk(4, 9, 1))
    for points, size in ((2, 9), (5, 4)):
        with pytest.raises(ValueError, match=f"points={points}, size={size}: expected at least three points"):
            random_walk(points, size, 0)
