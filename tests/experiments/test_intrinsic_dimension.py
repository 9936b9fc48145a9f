"""Training in random subspaces: projections on paper, a whole subspace against training all weights."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from descent.data import load_dataset
from descent.experiments import intrinsic_dimension
from descent.experiments.intrinsic_dimension import (
    SubspaceTraining,
    dimension_at_share,
    make_accuracies,
    random_projection,
    read_accuracies,
    recompute_accuracies,
    recorded_trainings,
    subspace_accuracies,
)
from descent.models import mlp
from descent.training import DivergenceError, MiniBatches

SMALL = SubspaceTraining("digits", (6,), epochs=2, batch_size=50, learning_rate=0.01)
WEIGHTS = 64 * 6 + 6 + 60 + 10


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_columns_have_length_one_and_are_almost_orthogonal(kind: str) -> None:
    P = random_projection(4000, 30, kind, seed=1)
    whole = P if kind == "dense" else P.toarray()
    np.testing.assert_allclose(np.linalg.norm(whole, axis=0), 1, rtol=1e-5)
    inner = whole.T @ whole - np.eye(30)
    assert np.abs(inner).max() < 0.3
    if kind == "sparse":
        share = (whole != 0).mean() * math.sqrt(4000)
        assert share == pytest.approx(1, abs=0.15)
        assert np.sign(whole).sum() == pytest.approx(0, abs=5 * math.sqrt((whole != 0).sum()))
        assert len(set(np.abs(whole[:, 0][whole[:, 0] != 0]))) == 1


def test_training_all_weights_is_that_of_torch() -> None:
    train, test = load_dataset("digits"), load_dataset("digits", "test")
    model = mlp((1, 8, 8), [6], 10, 0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    batches = MiniBatches((train.inputs, train.targets), 50, 0)
    expected = []
    for step in range(2 * batches.per_epoch):
        optimizer.zero_grad()
        inputs, targets = batches(step)
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        if (step + 1) % batches.per_epoch == 0:
            expected.append((model(test.inputs).argmax(1) == test.targets).double().mean().item())
    np.testing.assert_allclose(subspace_accuracies(SMALL), expected, atol=0.006)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_more_dimensions_learn_more(kind: str) -> None:
    found = [subspace_accuracies(replace(SMALL, dimension=d, projection=kind, epochs=15))[-1] for d in (2, 300)]
    assert found[0] < 0.5
    assert found[1] > 0.8


def test_weights_move_in_the_subspace_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With P of one column all weights of all steps lie on a line, which the loss sees."""
    column = np.zeros((WEIGHTS, 1), np.float32)
    column[-1] = 1  # the last bias
    monkeypatch.setattr(intrinsic_dimension, "random_projection", lambda *_: column)
    seen = []
    original = intrinsic_dimension.functional_call

    def noted(model, weights, inputs):
        seen.append(torch.cat([each.detach().flatten() for each in weights.values()]))
        return original(model, weights, inputs)

    monkeypatch.setattr(intrinsic_dimension, "functional_call", noted)
    subspace_accuracies(replace(SMALL, dimension=1, projection="dense", epochs=1))
    assert all(torch.equal(each[:-1], seen[0][:-1]) for each in seen)
    assert seen[-1][-1] != seen[0][-1]


def test_the_dimension_lies_between_those_that_were_tried() -> None:
    d = [100, 200, 400, 800]
    assert dimension_at_share(d, np.array([0.2, 0.8, 0.95, 0.97]), 1.0) == pytest.approx(200 * 2 ** (2 / 3))
    assert dimension_at_share(d, np.array([0.2, 0.45, 0.45, 0.5]), 0.5) == pytest.approx(200)
    assert math.isnan(dimension_at_share(d, np.array([0.2, 0.3, 0.4, 0.5]), 1.0))
    assert math.isnan(dimension_at_share(d, np.array([0.95, 0.96, 0.97, 0.98]), 1.0))
    assert math.isnan(dimension_at_share(d, np.array([0.2, np.nan, 0.97, 0.98]), 1.0))
    with pytest.raises(ValueError, match="the dimensions rising"):
        dimension_at_share([200, 100], np.array([0.1, 0.2]), 1.0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dimension": -1}, "dimension=-1"),
        ({"projection": "fastfood"}, "projection='fastfood': expected one of dense, sparse"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"epochs": 0}, "epochs=0"),
        ({"hidden": 6}, "hidden=6: expected widths"),
        ({"hidden": (0,)}, "hidden=0"),
    ],
)
def test_a_training_that_cannot_be_is_refused(settings, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SubspaceTraining(**settings)


def test_more_dimensions_than_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=f"dimension={WEIGHTS + 1}.*expected 1 to {WEIGHTS}"):
        subspace_accuracies(replace(SMALL, dimension=WEIGHTS + 1))


def test_the_record_is_made_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [replace(SMALL, dimension=d, seed=1) for d in (0, 40)]
    monkeypatch.setattr(intrinsic_dimension, "recorded_trainings", lambda: few)
    with pytest.raises(FileNotFoundError, match="make records CHAPTER=gradient_controls"):
        read_accuracies(tmp_path)
    make_accuracies(tmp_path, "")
    record = read_accuracies(tmp_path)
    assert record.values["accuracy"].shape == (2, 2)
    assert recompute_accuracies(record, seed=0) < 1e-6
    before = (tmp_path / "data/records/gradient_controls/accuracies.npz").read_bytes()
    make_accuracies(tmp_path, "")
    assert (tmp_path / "data/records/gradient_controls/accuracies.npz").read_bytes() == before
    record.values["accuracy"][:] += 0.01
    assert recompute_accuracies(record, seed=0) > 1e-3
    monkeypatch.setattr(intrinsic_dimension, "recorded_trainings", lambda: [replace(few[0], seed=2)])
    with pytest.raises(ValueError, match="make records CHAPTER=gradient_controls"):
        read_accuracies(tmp_path)


def test_the_recorded_trainings_are_the_sources_network_for_long() -> None:
    trainings = recorded_trainings()
    assert {each.hidden for each in trainings} == {(200, 200)}
    assert {each.epochs for each in trainings} == {100}
    assert len({each.seed for each in trainings}) == 5
    assert {each.dimension for each in trainings} >= {0, 750}


def test_dimensions_that_are_no_sizes_are_refused() -> None:
    for d in ([100, math.nan, 200], [100, math.inf], [0, 100], [-5, 5]):
        with pytest.raises(ValueError, match="the dimensions rising"):
            dimension_at_share(d, np.linspace(0.1, 1, len(d)), 1.0)
    with pytest.raises(ValueError, match="accuracies is a masked array"):
        dimension_at_share([100, 200], np.ma.masked_array([0.1, 1.0], [True, False]), 1.0)


def test_a_training_is_the_same_without_gradients_around_it_and_names_its_divergence() -> None:
    expected = subspace_accuracies(SMALL)
    with torch.inference_mode():
        np.testing.assert_array_equal(subspace_accuracies(SMALL), expected)
    with pytest.raises(DivergenceError, match="weights are not finite"):
        subspace_accuracies(replace(SMALL, learning_rate=1e30, epochs=2))
