"""What verdicts hang on: the right quantity of the right set, the rule that tunes a race, scales, streams, thresholds.

Each is compared with a plain formula, at values that tell it from what would be close: the training pairs from all, the
weights' frequencies from the gradients', a sum from a mean, a bound from one a little wider.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from descent.experiments import grokking_measures, saddle_race
from descent.experiments.grokking import GrokkingRun, ModularExperiment, prepare_experiment, train_modular_transformer
from descent.experiments.grokking_measures import (
    GeneralisationTimes,
    generalisation_course,
    path_gradients,
    progress_measures,
)
from descent.experiments.grokking_records import key_frequencies_of_run, measure_spectra
from descent.experiments.saddle_race import OPTIMISERS, RATES, EscapeCourse, race_optimiser
from descent.experiments.toy_models import (
    ToyInputs,
    ToyModels,
    batch_losses,
    fresh_losses,
    reconstruct_inputs,
    toy_gradients,
)
from descent.models.transformer import OneLayerTransformer, TransformerSizes
from descent.repro.seeding import deterministic
from descent.training.loop import MiniBatches

SMALL = ModularExperiment(p=11, fraction=0.4, width=8, heads=2, hidden=12, steps=40, every=10, learning_rate=0.01)


@pytest.fixture(scope="module")
def small() -> GrokkingRun:
    with deterministic(1):
        return train_modular_transformer(SMALL)


def wave(p: int, k: int, kind: str) -> np.ndarray:
    angle = 2 * np.pi * k * np.arange(p) / p
    return (np.cos(angle) if kind == "cos" else np.sin(angle)) * np.sqrt(2 / p)


def norms_of_frequencies(table: np.ndarray) -> list[float]:
    """Of a table with a row for each residue, one frequency after the other."""
    p = len(table)
    parts = [[(wave(p, k, kind) @ table) for kind in ("cos", "sin")] for k in range(1, p // 2 + 1)]
    return [float(np.sqrt(sum((part**2).sum() for part in pair))) for pair in parts]


def plain_gini(values: list[float]) -> float:
    apart = sum(abs(a - b) for a in values for b in values)
    return apart / (2 * len(values) * sum(values))


def test_the_restricted_loss_is_over_all_pairs_and_the_excluded_one_over_the_training_pairs(small: GrokkingRun) -> None:
    frequencies, p = [2, 5], SMALL.p
    measured = progress_measures(small, {"two": frequencies}, small.stack.rows[-1:])
    logits = small.logits(small.stack.rows[-1]).double().numpy()
    a, b = small.task.pairs.numpy().T
    along = np.zeros_like(logits)
    for k in frequencies:
        for kind in (np.cos, np.sin):
            direction = kind(2 * np.pi * k * (a + b) / p)
            direction /= np.linalg.norm(direction)
            along += np.outer(direction, direction @ logits)
    targets = small.task.targets

    def loss(values: np.ndarray, part: torch.Tensor) -> float:
        return float(nn.functional.cross_entropy(torch.from_numpy(values)[part], targets[part]))

    every = torch.arange(len(targets))
    restricted, excluded = along + logits.mean(0), logits - along
    assert measured["restricted_loss two"][0] == pytest.approx(loss(restricted, every), rel=1e-9)
    assert measured["excluded_loss two"][0] == pytest.approx(loss(excluded, small.train), rel=1e-9)
    right = restricted.argmax(1) == targets.numpy()
    assert measured["restricted_accuracy two"][0] == pytest.approx(right.mean())
    for values in (restricted, excluded):  # the sets do differ
        three = [loss(values, part) for part in (every, small.train, small.test)]
        assert min(abs(one - other) for i, one in enumerate(three) for other in three[:i]) > 1e-4


def test_each_gini_coefficient_is_of_its_own_matrix(small: GrokkingRun) -> None:
    row = small.stack.rows[-1]
    measured, model = progress_measures(small, {}, row[None]), small.at(row)
    tables = {"gini_embedding": model.W_E[:, :-1].T, "gini_map": (model.W_out.T @ model.W_U[:, :-1]).T}
    found = {name: plain_gini(norms_of_frequencies(table.detach().numpy())) for name, table in tables.items()}
    assert found["gini_embedding"] != pytest.approx(found["gini_map"], rel=1e-3)
    for name, value in found.items():
        assert measured[name][0] == pytest.approx(value, rel=1e-5)


def test_the_gradients_frequencies_are_not_the_weights(small: GrokkingRun) -> None:
    with deterministic(1):
        measured = measure_spectra(small, 2)
        gradients = path_gradients(small, small.stack.rows)
    part = small.stack.layout.slices()["W_E"]

    def of_embedding(rows: np.ndarray) -> np.ndarray:
        tables = rows[:, part].reshape(len(rows), SMALL.width, SMALL.p + 1)[:, :, :-1]
        return np.array([norms_of_frequencies(table.T.astype(float)) for table in tables])

    np.testing.assert_allclose(measured["gradient frequencies"], of_embedding(gradients), rtol=1e-6)
    assert not np.allclose(measured["gradient frequencies"], of_embedding(small.stack.rows), rtol=0.1)


def test_the_small_batches_of_gradients_are_an_eighth_of_the_training_pairs(small: GrokkingRun) -> None:
    with deterministic(1):
        measured = measure_spectra(small, 2)
        some = path_gradients(small, small.stack.rows, len(small.train) // 8)
    np.testing.assert_allclose(measured["batch gradients"], some.astype(float) @ some.T.astype(float), rtol=1e-6)


def test_key_frequencies_are_those_of_more_than_a_hundredth_of_the_neurons(small: GrokkingRun) -> None:
    """Of pure waves: three neurons of frequency 1, two of 2 and one of 3."""
    a = small.task.pairs[:, 0].double()
    waves = torch.stack([torch.cos(2 * np.pi * k * a / SMALL.p) for k in (1, 1, 1, 2, 2, 3)], dim=1)
    model = SimpleNamespace(activations=lambda pairs: SimpleNamespace(neurons=waves))
    for hidden, keys in ((99, [1, 2, 3]), (100, [1, 2]), (199, [1, 2]), (200, [1]), (300, [])):
        run = replace(small, experiment=replace(SMALL, hidden=hidden), model=model)
        assert key_frequencies_of_run(run) == keys


def test_mini_batches_of_a_run_are_those_of_its_seed() -> None:
    def first(seed: int) -> torch.Tensor:
        return prepare_experiment(replace(SMALL, batch_size=9, seed=seed)).batches(0)[0]

    for seed in (0, 3):
        start = prepare_experiment(replace(SMALL, batch_size=9, seed=seed))
        shown = start.task.pairs[start.train], start.task.targets[start.train]
        expected = MiniBatches(shown, 9, seed)
        for step in (0, 1, 7):
            assert all(map(torch.equal, start.batches(step), expected(step)))
    assert not torch.equal(first(0), first(3))


@pytest.mark.parametrize(
    ("below_one", "generalised"), [([2.0, 1.0, 0.999], 30.0), ([2.0, 0.999, 0.5], 20.0), ([2.0, 1.001, 1.0], np.inf)]
)
def test_a_run_has_generalised_below_one_nat(below_one: list[float], generalised: float) -> None:
    steps, ones = np.array([10.0, 20.0, 30.0]), np.ones(3)
    assert generalisation_course(steps, ones, np.array(below_one), ones)["generalised"] == generalised


@pytest.mark.parametrize(
    ("shown", "memorised"), [([1, 0.01, 0.0099], 30.0), ([1, 0.0099, 0.001], 20.0), ([1, 0.05, 0.0101], np.inf)]
)
def test_a_run_has_memorised_below_a_hundredth(shown: list[float], memorised: float) -> None:
    steps, ones = np.array([10.0, 20.0, 30.0]), np.ones(3)
    assert generalisation_course(steps, np.array(shown), ones, ones)["memorised"] == memorised


def test_a_look_counts_the_steps_that_were_taken() -> None:
    """A run whose loss is below every threshold at once has its times at the first look, after `every` steps."""
    easy = replace(SMALL, steps=30, every=10)
    with deterministic(1):
        found = GeneralisationTimes((easy,), done=1e9)(np.zeros((1, 1)))
        run = train_modular_transformer(replace(easy, steps=11))
        logits = run.at(run.stack.rows[1])(run.task.pairs[run.test]).detach()  # that of "=" too, as in training
    loss = float(nn.functional.cross_entropy(logits.double(), run.task.targets[run.test]))
    assert found["peak"][0] == pytest.approx(loss, rel=1e-4), "the weights after ten steps"
    whole = GeneralisationTimes((replace(easy, steps=10),), done=0.0)(np.zeros((1, 1)))
    assert whole["peak"][0] == pytest.approx(loss, rel=1e-4)


def test_the_time_of_a_look_is_the_number_of_steps_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 0.5, 2.0, 0.9])
    monkeypatch.setattr(grokking_measures, "mean_loss", lambda logits, targets: next(losses))
    with deterministic(1):
        course = GeneralisationTimes((replace(SMALL, steps=45, every=10),))(np.zeros((1, 1)))
    assert (course["generalised"][0], course["peak"][0]) == (40, 3)


def test_weights_start_at_their_scale() -> None:
    model = OneLayerTransformer(TransformerSizes(symbols=399, width=100, heads=4, hidden=400), 0)
    for name, part in model.named_parameters():
        expected = 0.0 if name.startswith("b_") else (1 / 400 if name == "W_U" else 1 / 100) ** 0.5
        assert float(part.detach().std()) == pytest.approx(expected, rel=0.2 if name == "W_pos" else 0.02), name
    start = ToyModels(60, 140, [0, 1]).start()
    assert float(start.std()) == pytest.approx(0.1, rel=0.02)
    assert abs(float(start.mean())) < 0.002
    assert not torch.equal(start[0], start[1])


def toys(**changes: object) -> ToyModels:
    return ToyModels(8, 4, [5, 6], density=[0.5, 0.3], importance=torch.linspace(1, 0.2, 8)[None], **changes)


def test_fresh_losses_are_means_over_batches_of_a_stream_of_their_own() -> None:
    models = toys()
    W, b = models.start(), torch.linspace(-0.1, 0.1, 8).expand(2, 8).contiguous()

    def of(name: str, seeds: list[int], batches: int) -> list[float]:
        inputs, importance = ToyInputs(replace(models, seeds=seeds), 50, name), models.tensors()[1]
        losses = []
        for _ in range(batches):
            inputs.draw()
            x = inputs.block(slice(0, 2))[0].permute(2, 0, 1)
            error = (x - reconstruct_inputs(W, b, x)) ** 2 * importance
            losses.append(error.mean((0, 2)))
        return torch.stack(losses).double().mean(0).tolist()

    for batches in (1, 3):
        found = fresh_losses(models, W, b, batches, 50).tolist()
        assert found == pytest.approx(of("toy tests", [0, 0], batches), rel=1e-5)
        assert found != pytest.approx(of("toy inputs", [5, 6], batches), rel=1e-3), "what training saw"
        assert found != pytest.approx(of("toy inputs", [0, 0], batches), rel=1e-3)


def test_the_layer_norm_divides_by_the_variance_plus_1e_5() -> None:
    """At hidden values whose variance is of the size of that number."""
    models = toys(kind="layernorm")
    W = models.start() * 0.01
    W.grad, b = torch.zeros_like(W), torch.zeros(2, 8)
    b.grad = torch.zeros_like(b)
    inputs = ToyInputs(models, 64)
    inputs.draw()
    x = inputs.block(slice(0, 2))[0].permute(2, 0, 1).clone()
    h = torch.einsum("bkn,kmn->bkm", x, W).double()
    variance = h.var(-1, unbiased=False, keepdim=True)
    assert 1e-6 < float(variance.mean()) < 1e-4
    y = (h - h.mean(-1, keepdim=True)) / torch.sqrt(variance + 1e-5)
    expected = torch.relu(torch.einsum("bkm,kmn->bkn", y, W.double()))
    torch.testing.assert_close(reconstruct_inputs(W, b, x, "layernorm").double(), expected, rtol=1e-4, atol=1e-7)
    by_hand = ((x - expected) ** 2 * models.tensors()[1]).mean((0, 2)).tolist()
    assert batch_losses(W, b, inputs, models).tolist() == pytest.approx(by_hand, rel=1e-5)
    measured = toy_gradients(W, b, inputs, models, losses=True)
    assert measured is not None
    assert measured.tolist() == pytest.approx(by_hand, rel=1e-5)
    leaf = W.clone().requires_grad_()
    loss = ((x - reconstruct_inputs(leaf, b, x, "layernorm")) ** 2 * models.tensors()[1]).mean((0, 2)).sum()
    loss.backward()
    torch.testing.assert_close(W.grad, leaf.grad, rtol=1e-3, atol=1e-7)


def test_the_race_is_tuned_on_other_seeds_by_the_geometric_mean_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the step sizes, each with twenty runs from two distances, the rule picks by the geometric mean of all."""
    asked: list[tuple[int, int, list[float]]] = []
    odd_and_even = {  # step size -> steps of every other run; those not named take 70
        0.03: (1.0, 2_500.0),  # geometric mean 50, mean 1250.5, slowest 2500: the best
        0.1: (60.0, 60.0),  # geometric mean, mean and slowest 60
    }

    def times(course: EscapeCourse, name: str, rates: list[float]) -> np.ndarray:
        asked.append((course.seed, course.runs, list(rates)))
        found = np.full((len(rates), 2, course.runs), 70.0)
        for place, rate in enumerate(rates):
            if rate in odd_and_even:
                found[place, :, 0::2], found[place, :, 1::2] = odd_and_even[rate]
            if rate == 1.0:
                found[place], found[place, 0, -1] = 1.0, np.inf  # fast, but loses a run
        return found

    monkeypatch.setattr(saddle_race, "escape_times", times)
    course = EscapeCourse(2, 10.0, (0.1, 0.01), 16, 100, seed=4)
    rate, steps = race_optimiser(course, "Adam")
    assert rate == 0.03
    assert asked == [(10_004, 20, list(RATES)), (4, 16, [0.03])]
    assert steps.shape == (2, 16)


@pytest.mark.parametrize("name", ["SGD", "momentum", "Nesterov"])
def test_each_racer_steps_as_its_formula(name: str) -> None:
    """Two steps on x^2 / 2 from 1 at step size 0.1."""
    momentum = 0.0 if name == "SGD" else 0.9
    x, velocity = 1.0, 0.0
    for _ in range(2):
        velocity = momentum * velocity + x
        x -= 0.1 * (x + momentum * velocity if name == "Nesterov" else velocity)
    point = torch.ones(1, dtype=torch.float64)
    optimizer = OPTIMISERS[name]([point], lr=0.1)
    for _ in range(2):
        point.grad = point.clone()
        optimizer.step()
    assert float(point) == pytest.approx(x, abs=1e-15)
