"""What is no map gives no measure of features: NaN stays NaN or is refused; the scale of a map does not matter."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from descent.features import (
    cluster_edges,
    dimensionality,
    dimensions_per_feature,
    feature_clusters,
    feature_directions,
    feature_norms,
    figure_composition,
    figure_frame,
    interference,
    is_learnt,
    random_directions,
)

NAN, INF = math.nan, math.inf
PAIR_AND_SINGLE = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
MEASURES = [feature_norms, feature_directions, dimensions_per_feature, dimensionality, interference]


def with_one(value: float) -> Tensor:
    W = torch.stack([PAIR_AND_SINGLE, PAIR_AND_SINGLE])
    W[0, 1, 2] = value
    return W


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("measure", MEASURES)
def test_a_number_that_is_not_finite_makes_its_map_nan_and_no_other(
    measure: Callable[[Tensor], Tensor], value: float
) -> None:
    found = measure(with_one(value))
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1], measure(PAIR_AND_SINGLE))


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("use", [is_learnt, feature_clusters, figure_composition])
def test_what_is_learnt_is_not_said_of_no_number(use: Callable[[Tensor], Any], value: float) -> None:
    with pytest.raises(ValueError, match="W has a number that is not finite, so that nobody knows what is learnt"):
        use(with_one(value)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-120, -80, -30, -20, -1, 0, 1, 30, 60, 120])
def test_shares_do_not_change_with_the_scale(exponent: int, dtype: torch.dtype) -> None:
    W = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    c = 2.0**exponent
    assert torch.equal(dimensionality(c * W), dimensionality(W))
    assert torch.equal(feature_directions(c * W), feature_directions(W))
    assert torch.equal(feature_norms(c * W), c * feature_norms(W))
    assert torch.equal(dimensions_per_feature(c * W), (dimensions_per_feature(W).double() / c**2).to(dtype))
    assert torch.equal(interference(c * W), (interference(W).double() * c**2).to(dtype))


def test_the_shares_of_double_maps_of_extreme_scale() -> None:
    for c in (1e-300, 1e-170, 1e160, 1e300):
        torch.testing.assert_close(dimensionality(c * PAIR_AND_SINGLE.double()).tolist(), [0.5, 0.5, 1.0])


@pytest.mark.parametrize("length", [1e-3, 1e-6, 1e-7, 1e-12])
def test_a_short_column_has_a_share_of_at_most_one(length: float) -> None:
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0]]) * torch.tensor([1.0, length])
    assert dimensionality(W).tolist() == [1.0, 1.0]
    assert interference(W).tolist() == [0.0, 0.0]
    beside = torch.tensor([[1.0, 0.6], [0.0, 0.8]]) * torch.tensor([1.0, length])
    shares = length**2 / (length**2 + 0.36)  # of the short one, which has no say in the other
    assert dimensionality(beside)[1].item() == pytest.approx(shares, rel=1e-5)
    assert interference(beside)[1].item() == pytest.approx(0.36, rel=1e-5)
    torch.testing.assert_close(feature_directions(beside), torch.tensor([[1.0, 0.6], [0.0, 0.8]]))


def test_a_column_of_zeros_has_no_share_and_no_direction() -> None:
    W = torch.cat([PAIR_AND_SINGLE, torch.zeros(2, 1)], 1)
    assert dimensionality(W).tolist() == [0.5, 0.5, 1.0, 0.0]
    assert interference(W).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert feature_directions(W)[:, 3].tolist() == [0, 0]
    nothing = torch.zeros(2, 3)
    assert dimensionality(nothing).tolist() == [0, 0, 0]
    assert dimensions_per_feature(nothing) == INF
    assert figure_composition(nothing) == "nothing"


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("measure", MEASURES)
def test_integers_and_short_floats_are_widened(measure: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    W = torch.tensor([[300, -300, 0], [0, 0, 7]])  # squares out of float16
    torch.testing.assert_close(measure(W.to(dtype)), measure(W.double()))
    assert is_learnt(W.to(dtype)).all()


@pytest.mark.parametrize("measure", [*MEASURES, is_learnt])
@pytest.mark.parametrize(
    ("W", "said"),
    [(torch.ones(3), r"\(3,\)"), (torch.ones(0, 3), r"\(0, 3\)"), (torch.ones(3, 0), r"\(3, 0\)"),
     (torch.ones(2, 2) + 1j, r"\(2, 2\)"), (torch.tensor(1.0), r"\(\)")],
)  # fmt: skip
def test_what_is_no_map_is_refused(measure: Callable[[Tensor], Tensor], W: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=rf"W of shape {said}: expected \(\.\.\., m, n\), the features as columns of"):
        measure(W)


@pytest.mark.parametrize("threshold", [0.0, 1.0, NAN, -0.3, 2.0])
def test_thresholds_are_cosines(threshold: float) -> None:
    with pytest.raises(ValueError, match=f"threshold={threshold}: expected one between 0 and 1"):
        feature_clusters(PAIR_AND_SINGLE, threshold)


@pytest.mark.parametrize(
    "W", [torch.ones(2, 5), torch.ones(4, 5), torch.ones(3), torch.tensor([[1.0], [NAN], [0.0]]), torch.ones(2, 3, 4)]
)
def test_edges_are_of_points_in_space(W: Tensor) -> None:
    with pytest.raises(ValueError, match=r"W of shape \(.*\): expected \(3, k\), finite numbers"):
        cluster_edges(W)


@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0), (-1, 2)])
def test_directions_of_nothing_are_refused(m: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{'n' if m > 0 else 'm'}={min(m, n)}: expected at least 1"):
        random_directions(m, n, torch.Generator())


def test_an_unknown_figure_is_named() -> None:
    with pytest.raises(ValueError, match="figure 'hexagon': expected one of single, digon, triangle"):
        figure_frame("hexagon")
