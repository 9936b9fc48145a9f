"""Measures and figures of features, on frames whose numbers are known on paper."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from descent.features.geometry import (
    FIGURES,
    cluster_edges,
    cosines,
    dimensionality,
    dimensions_per_feature,
    feature_clusters,
    feature_directions,
    feature_norms,
    figure_composition,
    figure_frame,
    figure_name,
    interference,
    is_learnt,
    random_directions,
    regular_polygon,
    simplex,
    square_antiprism,
)

EXACT = {
    "single": 1.0, "digon": 1 / 2, "triangle": 2 / 3, "tetrahedron": 3 / 4, "5-cell": 4 / 5, "pentagon": 2 / 5,
    "square antiprism": 3 / 8,
}  # fmt: skip
generator = torch.Generator().manual_seed(0)


def turned(columns: Tensor, m: int) -> Tensor:
    """The columns in m dimensions, rotated at random."""
    q, _ = torch.linalg.qr(torch.randn(m, m, dtype=torch.float64, generator=generator))
    return q[:, : len(columns)] @ columns


def beside(*frames: Tensor) -> Tensor:
    """The frames in dimensions of their own."""
    return torch.block_diag(*frames)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_have_their_dimensionality_exactly(name: str) -> None:
    columns = figure_frame(name)
    expected = torch.full((columns.shape[1],), EXACT[name], dtype=torch.float64)
    assert torch.allclose(feature_norms(columns), torch.ones_like(expected), atol=1e-12)
    for W in (columns, turned(columns, 6), 0.01 * columns, 1000 * turned(columns, 4)):
        torch.testing.assert_close(dimensionality(W), expected, atol=1e-6, rtol=0)
    assert float(dimensionality(columns).sum()) == pytest.approx(len(columns) if name != "single" else 1)
    torch.testing.assert_close(interference(columns), 1 / expected - 1, atol=1e-6, rtol=0)


def test_orthogonal_features_have_a_dimension_each() -> None:
    W = torch.diag(torch.tensor([1.0, 2.0, 0.1], dtype=torch.float64))
    torch.testing.assert_close(dimensionality(W), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(interference(W), torch.zeros(3, dtype=torch.float64))
    assert is_learnt(W).tolist() == [True, True, False]


def test_columns_of_zeros_have_no_share_and_change_no_other() -> None:
    W = torch.cat([simplex(1), torch.zeros(1, 2, dtype=torch.float64)], 1)
    assert dimensionality(W).tolist() == pytest.approx([0.5, 0.5, 0, 0])
    assert interference(W).tolist() == pytest.approx([1, 1, 0, 0])
    assert dimensionality(torch.zeros(2, 3)).tolist() == [0, 0, 0]
    assert torch.isinf(dimensions_per_feature(torch.zeros(2, 3)))


def test_dimensionality_is_capacity_and_does_not_see_the_scale() -> None:
    W = torch.randn(3, 5, 9, dtype=torch.float64, generator=generator)
    gram = W.mT @ W
    capacity = gram.diagonal(dim1=-2, dim2=-1).square() / gram.square().sum(-1)
    torch.testing.assert_close(dimensionality(W), capacity)
    for c in (1e-3, 0.5, 7.0, 1e4):
        torch.testing.assert_close(dimensionality(c * W), dimensionality(W), atol=1e-6, rtol=0)
        torch.testing.assert_close(dimensions_per_feature(c * W), dimensions_per_feature(W) / c**2)
    assert float(dimensionality(W).sum(-1).max()) <= 5 + 1e-9


def test_dimensions_per_feature_of_unit_columns_is_a_count() -> None:
    assert float(dimensions_per_feature(figure_frame("pentagon"))) == pytest.approx(2 / 5)
    assert dimensions_per_feature(torch.eye(4).expand(3, 4, 4)).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"W of shape \(4,\): expected \(..., m, n\)"):
        feature_norms(torch.zeros(4))


def test_random_directions_have_length_one_and_less_order() -> None:
    W = random_directions(10, 400, torch.Generator().manual_seed(1))
    assert torch.allclose(feature_norms(W), torch.ones(400, dtype=torch.float64))
    mean = float(1 / (1 + 399 / 10))  # a squared cosine is 1 / m on average
    assert float(dimensionality(W).mean()) == pytest.approx(mean, rel=0.02)
    with pytest.raises(ValueError, match="m=0: expected at least 1"):
        random_directions(0, 3, generator)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_figures_are_named_rotated_and_under_noise(name: str, noise: float) -> None:
    columns = figure_frame(name)
    W = turned(columns, 5)
    W = W + noise * torch.randn(W.shape, dtype=torch.float64, generator=generator)
    W = W[:, torch.randperm(W.shape[1], generator=generator)] * torch.linspace(0.8, 1.2, W.shape[1])
    assert figure_name(W) == name
    assert [cluster.name for cluster in feature_clusters(W)] == [name]
    assert feature_clusters(columns)[0].rank == len(columns)


def test_what_is_no_figure_is_other() -> None:
    assert figure_name(regular_polygon(6)) == "other"
    assert figure_name(regular_polygon(4)) == "other", "a square is two digons, and no cluster"
    assert figure_name(random_directions(3, 8, torch.Generator().manual_seed(0))) == "other"


def test_clusters_are_told_apart() -> None:
    W = beside(
        figure_frame("triangle"),
        figure_frame("digon"),
        figure_frame("single"),
        torch.zeros(1, 1),
        figure_frame("pentagon"),
    )
    for seen in (W, turned(W, len(W))):
        found = feature_clusters(seen)
        assert [(c.name, c.rank, len(c.features)) for c in found] == [
            ("triangle", 2, 3), ("digon", 1, 2), ("single", 1, 1), ("pentagon", 2, 5),
        ]  # fmt: skip
        assert found[1].features == (3, 4)
        assert figure_composition(seen) == "1 digon + 1 pentagon + 1 single + 1 triangle"
    assert figure_composition(turned(beside(simplex(1), simplex(1)), 2)) == "2 digon", "a square"
    assert figure_composition(regular_polygon(6)) == "1 other 6 in 2"
    assert figure_composition(torch.zeros(2, 3)) == "nothing"
    assert feature_clusters(0.4 * figure_frame("digon")) == []


def test_bad_geometry_is_refused() -> None:
    with pytest.raises(ValueError, match="figure 'cube': expected one of single, digon"):
        figure_frame("cube")
    with pytest.raises(ValueError, match=r"W of shape \(1, 2, 3\): expected \(m, n\), one map"):
        feature_clusters(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="threshold=0: expected one between 0 and 1"):
        feature_clusters(torch.zeros(2, 3), 0)


def test_edges_of_polytopes() -> None:
    assert len(cluster_edges(simplex(3))) == 6
    assert len(cluster_edges(square_antiprism())) == 16
    cube = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=torch.float64).T
    assert len(cluster_edges(cube)) == 12, "no diagonals of the squares"
    pentagon = turned(figure_frame("pentagon"), 3)
    assert len(cluster_edges(pentagon)) == 5
    assert np.allclose(
        [float(cosines(pentagon[:, list(pair)])) for pair in cluster_edges(pentagon)], math.cos(0.4 * math.pi)
    )
    assert cluster_edges(turned(figure_frame("digon"), 3)) == [(0, 1)]


def test_directions_of_zeros_stay_zeros() -> None:
    assert torch.equal(feature_directions(torch.zeros(2, 3)), torch.zeros(2, 3))
