"""How a linear map stores features: norms, interference, and the share of a dimension that each has.

A map is `W` of shape `(..., m, n)`: m dimensions, and the n features as its columns W_i. Any number of leading
dimensions stands for as many maps. A hat is a column of length one. The measures are those of Elhage et al. 2022 (Toy
Models of Superposition, "The geometry of superposition").
"""

from __future__ import annotations

import torch
from torch import Tensor

NORM_FLOOR = 1e-6  # below it a column has no direction
LEARNT = 0.5  # norm above which a feature counts as learnt


def feature_norms(W: Tensor) -> Tensor:
    """Length of each column, `(..., m, n) -> (..., n)`.

    Raises:
        ValueError: fewer than two dimensions.
    """
    if W.ndim < 2:
        raise ValueError(f"W of shape {tuple(W.shape)}: expected (..., m, n), the features as columns")
    norms: Tensor = torch.linalg.vector_norm(W, dim=-2)
    return norms


def feature_directions(W: Tensor) -> Tensor:
    """The columns at length one, `(..., m, n)`; one shorter than 1e-6 is divided by that instead."""
    return W / feature_norms(W).clamp(min=NORM_FLOOR).unsqueeze(-2)


def is_learnt(W: Tensor) -> Tensor:
    """Which features are longer than 1/2, `(..., n)` bool: learnt ones are near 1, the others near 0."""
    return feature_norms(W) > LEARNT


def dimensions_per_feature(W: Tensor) -> Tensor:
    """D* = m / ||W||_F^2, `(...,)`: the dimensions for each feature that is stored at length one; a zero W gives inf.

    Its inverse is the features per dimension. It scales as 1 / c^2 where W becomes c W.
    """
    return W.shape[-2] / feature_norms(W).square().sum(-1)


def _overlaps(W: Tensor) -> Tensor:
    """Squared overlap (W^_i . W_j)^2 of direction i with column j, `(..., n, n)`."""
    return (feature_directions(W).mT @ W).square()


def dimensionality(W: Tensor) -> Tensor:
    """D_i = ||W_i||^2 / sum_j (W^_i . W_j)^2, `(..., n)`: the share of a dimension that feature i has for itself.

    The sum has j = i in it: D_i is 1 for a feature that shares with none, and 0 for a column of zeros. It does not
    change with the scale of W. It is the capacity of Scherlis et al. 2022 (Polysemanticity and capacity, section 2),
    (W_i . W_i)^2 / sum_j (W_i . W_j)^2, in which both parts have ||W_i||^2 more.
    """
    squares, total = feature_norms(W).square(), _overlaps(W).sum(-1)
    return torch.where(total > 0, squares / torch.where(total > 0, total, 1), 0)


def interference(W: Tensor) -> Tensor:
    """The sum over j != i of (W^_i . W_j)^2, `(..., n)`, the colour of the source's bars.

    It is 0 for a feature with a direction of its own, and 1 for one of an antipodal pair.
    """
    return _overlaps(W).sum(-1) - feature_norms(W).square() * (feature_norms(W) >= NORM_FLOOR)


def random_directions(m: int, n: int, generator: torch.Generator) -> Tensor:
    """Independent directions, uniform on the sphere, `(m, n)` float64: what features without any order look like.

    Raises:
        ValueError: a size below 1.
    """
    if m < 1 or n < 1:
        raise ValueError(f"m={m}, n={n}: expected at least 1 each")
    return feature_directions(torch.randn(m, n, dtype=torch.float64, generator=generator))


def is_near_line(values: Tensor, lines: Tensor, within: float = 0.02) -> Tensor:
    """Which values lie within a distance of one of the lines, `(...,)` bool."""
    return ((values.unsqueeze(-1) - lines).abs() <= within).any(-1)
