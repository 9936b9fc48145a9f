"""Maps in any form, with columns of any size beside each other; what is no map is refused by a sentence."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from descent.features.geometry import (
    cluster_edges,
    cosines,
    dimensionality,
    dimensions_per_feature,
    feature_clusters,
    feature_directions,
    feature_norms,
    figure_composition,
    figure_name,
    interference,
    is_learnt,
    regular_polygon,
    simplex,
)

W = torch.tensor([[1.0, -1.0, 0.0, 0.75], [0.0, 0.0, 1.0, 0.75]])


def by_loop(columns: np.ndarray) -> list[float]:
    """Every D_i in extended precision, column by column."""
    shares = []
    for i in columns.T:
        unit = i / np.sqrt((i * i).sum())
        shares.append(float((i * i).sum() / sum((unit * j).sum() ** 2 for j in columns.T)))
    return shares


FORMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "array": lambda w: w.numpy(),
    "list": lambda w: w.tolist(),
    "bfloat16": lambda w: w.bfloat16(),
    "parameter": nn.Parameter,
    "sparse": lambda w: w.to_sparse(),
    "read only": lambda w: np.broadcast_to(w.numpy(), w.shape),
    "other byte order": lambda w: w.numpy().astype(">f4"),
    "long doubles": lambda w: w.numpy().astype(np.longdouble),
    "turned twice": lambda w: w.numpy()[:, ::-1].copy()[:, ::-1],
}
MEASURES: list[Callable[[Any], Any]] = [
    feature_norms, feature_directions, is_learnt, dimensions_per_feature, dimensionality, interference, cosines,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_map_in_any_form(form: str) -> None:
    given = FORMS[form](W)
    np.testing.assert_allclose(dimensionality(given).detach(), by_loop(W.numpy().astype(np.longdouble)), rtol=1e-6)
    for measure in MEASURES:
        np.testing.assert_allclose(measure(given).detach().double(), measure(W).double(), rtol=1e-6, atol=1e-7)
    assert figure_composition(given) == figure_composition(W)
    assert feature_clusters(given) == feature_clusters(W)
    assert figure_name(FORMS[form](torch.tensor([[1.0, -1.0]]))) == "digon"
    corners = FORMS[form](torch.tensor([[1.0, 0, 0, -1], [0, 1, 0, -1], [0, 0, 1, -1]]))
    assert len(cluster_edges(corners)) == 6, "a tetrahedron"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sizes", [(1e-25, 1e-25, 1), (1e-25, 1, 1e-12), (1e-30, 1e30, 1), (1, 1e-38, 1e38), (3, 0.1, 1)]
)
def test_columns_of_any_size_beside_each_other(sizes: tuple[float, ...], dtype: torch.dtype) -> None:
    directions = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.8, 1.0]], dtype=dtype)
    columns = directions * torch.tensor(sizes, dtype=dtype)
    exact = columns.numpy().astype(np.longdouble)
    np.testing.assert_allclose(dimensionality(columns), by_loop(exact), rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(feature_norms(columns), np.sqrt((exact**2).sum(0)).astype(float), rtol=1e-6)
    np.testing.assert_allclose(feature_directions(columns).norm(dim=0), np.ones(3), rtol=1e-6)


def test_small_columns_share_their_dimension() -> None:
    """On paper: two equal columns have half a dimension each, however small they are beside the third."""
    assert dimensionality(torch.tensor([[1e-25, 1e-25, 0], [0, 0, 1.0]])).tolist() == [0.5, 0.5, 1.0]


def test_one_number_that_is_not_finite_spoils_its_map_and_no_other() -> None:
    maps = W.repeat(3, 1, 1)
    maps[1, 0, 0] = torch.inf
    for measure in (dimensionality, feature_norms, interference):
        found = measure(maps).isnan()
        assert found[1].all()
        assert not found[[0, 2]].any()


def test_dimensionality_has_a_gradient() -> None:
    weights = W.clone().requires_grad_()
    dimensionality(weights).sum().backward()
    assert weights.grad is not None
    assert weights.grad.isfinite().all()


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda: dimensionality(W + 0j), r"W of shape \(2, 4\): expected \(\.\.\., m, n\), .* real numbers"),
        (lambda: dimensionality(W.numpy() + 0j), "W is of type complex64: expected real numbers"),
        (lambda: feature_norms(np.ma.masked_less(W.numpy(), 0)), "W is a masked array"),
        (lambda: cosines(W.repeat(2, 1, 1)), r"W of shape \(2, 2, 4\): expected \(m, n\), one map"),
        (lambda: dimensionality(W > 0), "expected .* columns of real numbers"),
        (lambda: figure_name(W * math.nan), "a number that is not finite, so that nobody knows its figure"),
        (lambda: figure_name(W.repeat(2, 1, 1)), r"expected \(m, n\), one map"),
        (lambda: figure_name(torch.zeros(2, 0)), r"W of shape \(2, 0\)"),
        (lambda: cluster_edges(W.numpy() + 0j), "W is of type complex64"),
        (lambda: simplex(-1), "dimensions=-1: expected at least 1, a whole number"),
        (lambda: simplex(2.0), r"dimensions=2\.0: expected at least 1, a whole number"),  # type: ignore[arg-type]
        (lambda: regular_polygon(-1), "corners=-1: expected at least 1, a whole number"),
        (lambda: regular_polygon(2.5), r"corners=2\.5: expected at least 1"),  # type: ignore[arg-type]
        (lambda: feature_clusters(W, math.nan), "threshold=nan: expected one between 0 and 1"),
    ],
)
def test_what_is_no_map_is_refused(use: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        use()
