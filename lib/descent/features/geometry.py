"""How a linear map stores features: their interference, the share of a dimension that each has, and their figures.

A map is `W` of shape `(..., m, n)`, with m dimensions and the n features as its columns W_i; leading dimensions stand
for several maps. W^_i is the column scaled to length one. The measures, and the names of the figures that clusters of
features form, are those of Elhage et al. 2022 (section "The geometry of superposition").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from descent.repro.numbers import as_real, check_whole

LEARNT = 0.5  # a feature with a larger norm counts as learnt


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """A copy in an order of bytes and of a width that torch has."""
    return np.array(array, np.float32 if array.dtype == np.float32 else np.float64)


def _map(W: Tensor, one: bool = False) -> Tensor:
    """W as a tensor of float32 or float64, with its gradient; `one` says that it has to be one map."""
    W = W.to_dense() if isinstance(W, Tensor) else torch.from_numpy(_native(as_real(W, "W")))
    if W.ndim < 2 or 0 in W.shape or W.is_complex() or W.dtype == torch.bool or (one and W.ndim > 2):
        wanted = "(m, n), one map" if one else "(..., m, n)"
        raise ValueError(f"W of shape {tuple(W.shape)}: expected {wanted}, the features as columns of real numbers")
    return W if W.dtype in (torch.float32, torch.float64) else W.double()


def _scaled(W: Tensor, over: tuple[int, ...] = (-2,)) -> tuple[Tensor, Tensor, Tensor]:
    """W times a power of two for each column or map, which keeps all digits and squares in range; norms, and power."""
    real = _map(W)
    top = real.abs().amax(over, keepdim=True)
    top = (top + 0 * top.amax(-1, keepdim=True)).clamp(min=torch.finfo(real.dtype).tiny)  # NaN is that of a whole map
    power = torch.frexp(top).mantissa / top
    return real * power, torch.linalg.vector_norm(real * power, dim=-2), power[..., 0, :]


def feature_norms(W: Tensor) -> Tensor:
    """The norm of each column, `(..., m, n) -> (..., n)`; in a map with a number that is not finite all are NaN.

    Raises:
        ValueError: W is no matrix of real numbers, or empty.
    """
    _, norms, power = _scaled(W)
    return norms / power


def feature_directions(W: Tensor) -> Tensor:
    """The columns scaled to length one, `(..., m, n)`; a column of zeros stays as it is. Raises as `feature_norms`."""
    near, norms, _ = _scaled(W)
    return near / norms.where(norms != 0, 1).unsqueeze(-2)


def is_learnt(W: Tensor) -> Tensor:
    """Whether the norm of each feature is above 1/2, `(..., n)` bool; learnt ones are near 1, the others near 0.

    Raises:
        ValueError: as `feature_norms`, or a number is not finite.
    """
    norms = feature_norms(W)
    if not norms.isfinite().all():
        raise ValueError("W has a number that is not finite, so that nobody knows what is learnt")
    return norms > LEARNT


def dimensions_per_feature(W: Tensor) -> Tensor:
    """D* = m / ||W||_F^2, `(...,)`, the dimensions for each feature if features are stored at length one.

    It is infinite for a W of zeros, and becomes D* / c^2 where W becomes c W. Its inverse is the number of features per
    dimension.

    Examples:
        >>> float(dimensions_per_feature(torch.tensor([[1.0, -1.0]])))  # two features in one dimension
        0.5
    """
    near, norms, power = _scaled(W, (-2, -1))
    return near.shape[-2] / norms.square().sum(-1) * power[..., 0].square()


def dimensionality(W: Tensor) -> Tensor:
    """The share of a dimension that each feature has for itself, `(..., n)`.

    D_i = ||W_i||^2 / sum_j (W^_i . W_j)^2. The sum includes j = i. D_i is 1 for a feature that shares with no other,
    and 0 for a column of zeros; it does not change with the scale of W, and is NaN for all of a map that has a number
    that is not finite. It equals the capacity of Scherlis et al. 2022
    (section 2), which is (W_i . W_i)^2 / sum_j (W_i . W_j)^2.

    Examples:
        Two opposite features in the first dimension, and one alone in the second:

        >>> dimensionality(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])).tolist()
        [0.5, 0.5, 1.0]
    """
    near, norms, power = _scaled(W)
    ratio = (power.unsqueeze(-1) / power.unsqueeze(-2)).clamp(max=2.0**60)  # of W_j to W_i; no infinity times zero
    total = ((feature_directions(near).mT @ near) * ratio).square().sum(-1)
    return norms.square() / total.where(total != 0, 1)


def interference(W: Tensor) -> Tensor:
    """How much the other features move along the direction of each feature, `(..., n)`.

    It is the sum over j != i of (W^_i . W_j)^2: 0 for a feature that is orthogonal to all others, and 1 for one of an
    antipodal pair of length one.
    """
    near, norms, power = _scaled(W, (-2, -1))
    overlaps = (feature_directions(W).mT @ near).square().sum(-1)
    return (overlaps - norms.square()) / power.square()


def random_directions(m: int, n: int, generator: torch.Generator) -> Tensor:
    """Independent directions, uniform on the sphere, `(m, n)` float64, as a null model for features.

    Raises:
        ValueError: m or n is below 1.
    """
    check_whole(m=m, n=n)
    return feature_directions(torch.randn(m, n, dtype=torch.float64, generator=generator))


def regular_polygon(corners: int) -> Tensor:
    """The corners of a regular polygon around the origin, `(2, corners)` float64, columns of length one."""
    check_whole(corners=corners)
    angle = 2 * math.pi * torch.arange(corners, dtype=torch.float64) / corners
    return torch.stack([angle.cos(), angle.sin()])


def simplex(dimensions: int) -> Tensor:
    """The corners of the regular simplex, `(dimensions, dimensions + 1)` float64; all cosines are -1 / dimensions."""
    check_whole(dimensions=dimensions)
    n = dimensions + 1
    centred = torch.eye(n, dtype=torch.float64) - 1 / n
    _, vectors = torch.linalg.eigh(centred)
    return feature_directions(vectors[:, 1:].T @ centred)  # the first eigenvector is the constant, with eigenvalue 0


def square_antiprism() -> Tensor:
    """The corners of two parallel squares, one turned by an eighth of a circle, `(3, 8)` float64 of length one.

    The distance of the squares is such that the outer products of the columns add up to a multiple of the identity, for
    which every D_i is 3/8.
    """
    angle = math.pi / 4 * torch.arange(8, dtype=torch.float64)
    height = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4) / math.sqrt(3)
    return torch.stack([angle.cos() * math.sqrt(2 / 3), angle.sin() * math.sqrt(2 / 3), height])


# name -> the corners of the figure as columns of length one; each D_i is dimensions over corners
FIGURES: dict[str, Callable[[], Tensor]] = {
    "single": lambda: simplex(1)[:, :1],
    "digon": lambda: simplex(1),
    "triangle": lambda: simplex(2),
    "tetrahedron": lambda: simplex(3),
    "5-cell": lambda: simplex(4),
    "pentagon": lambda: regular_polygon(5),
    "square antiprism": square_antiprism,
}


def figure_frame(name: str) -> Tensor:
    """The corners of a figure by its name, `(dimensions, corners)` float64 of length one.

    Raises:
        ValueError: an unknown name.

    Examples:
        >>> corners = figure_frame("triangle")
        >>> (corners.T @ corners).round(decimals=6)[0].tolist()
        [1.0, -0.5, -0.5]
    """
    if name not in FIGURES:
        raise ValueError(f"figure {name!r}: expected one of {', '.join(FIGURES)}")
    return FIGURES[name]()


@dataclass(frozen=True)
class FeatureCluster:
    """Features that share dimensions.

    Attributes:
        features: their indices, ascending.
        rank: the number of dimensions that they span: singular values of W^ above 1/20 of the largest.
        name: one that `figure_frame` knows, or "other".
    """

    features: tuple[int, ...]
    rank: int
    name: str


def cosines(W: Tensor) -> Tensor:
    """The cosines between the columns, each pair once, ascending: `(k (k - 1) / 2,)`. No rotation changes them."""
    W = _map(W, one=True)
    gram = feature_directions(W).mT @ feature_directions(W)
    rows, columns = torch.triu_indices(len(gram), len(gram), 1)
    return gram[rows, columns].sort().values


def figure_name(W: Tensor) -> str:
    """The name of the figure that the columns of `W` `(m, k)` form, or else "other"; no rotation or length changes it.

    In ascending order, no cosine between the columns differs by more than 0.15 from that of the figure.

    Raises:
        ValueError: more than one map, or a number is not finite.
    """
    if not _map(W).isfinite().all():
        raise ValueError("W has a number that is not finite, so that nobody knows its figure")
    ours = cosines(_map(W).double())
    for name in FIGURES:
        known = _cosines_of(name)
        if len(known) == len(ours) and torch.allclose(ours, known, rtol=0, atol=0.15):
            return name
    return "other"


@cache
def _cosines_of(name: str) -> Tensor:
    return cosines(figure_frame(name))


def feature_clusters(W: Tensor, threshold: float = 0.2) -> list[FeatureCluster]:
    """The clusters of learnt features of one map `(m, n)`, in the order of their first features.

    They are the connected parts of the graph that joins two features where the cosine between them is above `threshold`
    in absolute value.

    Raises:
        ValueError: more than one map, or a threshold outside 0 to 1.
    """
    W = _map(W, one=True)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold}: expected one between 0 and 1")
    kept = torch.nonzero(is_learnt(W)).flatten()
    if len(kept) == 0:
        return []
    units = feature_directions(W[:, kept].double())
    joined = (units.T @ units).abs() > threshold
    count, label = connected_components(joined.numpy(), directed=False)
    found = []
    for part in range(count):
        features = kept[torch.from_numpy(np.flatnonzero(label == part))]
        columns = W[:, features]
        rank = int(torch.linalg.matrix_rank(feature_directions(columns), rtol=0.05))
        found.append(FeatureCluster(tuple(features.tolist()), rank, figure_name(columns)))
    return sorted(found, key=lambda cluster: cluster.features)


def figure_composition(W: Tensor) -> str:
    """How many clusters of each name one map `(m, n)` has, such as "2 digon + 1 other 6 in 3" (6 features of rank 3).

    Examples:
        >>> figure_composition(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]))
        '1 digon + 1 single'
    """
    parts = feature_clusters(W)
    names = Counter(f"other {len(c.features)} in {c.rank}" if c.name == "other" else c.name for c in parts)
    return " + ".join(f"{names[name]} {name}" for name in sorted(names)) or "nothing"


def cluster_edges(W: Tensor) -> list[tuple[int, int]]:
    """The pairs of columns of `W` `(3, k)` that are edges of their convex hull, without edges between coplanar faces.

    Columns that lie in a plane are joined around the polygon that is their hull there, those on a line at its two ends.

    Raises:
        ValueError: the columns have not three dimensions, or a number is not finite.
    """
    from scipy.spatial import ConvexHull  # costs time to import, and few need it

    points = as_real(W, "W").astype(np.float64).T
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise ValueError(f"W of shape {points.T.shape}: expected (3, k), finite numbers")
    points = np.ldexp(points, -np.frexp(np.abs(points).max(initial=0))[1])
    centred = points - points.mean(0) if len(points) else points
    left, size, _ = np.linalg.svd(centred.T, full_matrices=False)
    flat = int((size > 0.05 * size.max(initial=1e-12)).sum())
    if flat == 0:
        return []
    if flat == 1:
        ends = int((centred @ left[:, 0]).argmin()), int((centred @ left[:, 0]).argmax())
        return [(min(ends), max(ends))]
    if flat == 2:
        return sorted((min(pair), max(pair)) for pair in ConvexHull(centred @ left[:, :2]).simplices.tolist())
    hull = ConvexHull(points)
    faces: dict[tuple[int, int], list[int]] = {}
    for number, corners in enumerate(hull.simplices.tolist()):
        for a, b in combinations(sorted(corners), 2):
            faces.setdefault((a, b), []).append(number)
    normals = hull.equations[:, :3]
    return sorted(pair for pair, (one, two) in faces.items() if float(normals[one] @ normals[two]) < 0.995)
