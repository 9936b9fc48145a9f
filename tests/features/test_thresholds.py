"""Each threshold of the geometry of features has a case close to either side."""

import math

import pytest
import torch

from descent.features.geometry import (
    cluster_edges,
    dimensionality,
    feature_clusters,
    figure_frame,
    figure_name,
    interference,
    is_learnt,
    random_directions,
    simplex,
)


def fan(height: float) -> torch.Tensor:
    """Four directions near a plane in three dimensions, of which two rise by `height` and two sink."""
    angle = math.pi / 4 * torch.arange(4, dtype=torch.float64)
    rise = torch.tensor([height, -height, height, -height], dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin(), rise])


@pytest.mark.parametrize(("height", "rank"), [(0.3, 3), (0.08, 3), (0.03, 2), (0.0, 2)])
def test_a_twentieth_of_the_largest_singular_value_counts_as_a_dimension(height: float, rank: int) -> None:
    W = fan(height)
    values = torch.linalg.svdvals(W / W.norm(dim=0))
    assert bool(values[2] / values[0] > 0.05) == (rank == 3)
    assert values[2] / values[0] < 0.5, "a threshold of a half would not tell these apart"
    (cluster,) = feature_clusters(W)
    assert cluster.rank == rank


@pytest.mark.parametrize(("norm", "learnt"), [(0.49, False), (0.5, False), (0.51, True), (1.0, True)])
def test_a_feature_is_learnt_above_a_half(norm: float, learnt: bool) -> None:
    assert is_learnt(torch.tensor([[norm], [0.0]])).tolist() == [learnt]


@pytest.mark.parametrize(("cosine", "count"), [(0.19, 2), (0.21, 1), (-0.19, 2), (-0.21, 1)])
def test_features_are_joined_above_a_cosine_of_a_fifth(cosine: float, count: int) -> None:
    W = torch.tensor([[1.0, cosine], [0.0, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    assert len(feature_clusters(W)) == count
    assert len(feature_clusters(W, threshold=abs(cosine) + 0.05)) == 2


@pytest.mark.parametrize(("off", "name"), [(0.0, "triangle"), (0.14, "triangle"), (0.150003, "other"), (0.16, "other")])
def test_a_figure_keeps_its_name_within_a_cosine_of_015(off: float, name: str) -> None:
    """Three directions in a plane of which two are turned together until their cosine is off by so much."""
    half = math.acos(-0.5 + off) / 2
    angles = torch.tensor([math.pi, half, -half], dtype=torch.float64)
    W = torch.stack([angles.cos(), angles.sin()])
    assert abs(float(W[:, 1] @ W[:, 2]) + 0.5 - off) < 1e-12
    assert abs(float(W[:, 0] @ W[:, 1]) + 0.5) < 0.15
    assert figure_name(W) == name


@pytest.mark.parametrize(("height", "edges"), [(0.03, 4), (0.04, 6)])
def test_columns_in_a_plane_are_joined_around_their_polygon(height: float, edges: int) -> None:
    """A square whose corners rise and sink by turns: its height over its side, 1.41 times this, is flat below 1/20."""
    angle = math.pi / 2 * torch.arange(4, dtype=torch.float64)
    rise = height * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    assert len(cluster_edges(torch.stack([angle.cos(), angle.sin(), rise]))) == edges


def test_edges_do_not_depend_on_where_the_columns_stand() -> None:
    """A square far from the origin, and one that is long and low: a tenth of its breadth, a hundredth of its length."""
    square = torch.tensor([[1.0, 1, -1, -1], [1, -1, -1, 1], [0, 0, 0, 0]], dtype=torch.float64)
    ring = [(0, 1), (0, 3), (1, 2), (2, 3)]
    for away in ([0.0, 0.0, 0.0], [3.0, 2.0, 5.0], [0.0, 0.0, -40.0], [9.0, -9.0, 0.3]):
        assert cluster_edges(square + torch.tensor(away, dtype=torch.float64)[:, None]) == ring
    rise = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    long = square * torch.tensor([[10.0], [1.0], [0.0]], dtype=torch.float64)
    long[2] = 0.1 * rise
    assert cluster_edges(long) == ring
    assert cluster_edges(square[:, :3]) == [(0, 1), (0, 2), (1, 2)]
    assert cluster_edges(square[:, :2]) == [(0, 1)]


def test_interference_is_what_others_move_along_a_features_direction() -> None:
    W = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 2.0]])
    assert interference(W).tolist() == [0.25, 1.0, 0.0]
    turned = torch.tensor([[1.0, 0.6], [0.0, 0.8]]) * torch.tensor([1.0, 3.0])
    torch.testing.assert_close(interference(turned), torch.tensor([3.24, 0.36]))
    torch.testing.assert_close(dimensionality(turned), torch.tensor([1 / 4.24, 9 / 9.36]))


def test_a_column_of_zeros_has_a_gradient() -> None:
    W = torch.tensor([[1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    dimensionality(W).sum().backward()
    assert W.grad is not None
    assert W.grad.isfinite().all()


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.5, -0.5])
def test_a_cosine_is_between_0_and_1(threshold: float) -> None:
    with pytest.raises(ValueError, match=f"threshold={threshold}: expected one between 0 and 1"):
        feature_clusters(torch.eye(2), threshold)


def test_one_direction_in_one_dimension_is_a_sign() -> None:
    assert random_directions(1, 1, torch.Generator().manual_seed(0)).abs().tolist() == [[1.0]]


def test_random_directions_are_the_generators() -> None:
    first, again, other = (random_directions(3, 5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(5, dtype=torch.float64))


def test_the_antiprisms_squares_stand_where_every_share_is_alike() -> None:
    W = figure_frame("square antiprism")
    torch.testing.assert_close(W @ W.T, 8 / 3 * torch.eye(3, dtype=torch.float64), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(W.norm(dim=0), torch.ones(8, dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e200, 1e-200])
def test_edges_of_flat_columns_are_those_of_their_hull_at_any_scale(scale: float) -> None:
    square = torch.tensor([[1.0, -1, -1, 1, 0], [1, 1, -1, -1, 0], [0] * 5], dtype=torch.float64)
    assert cluster_edges(scale * square) == [(0, 1), (0, 3), (1, 2), (2, 3)], "its centre is no corner"
    line = torch.tensor([[1.0, 3, 0, 2], [0] * 4, [0] * 4], dtype=torch.float64)
    assert cluster_edges(scale * line) == [(1, 2)]
    assert cluster_edges(scale * torch.ones(3, 5, dtype=torch.float64)) == []
    assert len(cluster_edges(scale * simplex(3))) == 6
