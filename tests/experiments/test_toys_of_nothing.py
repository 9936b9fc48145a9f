"""The settings of toy models mean one thing, and what is no number gives no loss and no trained model."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from descent.experiments.toy_models import (
    ToyModels,
    ToyTraining,
    fresh_losses,
    train_toy_models,
    train_toy_models_in_parts,
)
from descent.experiments.toy_theory import (
    best_bias,
    best_length_and_bias,
    bias_noise_ratio,
    candidate_losses,
    ignored_loss,
    learnt_loss,
    sharing_boundary,
)
from descent.training import DivergenceError

NAN, INF = math.nan, math.inf
FOUR = [1.0, 0.7, 0.5, 0.3]


@pytest.mark.parametrize("name", ["importance", "density"])
@pytest.mark.parametrize("values", [FOUR, tuple(FOUR), torch.tensor(FOUR), np.array(FOUR)])
def test_as_many_values_as_models_and_features_are_ambiguous(name: str, values: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"{name} of shape \(4,\): give \(4, 1\), one for each model, or \(1, 4\), for e"
    ):
        ToyModels(4, 2, [0, 1, 2, 3], **{name: values})


@pytest.mark.parametrize("name", ["importance", "density"])
def test_explicit_shapes_mean_what_they_say(name: str) -> None:
    column, row = torch.tensor(FOUR)[:, None], torch.tensor(FOUR)[None]
    seeds = [0, 1, 2, 3]
    assert getattr(ToyModels(4, 2, seeds, **{name: column}), name).tolist() == column.expand(4, 4).tolist()
    assert getattr(ToyModels(4, 2, seeds, **{name: row}), name).tolist() == row.expand(4, 4).tolist()
    assert getattr(ToyModels(3, 2, seeds, **{name: FOUR}), name).tolist() == column.expand(4, 3).tolist()
    assert getattr(ToyModels(1, 1, [5], **{name: [0.5]}), name).tolist() == [[0.5]]
    with pytest.raises(ValueError, match=rf"{name} of shape \(4, 1\): expected a number, 2 of them, or \(2 or 1, 4\)"):
        ToyModels(4, 2, [0, 1], **{name: FOUR})


def test_noise_is_one_for_each_model_whatever_the_features() -> None:
    assert ToyModels(4, 2, [0, 1, 2, 3], noise=[0.1, 0.2, 0.3, 0.4]).tensors()[2][:, 0].tolist() == [
        pytest.approx(value) for value in (0.1, 0.2, 0.3, 0.4)
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"density": NAN}, "density=nan to nan: expected above 0 and at most 1"),
        ({"importance": NAN}, "importance=nan, noise=0: expected importances above 0"),
        ({"importance": [1.0, INF]}, "expected importances above 0 and noise of at least 0, none infinite"),
        ({"noise": NAN}, "noise=nan: expected importances above 0 and noise of at least 0"),
        ({"noise": INF}, "none infinite"),
        ({"seeds": [0, -1]}, "seed=-1: expected at least 0, a whole number"),
        ({"seeds": [0.5, 1.0]}, r"seed=0\.5: expected at least 0, a whole number"),
    ],
)
def test_settings_that_are_no_numbers_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ToyModels(**{"n": 3, "m": 2, "seeds": [0, 1]} | changes)


@pytest.mark.parametrize(
    "changes", [{"learning_rate": NAN}, {"learning_rate": INF}, {"weight_decay": NAN}, {"weight_decay": INF}]
)
def test_rates_that_are_no_numbers_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a positive learning rate and a weight decay of at least 0"):
        ToyTraining(**changes)


@pytest.mark.parametrize("chosen", [[True, False, True], np.array([True, False, True]), [0.0, 2.0]])
def test_a_mask_is_no_choice_of_models(chosen: Any) -> None:
    with pytest.raises(ValueError, match=r"models \[.*\]: expected their numbers, 0 to 2"):
        ToyModels(4, 2, [0, 1, 2]).part(chosen)


@pytest.mark.parametrize("chosen", [[2, 0], np.array([2, 0]), torch.tensor([2, 0]), range(2, -1, -2)])
def test_models_are_chosen_by_numbers_of_any_type(chosen: Any) -> None:
    part = ToyModels(4, 2, [5, 6, 7], [0.1, 0.2, 0.3]).part(chosen)
    assert list(part.seeds) == [7, 5]
    assert part.tensors()[0][:, 0].tolist() == [pytest.approx(0.3), pytest.approx(0.1)]


@pytest.mark.parametrize("train", [train_toy_models, lambda toys, recipe: train_toy_models_in_parts(toys, recipe, 2)])
def test_models_that_diverge_are_named_by_their_seeds(train: Any) -> None:
    recipe = ToyTraining(steps=30, batch=8, learning_rate=1e30)
    with pytest.raises(
        DivergenceError, match=r"models of seeds \[\d.*\]: weights are not finite; try a smaller learning"
    ):
        train(ToyModels(4, 2, [3, 8]), recipe)


@pytest.mark.parametrize(
    ("W", "b", "how", "sentence"),
    [
        (torch.zeros(2, 2, 4), torch.zeros(2, 4), {}, r"W \(2, 2, 4\), b \(2, 4\): expected \(3, 2, 4\), \(3, 4\)"),
        (torch.zeros(3, 4, 2), torch.zeros(3, 4), {}, r"W \(3, 4, 2\)"),
        (torch.zeros(3, 2, 4), torch.zeros(4), {}, r"b \(4,\)"),
        (torch.zeros(3, 2, 4), torch.zeros(3, 4), {"batches": 0}, "batches=0: expected at least 1"),
        (torch.zeros(3, 2, 4), torch.zeros(3, 4), {"batch": 0}, "batch=0: expected at least 1"),
    ],
)
def test_losses_are_of_the_weights_of_these_models(W: Any, b: Any, how: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fresh_losses(ToyModels(4, 2, [0, 1, 2], [0.1, 0.5, 1.0]), W, b, **how)


def test_the_loss_of_weights_that_are_no_numbers_is_none() -> None:
    toys, W = ToyModels(4, 2, [0, 1]), torch.zeros(2, 2, 4)
    W[1, 0, 0] = NAN
    losses = fresh_losses(toys, W, torch.zeros(2, 4), 2, 64)
    assert losses.isnan().tolist() == [False, True]


# --- the theory


@pytest.mark.parametrize("use", [learnt_loss, best_bias, best_length_and_bias])
@pytest.mark.parametrize(
    ("density", "noise", "sentence"),
    [
        (NAN, 0.0, "density=nan: expected one above 0 and at most 1"),
        (0.0, 0.0, "density=0"),
        (1.5, 0.0, r"density=1\.5"),
        (0.5, NAN, "noise=nan: expected a standard deviation of at least 0"),
        (0.5, INF, "noise=inf"),
        (0.5, -0.1, r"noise=-0\.1"),
    ],
)
def test_settings_of_the_theory_are_numbers_in_range(use: Any, density: float, noise: float, sentence: str) -> None:
    given = ("pair", 1.0, 0.0, density, noise) if use is learnt_loss else ("pair", density, noise)
    with pytest.raises(ValueError, match=sentence):
        use(*given)


def test_a_loss_of_no_number_is_none() -> None:
    for kind in ("single", "pair"):
        for noise in (0.0, 0.1):
            assert math.isnan(learnt_loss(kind, NAN, 0.0, 0.5, noise))
            assert math.isnan(learnt_loss(kind, 1.0, NAN, 0.5, noise))


@pytest.mark.parametrize("kind", ["single", "pair"])
def test_a_squared_length_is_not_negative(kind: str) -> None:
    with pytest.raises(ValueError, match="scale=-1: expected a squared length, at least 0"):
        learnt_loss(kind, -1, 0.0, 0.5)


@pytest.mark.parametrize("noise", [0.5, 5.0, 50.0])
@pytest.mark.parametrize("kind", ["single", "pair"])
def test_the_best_length_is_no_worse_than_none(kind: str, noise: float) -> None:
    best = best_length_and_bias(kind, 0.02, noise)
    assert best.loss <= ignored_loss(0.02)
    assert best.loss == pytest.approx(learnt_loss(kind, best.scale, best.bias, 0.02, noise), rel=1e-12)


@pytest.mark.parametrize(
    ("density", "sentence"),
    [
        (np.ma.masked_greater([0.1, 0.2], 0.15), "density is a masked array"),
        (0.1 + 0j, "density is of type complex128"),
        ("0.1", "density is of type <U3"),
        (True, "density is of type bool"),
        ([[0.1, 0.2]], r"density of shape \(1, 2\): expected \(k,\)"),
    ],
)
def test_a_boundary_is_of_a_row_of_densities(density: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sharing_boundary(density)


@pytest.mark.parametrize(("kind", "noise"), [("single", 0.5), ("single", 2.0), ("pair", 0.4), ("pair", 5.0)])
def test_a_best_bias_at_the_end_of_the_search_is_none(kind: str, noise: float) -> None:
    biases = np.linspace(-3, 1, 81)
    losses = [learnt_loss(kind, 1.0, bias, 0.05, noise) for bias in biases]
    assert biases[int(np.argmin(losses))] < -0.99, "on a grid"
    with pytest.raises(ValueError, match=rf"noise={noise}: the best bias at length one lies below -1"):
        best_bias(kind, 0.05, noise)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("kind", ["single", "pair"])
def test_a_best_bias_within_the_search_is_that_of_a_grid(kind: str, noise: float) -> None:
    biases = np.linspace(-1, 1, 401)
    losses = [learnt_loss(kind, 1.0, bias, 0.1, noise) for bias in biases]
    assert best_bias(kind, 0.1, noise).bias == pytest.approx(biases[int(np.argmin(losses))], abs=0.006)


@pytest.mark.parametrize("importance", [NAN, INF, 0.0, -1.0])
def test_importances_are_positive_numbers(importance: float) -> None:
    with pytest.raises(ValueError, match=f"importance={importance}: expected a positive number"):
        candidate_losses(0.5, importance)


@pytest.mark.parametrize("use", [ignored_loss, bias_noise_ratio, sharing_boundary, lambda d: candidate_losses(d, 1.0)])
@pytest.mark.parametrize("density", [NAN, 0.0, -0.5, 1.01])
def test_densities_are_shares(use: Any, density: float) -> None:
    with pytest.raises(ValueError, match=f"density={density}: expected one above 0 and at most 1"):
        use(density)
