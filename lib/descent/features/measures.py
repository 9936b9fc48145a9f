"""How a linear map stores features: their norms, their interference, and the share of a dimension that each has.

A map is `W` of shape `(..., m, n)`, with m dimensions and the n features as its columns W_i; leading dimensions stand
for several maps. W^_i is the column scaled to length one. The measures are those of Elhage et al. 2022 (section "The
geometry of superposition").
"""

from __future__ import annotations

import torch
from torch import Tensor

NORM_FLOOR = 1e-6  # a column with a smaller norm has no direction
LEARNT = 0.5  # a feature with a larger norm counts as learnt


def feature_norms(W: Tensor) -> Tensor:
    """The norm of each column, `(..., m, n) -> (..., n)`.

    Raises:
        ValueError: W is no matrix.
    """
    if W.ndim < 2:
        raise ValueError(f"W of shape {tuple(W.shape)}: expected (..., m, n), the features as columns")
    norms: Tensor = torch.linalg.vector_norm(W, dim=-2)
    return norms


def feature_directions(W: Tensor) -> Tensor:
    """The columns scaled to length one, `(..., m, n)`; a column shorter than 1e-6 is divided by 1e-6."""
    return W / feature_norms(W).clamp(min=NORM_FLOOR).unsqueeze(-2)


def is_learnt(W: Tensor) -> Tensor:
    """Whether the norm of each feature is above 1/2, `(..., n)` bool; learnt ones are near 1, the others near 0."""
    return feature_norms(W) > LEARNT


def dimensions_per_feature(W: Tensor) -> Tensor:
    """D* = m / ||W||_F^2, `(...,)`, the dimensions for each feature if features are stored at length one.

    It is infinite for a W of zeros, and becomes D* / c^2 where W becomes c W. Its inverse is the number of features per
    dimension.

    Examples:
        >>> float(dimensions_per_feature(torch.tensor([[1.0, -1.0]])))  # two features in one dimension
        0.5
    """
    return W.shape[-2] / feature_norms(W).square().sum(-1)


def _overlaps(W: Tensor) -> Tensor:
    """The squared overlap (W^_i . W_j)^2 of direction i with column j, `(..., n, n)`."""
    return (feature_directions(W).mT @ W).square()


def dimensionality(W: Tensor) -> Tensor:
    """The share of a dimension that each feature has for itself, `(..., n)`.

    D_i = ||W_i||^2 / sum_j (W^_i . W_j)^2. The sum includes j = i. D_i is 1 for a feature that shares with no other,
    and 0 for a column of zeros; it does not change with the scale of W. It equals the capacity of Scherlis et al. 2022
    (section 2), which is (W_i . W_i)^2 / sum_j (W_i . W_j)^2.

    Examples:
        Two opposite features in the first dimension, and one alone in the second:

        >>> dimensionality(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])).tolist()
        [0.5, 0.5, 1.0]
    """
    squares, total = feature_norms(W).square(), _overlaps(W).sum(-1)
    return torch.where(total > 0, squares / torch.where(total > 0, total, 1), 0)


def interference(W: Tensor) -> Tensor:
    """How much the other features move along the direction of each feature, `(..., n)`.

    It is the sum over j != i of (W^_i . W_j)^2: 0 for a feature that is orthogonal to all others, and 1 for one of an
    antipodal pair of length one.
    """
    return _overlaps(W).sum(-1) - feature_norms(W).square() * (feature_norms(W) >= NORM_FLOOR)


def random_directions(m: int, n: int, generator: torch.Generator) -> Tensor:
    """Independent directions, uniform on the sphere, `(m, n)` float64, as a null model for features.

    Raises:
        ValueError: m or n is below 1.
    """
    if m < 1 or n < 1:
        raise ValueError(f"m={m}, n={n}: expected at least 1 each")
    return feature_directions(torch.randn(m, n, dtype=torch.float64, generator=generator))


def is_near_line(values: Tensor, lines: Tensor, within: float = 0.02) -> Tensor:
    """Whether each of the values `(...)` lies within a distance of one of the lines `(k,)`: `(...)` bool."""
    return ((values.unsqueeze(-1) - lines).abs() <= within).any(-1)
