"""A loss surface as a file for other programs: NumPy's `.npz`, or VTK's for ParaView."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyevtk.hl import gridToVTK, imageToVTK

from descent.landscape import Surface
from descent.records import atomic_path, provenance

SUFFIXES = (".npz", ".vti", ".vts")
CLIP = 10.0  # of the height in a .vts, as in the pictures of Li et al. 2018


def export(surface: Surface, path: str | Path, clip: float = CLIP) -> Path:
    """Write a surface, atomically; the suffix decides.

    `.npz`: a record with every value and the grid. `.vti`: an image of every value over the flat grid, which must rise
    in equal steps. `.vts`: the surface itself, its height log(1 + min(loss, clip)), with every value on it; where the
    loss is NaN the height is that of `clip`, and the value says NaN.

    Raises:
        ValueError: another suffix, or for a `.vti` steps that are not equal and upwards.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise ValueError(f"{target.name}: expected a name that ends in {', '.join(SUFFIXES)}")
    if target.suffix == ".npz":
        surface.record(target.stem, {}, provenance()).save(target)
        return target
    values = {name: np.ascontiguousarray(found[:, :, None], float) for name, found in surface.values.items()}
    with atomic_path(target) as temporary:
        stem = str(temporary.with_suffix(""))  # pyevtk adds the suffix
        if target.suffix == ".vti":
            steps = _step(surface.alpha, "alpha"), _step(surface.beta, "beta"), 1.0
            origin = float(surface.alpha[0]), float(surface.beta[0]), 0.0
            imageToVTK(stem, origin=origin, spacing=steps, pointData=values)
        else:
            capped = np.where(np.isnan(surface.loss), clip, surface.loss).clip(None, clip)
            a, b = np.meshgrid(surface.alpha, surface.beta, indexing="ij")
            axes = (np.ascontiguousarray(axis[:, :, None]) for axis in (a, b, np.log1p(capped)))
            gridToVTK(stem, *axes, pointData=values)
    return target


def _step(axis: NDArray[np.float64], name: str) -> float:
    steps = np.diff(axis)
    if len(steps) == 0 or steps[0] <= 0 or not np.allclose(steps, steps[0], rtol=1e-6, atol=0):
        raise ValueError(f"{name} does not rise in equal steps, as a .vti must: expected a .vts or .npz")
    return float(steps[0])
