"""Clusters of features that share dimensions, and the names of the figures that they form (Elhage et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from descent.features.measures import feature_directions, is_learnt

OTHER = "other"


def regular_polygon(corners: int) -> Tensor:
    """The corners of a regular polygon around the origin, `(2, corners)` float64, columns of length one."""
    angle = 2 * math.pi * torch.arange(corners, dtype=torch.float64) / corners
    return torch.stack([angle.cos(), angle.sin()])


def simplex(dimensions: int) -> Tensor:
    """The corners of the regular simplex, `(dimensions, dimensions + 1)` float64; all cosines are -1 / dimensions."""
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
        rank: the number of dimensions that they span, see `span_dimension`.
        name: one of FIGURES, or "other".
    """

    features: tuple[int, ...]
    rank: int
    name: str


def span_dimension(W: Tensor, share: float = 0.05) -> int:
    """The number of dimensions that the columns' directions span: singular values above `share` of the largest."""
    values = torch.linalg.svdvals(feature_directions(W))
    return int((values > share * values.max()).sum())


def cosines(W: Tensor) -> Tensor:
    """The cosines between the columns, each pair once, ascending: `(k (k - 1) / 2,)`. No rotation changes them."""
    gram = feature_directions(W).mT @ feature_directions(W)
    rows, columns = torch.triu_indices(len(gram), len(gram), 1)
    return gram[rows, columns].sort().values


def figure_name(W: Tensor, within: float = 0.15) -> str:
    """The name of the figure that the columns form, up to rotation, reflection and their lengths, or else "other".

    Args:
        W: `(m, k)`.
        within: the largest difference of a cosine from that of the figure, both in ascending order.
    """
    found = cosines(W.double())
    for name in FIGURES:
        known = figure_frame(name)
        if known.shape[1] != W.shape[1]:
            continue
        apart = (found - cosines(known)).abs()
        if apart.numel() == 0 or float(apart.max()) <= within:
            return name
    return OTHER


def feature_clusters(W: Tensor, threshold: float = 0.2) -> list[FeatureCluster]:
    """The clusters of learnt features of one map `(m, n)`, in the order of their first features.

    They are the connected parts of the graph that joins two features where the cosine between them is above `threshold`
    in absolute value.

    Raises:
        ValueError: more than one map, or a threshold outside 0 to 1.
    """
    if W.ndim != 2:
        raise ValueError(f"W of shape {tuple(W.shape)}: expected (m, n), one map")
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
        found.append(FeatureCluster(tuple(features.tolist()), span_dimension(columns), figure_name(columns)))
    return sorted(found, key=lambda cluster: cluster.features)


def cluster_names(W: Tensor, threshold: float = 0.2) -> list[str]:
    """The names of `feature_clusters`; "other" has its size and rank with it, as in "other 6 in 3"."""
    parts = feature_clusters(W, threshold)
    return [f"{OTHER} {len(c.features)} in {c.rank}" if c.name == OTHER else c.name for c in parts]


def figure_composition(W: Tensor, threshold: float = 0.2) -> str:
    """How many clusters of each name one map `(m, n)` has, such as "2 digon + 1 single".

    Examples:
        >>> figure_composition(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]))
        '1 digon + 1 single'
    """
    names = cluster_names(W, threshold)
    return " + ".join(f"{names.count(name)} {name}" for name in sorted(set(names))) or "nothing"


def cluster_edges(W: Tensor) -> list[tuple[int, int]]:
    """The pairs of columns of `W` `(3, k)` that are edges of their convex hull, without edges between coplanar faces.

    Fewer than four columns, or columns that lie in a plane, are joined around their polygon instead.
    """
    from scipy.spatial import ConvexHull  # costs time to import, and few need it

    points = W.T.double().numpy()
    if len(points) < 3:
        return list(combinations(range(len(points)), 2))
    left, size, _ = np.linalg.svd((points - points.mean(0)).T, full_matrices=False)
    flat = int((size > 0.05 * size[0]).sum())
    if flat < 3:
        flattened = (points - points.mean(0)) @ left[:, :2]
        order = np.argsort(np.arctan2(flattened[:, 1], flattened[:, 0])).tolist()
        pairs = zip(order, order[1:] + order[:1], strict=True)
        return sorted({(min(pair), max(pair)) for pair in pairs})
    hull = ConvexHull(points)
    faces: dict[tuple[int, int], list[int]] = {}
    for number, corners in enumerate(hull.simplices.tolist()):
        for a, b in combinations(sorted(corners), 2):
            faces.setdefault((a, b), []).append(number)
    normals = hull.equations[:, :3]
    return sorted(pair for pair, (one, two) in faces.items() if float(normals[one] @ normals[two]) < 0.995)
