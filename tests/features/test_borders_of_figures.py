"""Borders of the geometry of features that exact numbers can meet."""

import pytest
import torch

from descent.features.geometry import cluster_edges, feature_clusters, interference


@pytest.mark.parametrize("sign", [1, -1])
def test_a_cosine_at_the_threshold_does_not_join(sign: int) -> None:
    """Two directions in four dimensions whose cosine is 1/2, without rounding."""
    W = torch.tensor([[1.0, 0.5], [0.0, 0.5], [0.0, 0.5], [0.0, 0.5]]) * torch.tensor([1.0, sign])
    assert len(feature_clusters(W, threshold=0.5)) == 2
    assert len(feature_clusters(W, threshold=0.4999)) == 1


def test_three_columns_have_three_edges_and_four_in_a_plane_four() -> None:
    triangle = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert cluster_edges(triangle) == [(0, 1), (0, 2), (1, 2)]
    square = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, -1.0, -1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    assert cluster_edges(square) == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_each_of_several_maps_has_its_own_interference() -> None:
    maps = torch.tensor([[[1.0, 0.5, 0.0], [0.0, 0.0, 2.0]], [[1.0, -1.0, 1.0], [0.0, 0.0, 0.0]]])
    assert interference(maps).tolist() == [[0.25, 1.0, 0.0], [2.0, 2.0, 2.0]]
