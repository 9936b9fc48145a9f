"""The shape of a path that a training takes through some space: its principal coordinates, and where it turns.

A path is known by the products of its points alone, a Gram matrix `(m, m)` as `spectra.gram` makes it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal import find_peaks

from descent.spectra import spectrum

Array = NDArray[np.float64]
SAMPLES = 400  # points at equal distances along a path, between which turns are measured


def principal_path(products: Array, count: int) -> tuple[Array, Array]:
    """The path in its first principal components, and the share of its variance in every component.

    Args:
        products: `(m, m)`, the Gram matrix of the points; it is centred here, over the points.
        count: components.

    Returns:
        Coordinates `(m, count)` in the points' units, the sign of each column arbitrary, and shares `(m,)`.

    Raises:
        ValueError: not 1 to m components, or all points are the same.
    """
    if not 1 <= count <= len(products):
        raise ValueError(f"count={count}: expected 1 to {len(products)}, the number of points")
    whole = spectrum(products, centre=True)
    energy = whole.values**2
    if not energy.sum() > 0:
        raise ValueError(f"{len(products)} equal points: expected a path that moves")
    return whole.left[:, :count] * whole.values[:count], energy / energy.sum()


def turning(path: Array, times: NDArray[np.floating], window: float = 0.1, smooth: int = 1) -> tuple[Array, Array]:
    """How much a path turns, by its own length, so that a slow stretch and a fast one count alike.

    At each of `SAMPLES` places at equal distances along the path: the angle between the chord from half a window behind
    to the place and the chord from there to half a window ahead.

    Args:
        path: `(m, k)`, points in order.
        times: `(m,)`, such as steps, ascending.
        window: length of both chords together, as a share of the path's length.
        smooth: points of the moving average that is taken first; a path that trembles on the spot has length without.

    Returns:
        Times `(n,)` of the places, the window's halves at both ends left out, and angles `(n,)` in radians, 0 to pi.

    Raises:
        ValueError: fewer than three points, a path without length, or a window out of (0, 1).
    """
    if len(path) < 3 or path.shape[0] != len(times):
        raise ValueError(f"path of shape {path.shape}, {len(times)} times: expected three points or more, a time each")
    if not 0 < window < 1:
        raise ValueError(f"window={window}: expected more than 0 and less than 1")
    path = uniform_filter1d(path, smooth, axis=0, mode="nearest")
    passed = np.concatenate([[0.0], np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()])
    if not passed[-1] > 0:
        raise ValueError(f"{len(path)} equal points: expected a path that moves")
    places = np.linspace(0, passed[-1], SAMPLES)
    even = np.stack([np.interp(places, passed, column) for column in path.T], axis=1)
    reach = max(1, round(window / 2 * SAMPLES))
    behind, ahead = even[reach:-reach] - even[: -2 * reach], even[2 * reach :] - even[reach:-reach]
    lengths = np.linalg.norm(behind, axis=1) * np.linalg.norm(ahead, axis=1)
    cosine = (behind * ahead).sum(1) / np.where(lengths > 0, lengths, 1)
    return np.interp(places, passed, times)[reach:-reach], np.arccos(cosine.clip(-1, 1))


def corners(
    path: Array, times: NDArray[np.floating], count: int, window: float = 0.1, smooth: int = 1
) -> tuple[Array, Array]:
    """The sharpest turns of a path, peaks of the angle that `turning` finds, no two within a window of each other.

    Args:
        path: `(m, k)`, points in order.
        times: `(m,)`, ascending.
        count: turns to find; there may be fewer.
        window: see `turning`.
        smooth: see `turning`.

    Returns:
        Times and angles (radians) of the turns, `(count,)` at most, in the order of time.

    Raises:
        ValueError: as `turning`.
    """
    when, angle = turning(path, times, window, smooth)
    peaks = find_peaks(angle, distance=max(1, round(window * SAMPLES)))[0]
    found = np.sort(peaks[angle[peaks].argsort()[::-1][:count]])
    return when[found], angle[found]
