"""The expected losses of the smallest toy models, against draws and against what is known on paper."""

import math

import numpy as np
import pytest
import torch

from descent.experiments.toy_models import ToyModels, fresh_losses
from descent.experiments.toy_theory import (
    best_bias,
    best_length_and_bias,
    bias_noise_ratio,
    candidate_losses,
    expected_losses,
    ignored_loss,
    learnt_loss,
    sharing_boundary,
)


def sampled(w: list[float], b: list[float], density: float, importance: float, noise: float = 0.0) -> float:
    models = ToyModels(2, 1, [0], density, torch.tensor([[1.0, importance]]), noise)
    losses = fresh_losses(models, torch.tensor([[w]]).float(), torch.tensor([b]).float(), batches=40, batch=1 << 15)
    return 2 * float(losses)  # the sum over the two features


@pytest.mark.parametrize(("density", "importance"), [(0.05, 0.3), (0.3, 2.0), (0.9, 1.0)])
def test_theory_of_two_features_agrees_with_draws(density: float, importance: float) -> None:
    losses = candidate_losses(density, importance)
    bias = best_bias("pair", density).bias
    assert losses["first"] == pytest.approx(sampled([1, 0], [0, density / 2], density, importance), rel=0.01)
    assert losses["second"] == pytest.approx(sampled([0, 1], [density / 2, 0], density, importance), rel=0.01)
    assert losses["both"] == pytest.approx(
        sampled([1, -1], [bias, bias], density, importance), rel=0.1 if density < 0.1 else 0.02
    )


@pytest.mark.parametrize("kind", ["single", "pair"])
def test_theory_with_noise_agrees_with_draws(kind: str) -> None:
    density, noise, scale, bias = 0.2, 0.1, 0.9, -0.08
    root = math.sqrt(scale)
    if kind == "pair":
        found = sampled([root, -root], [bias, bias], density, 1.0, noise) / 2
    else:
        found = sampled([root, 0], [bias, 0], density, 1e-9, noise)
    assert learnt_loss(kind, scale, bias, density, noise) == pytest.approx(found, rel=0.01)


def test_the_boundary_is_where_the_candidates_are_equal() -> None:
    for d, r in zip([0.01, 0.1, 0.4], sharing_boundary([0.01, 0.1, 0.4]), strict=True):
        losses = candidate_losses(d, float(r))
        assert losses["both"] == pytest.approx(losses["first"], rel=1e-6)
        assert candidate_losses(d, r * 1.1)["both"] < candidate_losses(d, r * 1.1)["first"]
        assert r == pytest.approx(2 * d / (4 - 5 * d), rel=0.1)
        assert r <= 2 * d / (4 - 5 * d) + 1e-9, "the best bias is no worse than none"
    assert np.isnan(sharing_boundary([0.9])).all()
    assert ignored_loss(1.0) == pytest.approx(1 / 12)


def test_without_noise_a_learnt_feature_has_bias_zero_and_length_one() -> None:
    point = best_length_and_bias("single", 0.1)
    assert point.scale == pytest.approx(1, abs=1e-3)
    assert point.bias == pytest.approx(0, abs=1e-3)
    assert learnt_loss("single", 1, 0, 0.1) == 0
    assert abs(best_bias("pair", 0.02).bias) < 0.01


def test_the_bias_follows_small_noise() -> None:
    free = bias_noise_ratio(0.01)
    fixed = bias_noise_ratio(0.04 / 1.03)  # a quarter of this density, over that of absence, is 0.01 / 0.99
    for kind, widened in (("single", 1.0), ("pair", math.sqrt(2))):
        for noise in (0.01, 0.03):
            assert -best_bias(kind, 0.01, noise).bias / noise == pytest.approx(fixed * widened, rel=0.1)
        point = best_length_and_bias(kind, 0.01, 0.01)
        assert -point.bias / 0.01 == pytest.approx(free * widened, rel=0.1)
        assert point.scale - 1 == pytest.approx(1.5 * free * widened * 0.01, rel=0.2)
    assert best_bias("pair", 0.1).bias == pytest.approx(0.01 / 6 / 0.9, rel=0.1), "d^2 / 6 (1 - d), above zero"
    assert bias_noise_ratio(0.01) > bias_noise_ratio(0.1) > bias_noise_ratio(0.9) > 0
    assert best_length_and_bias("single", 1.0, 0.2).scale < 1, "dense: it shrinks, as ridge regression does"
    assert best_length_and_bias("single", 0.1, 0.2).loss < best_bias("single", 0.1, 0.2).loss


def test_bad_theory_is_refused() -> None:
    with pytest.raises(ValueError, match="density=0: expected one above 0"):
        ignored_loss(0)
    with pytest.raises(ValueError, match="noise=-1: expected a standard deviation"):
        learnt_loss("pair", 1, 0, 0.1, -1)
    with pytest.raises(ValueError, match="kind 'triple': expected one of single, pair"):
        learnt_loss("triple", 1, 0, 0.1)
    with pytest.raises(ValueError, match="importance=0: expected a positive number"):
        candidate_losses(0.1, 0)


def test_expected_losses_of_two_digons_are_those_on_paper() -> None:
    d, rare = 0.05, torch.tensor([0.05, 0.02, 0.01])
    density, b, W = torch.full((3, 5), d), torch.zeros(3, 5), torch.zeros(3, 2, 5)
    density[:, 0], b[:, 0] = rare, rare / 2
    W[:, 0, 1:3] = W[:, 1, 3:] = torch.tensor([1.0, -1.0])
    on_paper = (4 * d**2 / 6 + rare / 3 - rare**2 / 4).double() / 5
    models = ToyModels(5, 2, [0, 1, 2], density)
    for seed in (0, 1):
        found = torch.from_numpy(expected_losses(models, W, b, seed=seed))
        torch.testing.assert_close(found, on_paper, rtol=1e-3, atol=0)


def test_expected_losses_are_those_of_many_inputs_and_do_not_know_the_order_of_features() -> None:
    draw = torch.Generator().manual_seed(0)
    importance = torch.tensor([1.0, 2.0, 0.5, 1.0])
    models = ToyModels(4, 2, [3, 4], [[0.1, 0.3, 0.2, 0.5], [0.6, 0.05, 0.3, 0.3]], importance=importance[None])
    W, b = torch.randn(2, 2, 4, generator=draw), 0.1 * torch.randn(2, 4, generator=draw)
    found = expected_losses(models, W, b)
    drawn = fresh_losses(models, W, b, 20, 1 << 14)
    torch.testing.assert_close(torch.from_numpy(found), drawn, rtol=0.02, atol=0)
    order = [2, 0, 3, 1]
    density, weights, _ = models.tensors()
    other = ToyModels(4, 2, [0, 0], density[:, order], importance=weights[:, order])
    assert expected_losses(other, W[..., order], b[:, order]) == pytest.approx(found, rel=2e-3)


@pytest.mark.parametrize(
    ("models", "points", "message"),
    [
        (ToyModels(11, 2, [0]), 256, "models of 11 features"),
        (ToyModels(4, 2, [0], kind="linear"), 256, "kind 'linear'"),
        (ToyModels(4, 2, [0], noise=0.1), 256, "noise up to 0.1"),
        (ToyModels(4, 2, [0]), 100, "points=100: expected a power of two"),
        (ToyModels(3, 2, [0]), 256, r"W \(1, 2, 4\)"),
    ],
)
def test_expected_losses_refuse_what_they_do_not_cover(models: ToyModels, points: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_losses(models, torch.zeros(1, 2, 4), torch.zeros(1, 4), points)
