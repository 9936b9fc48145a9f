"""The shape of a path of weights: its principal components, how it turns, and random walks to compare it with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal import find_peaks

from descent.repro.numbers import as_real, check_whole
from descent.repro.seeding import numpy_generator
from descent.spectra.singular_values import gram_matrix, real_rows, singular_spectrum

Array = NDArray[np.float64]
FLAT = 1e-12  # a share of the variance, or of the length, below it is rounding: the Gram matrix squares the path
SAMPLES = 400  # points at equal distances along a path, between which turns are measured


@dataclass(frozen=True)
class TrajectoryPlane:
    """The plane of the first two principal components of a path of k weight vectors, through the last of them.

    It is that of Li et al. 2018, section 7.

    Attributes:
        directions: `(2, P)` float32, orthonormal.
        coordinates: `(k, 2)`, each point less the last one along the directions, in units of weight.
        explained: `(k - 1,)`, share of the path's variance in each principal component, descending.
        gram: `(k, k)` float64, the Gram matrix of the points less the last.
    """

    directions: NDArray[np.float32]
    coordinates: NDArray[np.float64]
    explained: NDArray[np.float64]
    gram: NDArray[np.float64]


def trajectory_plane(rows: ArrayLike) -> TrajectoryPlane:
    """The principal plane of weight vectors `(k, P)` along a training, of which the last row is the end.

    Raises:
        ValueError: fewer than three points, what `gram_matrix` refuses, or points on one line.

    Examples:
        >>> plane = trajectory_plane(np.array([[2.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]))
        >>> plane.directions.shape, plane.coordinates.shape, plane.explained.round(6).tolist()
        ((2, 4), (3, 2), [0.75, 0.25])
    """
    array = real_rows(rows)
    if len(array) < 3:
        raise ValueError(f"rows of shape {array.shape}: expected at least three points (k, P)")
    with np.errstate(over="ignore", invalid="ignore"):
        relative = array - (array[-1] if array.dtype in (np.float32, np.float64) else array[-1].astype(np.float64))
    if not all(np.isfinite(row).all() for row in relative):
        if bad := [number for number, row in enumerate(array) if not np.isfinite(row).all()]:
            raise ValueError(f"row {bad[0]} has an entry that is not finite")
        relative = array - array[-1].astype(np.float64)  # float32 cannot hold the difference
    products = gram_matrix(relative)
    path, explained = principal_path(products, 2)
    if explained[1] < FLAT:
        raise ValueError(f"{len(array)} points on one line: expected a path that spans a plane")
    directions = singular_spectrum(products, centre=True).right(relative, 2).T.astype(np.float32)
    return TrajectoryPlane(directions, path - path[-1], explained[:-1], products)


def random_walk(points: int, size: int, seed: int) -> NDArray[np.float64]:
    """The Gram matrix `(points, points)` of a random walk of independent steps in `size` dimensions, less its end.

    A null model for a path: PCA finds most of a random walk's variance in two components, too. With many points, and
    far more dimensions than points, component k has the share 6 / (pi k)^2, which is 61 % and 15 %, together 76 %
    (Antognini and Sohl-Dickstein 2018). The steps' own Gram matrix is drawn from its Wishart distribution, so that the
    cost does not depend on `size`.

    Raises:
        ValueError: fewer than three points, or fewer dimensions than points.
    """
    if points < 3 or size < points:
        raise ValueError(f"points={points}, size={size}: expected at least three points, and a size no less")
    generator = numpy_generator(seed, "random walk")
    steps = points - 1
    factor = np.tril(generator.standard_normal((steps, steps)), -1)  # Bartlett's decomposition
    factor[np.diag_indices(steps)] = np.sqrt(generator.chisquare(size - np.arange(steps)))
    walk = np.vstack([np.zeros(steps), np.cumsum(factor, axis=0)])
    walk = walk - walk[-1]
    return cast("NDArray[np.float64]", walk @ walk.T)


def principal_path(products: Array, count: int) -> tuple[Array, Array]:
    """A path in its first principal components, and the share of its variance in every component.

    Args:
        products: `(m, m)`, the Gram matrix of the points, from any origin: the points are centred here. From a point
            of the path, such as its end, no digits are lost.
        count: the number of components.

    Returns:
        Coordinates `(m, count)` in the points' units, each column of arbitrary sign, and shares `(m,)`, descending, of
        which the last is zero but for rounding.

    Raises:
        ValueError: not 1 to m components, no Gram matrix, or points that are the same to the rounding of its entries.

    Examples:
        >>> points = np.array([[0.0, 0.0], [3.0, 0.0], [6.0, 0.0]])
        >>> path, shares = principal_path(points @ points.T, 1)
        >>> np.abs(path[:, 0]).round(6), shares.round(6)
        (array([3., 0., 3.]), array([1., 0., 0.]))
    """
    if not 1 <= count <= len(products):
        raise ValueError(f"count={count}: expected 1 to {len(products)}, the number of points")
    whole = singular_spectrum(products, centre=True)
    energy = whole.values**2
    if not energy.sum() > len(products) * np.finfo(float).eps * np.trace(products):
        raise ValueError(f"{len(products)} equal points: expected a path that moves")
    return whole.left[:, :count] * whole.values[:count], energy / energy.sum()


def turning_angles(
    path: Array, times: NDArray[np.floating], window: float = 0.1, smooth: int = 1
) -> tuple[Array, Array]:
    """The angle by which a path turns at places equally spaced along it.

    It is the angle between the chord from half a window behind to the place and the chord from the place to half a
    window ahead. Since places are equally spaced in length, a slow stretch counts as much as a fast one.

    Args:
        path: `(m, k)`, points in order.
        times: `(m,)`, such as steps, ascending.
        window: length of both chords together, as a share of the path's length.
        smooth: number of points of the moving average that is taken first; without it a path that trembles on the spot
            has a length there.

    Returns:
        Times `(n,)` of the places, without half a window at either end, and angles `(n,)` in radians, 0 to pi. On a
        path that goes back on itself an angle is NaN where a chord has no length.

    Raises:
        ValueError: fewer than three points, one that is not finite, times that do not ascend, a path without length, a
            window below two of the 400 places or of 1 and more, or a moving average of no point.
    """
    path, times = as_real(path, "path").astype(float), as_real(times, "times")
    if path.ndim != 2 or len(path) < 3 or times.shape != path.shape[:1]:
        raise ValueError(f"path of shape {path.shape}, times of {times.shape}: expected at least three points")
    if not np.isfinite(path).all() or not (np.diff(times) >= 0).all():
        raise ValueError("expected a path of finite numbers, and times that ascend")
    if not 2 / SAMPLES <= window < 1 - 2 / SAMPLES:
        raise ValueError(f"window={window}: expected 0.005 to 0.995")
    check_whole(smooth=smooth)
    path = np.ldexp(path, -np.frexp(np.abs(path).max(initial=0))[1])  # squares stay in range, and no digit changes
    path = uniform_filter1d(path, smooth, axis=0, mode="nearest")
    passed = np.concatenate([[0.0], np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()])
    if not passed[-1] > 0:
        raise ValueError(f"{len(path)} equal points: expected a path that moves")
    places = np.linspace(0, passed[-1], SAMPLES)
    even = np.stack([np.interp(places, passed, column) for column in path.T], axis=1)
    reach = max(1, round(window / 2 * SAMPLES))
    behind, ahead = even[reach:-reach] - even[: -2 * reach], even[2 * reach :] - even[reach:-reach]
    chords = np.linalg.norm(behind, axis=1), np.linalg.norm(ahead, axis=1)
    lengths = np.where(np.minimum(*chords) > FLAT * passed[-1], chords[0] * chords[1], np.nan)
    cosine = (behind * ahead).sum(1) / lengths
    return np.interp(places, passed, times)[reach:-reach], np.arccos(cosine.clip(-1, 1))


def path_corners(
    path: Array, times: NDArray[np.floating], count: int, window: float = 0.1, smooth: int = 1
) -> tuple[Array, Array]:
    """The `count` sharpest turns of a path: peaks of `turning_angles`, no two of them within a window of each other.

    The other arguments are those of `turning_angles`, which raises what this raises, but for a count below one.

    Returns:
        Times and angles (radians) of the turns, each `(count,)` or shorter, in the order of time.
    """
    check_whole(count=count)
    when, angle = turning_angles(path, times, window, smooth)
    peaks = find_peaks(angle, distance=max(1, round(window * SAMPLES)))[0]
    found = np.sort(peaks[angle[peaks].argsort()[::-1][:count]])
    return when[found], angle[found]
