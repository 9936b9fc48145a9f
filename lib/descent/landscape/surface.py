"""Loss surfaces: the values on a grid of a plane, which are kept with the grid, recomputed in part, and exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyevtk.hl import gridToVTK, imageToVTK

from descent.landscape.evaluator import Array, Evaluator, Values
from descent.repro.files import atomic_path
from descent.repro.numbers import as_real
from descent.repro.records import Record, provenance, relative_difference
from descent.repro.seeding import numpy_generator

SUFFIXES = (".npz", ".vti", ".vts")
CLIP = 10.0  # of the loss in a .vts, as in the pictures of Li et al. 2018


@dataclass(frozen=True)
class LossSurface:
    """The values on a grid, together with the grid.

    Attributes:
        alpha: `(m,)`, coordinates along the first direction.
        beta: `(n,)`, coordinates along the second.
        values: name -> `(m, n)`; `loss` among them, see `Evaluator`.
        images: the number of examples in each mean.
        precision: in which the values were computed.
    """

    alpha: Array
    beta: Array
    values: Mapping[str, Array]
    images: int
    precision: str

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            object.__setattr__(self, name, _axis(getattr(self, name), name))
        object.__setattr__(self, "values", {name: np.asarray(values) for name, values in self.values.items()})
        wanted = (len(self.alpha), len(self.beta))
        for name, values in self.values.items():
            if values.shape != wanted:
                raise ValueError(f"{name} of shape {values.shape}: expected (len(alpha), len(beta)) = {wanted}")
        if "loss" not in self.values:
            raise ValueError(f"values {', '.join(self.values)}: expected loss among them")

    @property
    def loss(self) -> Array:
        """`(m, n)`, mean per example."""
        return self.values["loss"]

    def record(self, name: str, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> Record:
        """A record of the values, `alpha` and `beta`."""
        about = {**settings, "images": self.images, "precision": self.precision}
        return Record(name, {"alpha": self.alpha, "beta": self.beta, **self.values}, about, provenance)

    @classmethod
    def of(cls, record: Record) -> LossSurface:
        """The surface that `record` made a record of.

        Raises:
            ValueError: it is a record of something else.
        """
        values = dict(record.values)
        if not {"alpha", "beta", "loss"} <= set(values) or not {"images", "precision"} <= set(record.settings):
            raise ValueError(f"record {record.name!r} holds {', '.join(values)}: expected alpha, beta, loss and more")
        alpha, beta = values.pop("alpha"), values.pop("beta")
        return cls(alpha, beta, values, record.settings["images"], record.settings["precision"])


def _axis(values: ArrayLike, name: str) -> Array:
    """The coordinates of grid lines, `(m,)`; refused if they are of another shape, or no real numbers."""
    axis = as_real(values, name).astype(float)
    if axis.ndim != 1:
        raise ValueError(f"{name} of shape {axis.shape}: expected the coordinates of grid lines, (m,)")
    return axis


def plane_grid(alpha: ArrayLike, beta: ArrayLike) -> Array:
    """All points of a grid, `(m n, 2)`, the second coordinate fastest, so that `values.reshape(m, n)` is the grid.

    Examples:
        >>> plane_grid([0, 1], [5, 6, 7])[:4].tolist()
        [[0.0, 5.0], [0.0, 6.0], [0.0, 7.0], [1.0, 5.0]]
    """
    a, b = np.meshgrid(_axis(alpha, "alpha"), _axis(beta, "beta"), indexing="ij")
    return np.stack([a.ravel(), b.ravel()], 1)


def loss_surface(
    evaluator: Evaluator, alpha: ArrayLike, beta: ArrayLike, run: Callable[[Evaluator, Array], Values] | None = None
) -> LossSurface:
    """The loss, and the other values of an evaluator, on a grid of a plane (Li et al. 2018, section 4).

    Args:
        evaluator: with two directions.
        alpha: `(m,)`, coordinates along the first direction.
        beta: `(n,)`, coordinates along the second.
        run: `run(evaluator, points (m n, 2))` to name -> `(m n,)`, such as one that shares the points out among
            processes by `descent.repro.sweep`; None evaluates them one after the other in this process.

    Raises:
        ValueError: the evaluator has another number of directions than two.

    Examples:
        >>> import torch
        >>> from descent.landscape import random_direction
        >>> model = torch.nn.Linear(3, 2)
        >>> directions = [random_direction(model, 0, name) for name in ("alpha", "beta")]
        >>> task = Evaluator(model, torch.eye(3), torch.tensor([0, 1, 1]), directions)
        >>> surface = loss_surface(task, np.linspace(-1, 1, 5), np.linspace(-1, 1, 7))
        >>> surface.loss.shape, sorted(surface.values)
        ((5, 7), ['error', 'loss', 'standard_error'])
    """
    a, b = _axis(alpha, "alpha"), _axis(beta, "beta")
    points = plane_grid(a, b)
    values = evaluator(points) if run is None else run(evaluator, points)
    shaped = {name: flat.reshape(len(a), len(b)) for name, flat in values.items()}
    return LossSurface(a, b, shaped, evaluator.images, evaluator.precision)


def recompute_points(evaluator: Evaluator, surface: LossSurface, seed: int, share: float = 0.02) -> Array:
    """Relative difference of the loss at randomly chosen grid points when they are computed anew in float32.

    Returns:
        `(ceil(share m n),)`, |loss - anew| / |anew|; 0 where both are NaN or the same infinity, infinite where only
        one is finite.

    Raises:
        ValueError: a share that is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: expected 0 to 1")
    points = plane_grid(surface.alpha, surface.beta)
    chosen = numpy_generator(seed, "recheck").choice(len(points), int(np.ceil(share * len(points))), replace=False)
    before, anew = surface.loss.ravel()[chosen], evaluator.in_float32()(points[chosen])["loss"]
    return relative_difference(before, anew)


def export_surface(surface: LossSurface, path: str | Path, clip: float = CLIP) -> Path:
    """Write a surface atomically to a file, whose suffix decides the format.

    A `.npz` is a record with every value and the grid. VTK programs such as ParaView read the two others. A `.vti` is
    an image of every value over the flat grid, which must rise in equal steps. A `.vts` is the surface itself, at the
    height log(1 + min(loss, clip)), with every value on it; where the loss is NaN the height is that of `clip`, and the
    value stays NaN.

    Raises:
        ValueError: another suffix; for a `.vti` steps that are not equal and upwards; for a `.vts` a loss of -1 or
            below, or a `clip` that is not finite and above -1.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise ValueError(f"{target.name}: expected a name that ends in {', '.join(SUFFIXES)}")
    if target.suffix == ".npz":
        surface.record(target.stem, {}, provenance()).save(target)
        return target
    values = {name: np.ascontiguousarray(grid[:, :, None], float) for name, grid in surface.values.items()}
    with atomic_path(target) as temporary:
        stem = str(temporary.with_suffix(""))  # pyevtk adds the suffix
        if target.suffix == ".vti":
            steps = _step(surface.alpha, "alpha"), _step(surface.beta, "beta"), 1.0
            origin = float(surface.alpha[0]), float(surface.beta[0]), 0.0
            imageToVTK(stem, origin=origin, spacing=steps, pointData=values)
        else:
            capped = np.where(np.isnan(surface.loss), clip, surface.loss).clip(None, clip)
            if not (np.isfinite(clip) and capped.min() > -1):
                least = f"the least loss is {capped.min():.3g} and clip={clip}"
                raise ValueError(f"{least}, without a height log(1 + loss): expected both above -1, or a .vti or .npz")
            a, b = np.meshgrid(surface.alpha, surface.beta, indexing="ij")
            axes = (np.ascontiguousarray(axis[:, :, None]) for axis in (a, b, np.log1p(capped)))
            gridToVTK(stem, *axes, pointData=values)
    return target


def _step(axis: NDArray[np.float64], name: str) -> float:
    steps = np.diff(axis)
    if len(steps) == 0 or steps[0] <= 0 or not np.allclose(steps, steps[0], rtol=1e-6, atol=0):
        raise ValueError(f"{name} does not rise in equal steps, as a .vti must: expected a .vts or .npz")
    return float(steps[0])
