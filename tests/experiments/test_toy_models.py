"""The toy models: gradients against automatic differentiation, inputs against statistics, runs against themselves."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace

import joblib
import pytest
import torch
from torch import Tensor

from descent.experiments import toy_models
from descent.experiments.toy_models import (
    BLOCK,
    KINDS,
    ToyInputs,
    ToyModels,
    ToyTraining,
    batch_losses,
    fresh_losses,
    model_blocks,
    reconstruct_inputs,
    toy_gradients,
    train_toy_models,
    train_toy_models_in_parts,
)
from descent.features.geometry import dimensionality
from descent.repro.seeding import deterministic
from descent.training.loop import DivergenceError

SHORT = ToyTraining(steps=30, batch=64, learning_rate=1e-2)


def toys(**changes) -> ToyModels:
    return replace(ToyModels(6, 3, [4, 9, 4, 1], [1.0, 0.5, 0.3, 0.1], torch.linspace(1, 0.3, 6)[None]), **changes)


def drawn(models: ToyModels, batch: int) -> tuple[ToyInputs, Tensor, Tensor]:
    """Inputs after a draw, the clean ones and the noisy ones as `(batch, k, n)`."""
    inputs = ToyInputs(models, batch)
    inputs.draw()
    parts = inputs.block(slice(0, len(models)))
    return inputs, *(part.permute(2, 0, 1).clone() for part in parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_losses_and_gradients_are_those_of_automatic_differentiation(kind: str, noise: float) -> None:
    models = toys(kind=kind, noise=noise)
    inputs, clean, noisy = drawn(models, 200)
    W, b = models.start(), torch.linspace(-0.2, 0.2, 24).view(4, 6)
    apart = W.clone().requires_grad_(), b.clone().requires_grad_()
    importance = models.tensors()[1]
    errors = importance * (clean - reconstruct_inputs(*apart, noisy, kind)).square()
    expected = errors.mean((0, 2))
    expected.sum().backward()
    W.grad, b.grad = torch.zeros_like(W), torch.zeros_like(b)
    losses = toy_gradients(W, b, inputs, models, True)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(batch_losses(W, b, inputs, models), expected.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(W.grad, apart[0].grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(b.grad, apart[1].grad, rtol=1e-5, atol=1e-7)


def test_training_is_that_of_the_textbook() -> None:
    models = toys()
    W, b = models.start().requires_grad_(), torch.zeros(4, 6, requires_grad=True)
    optimizer = torch.optim.AdamW([W, b], SHORT.learning_rate, weight_decay=SHORT.weight_decay)
    inputs = ToyInputs(models, SHORT.batch)
    importance = models.tensors()[1]
    for _ in range(SHORT.steps):
        inputs.draw()
        x = inputs.block(slice(0, 4))[0].permute(2, 0, 1)
        optimizer.zero_grad()
        (importance * (x - reconstruct_inputs(W, b, x)).square()).mean((0, 2)).sum().backward()
        optimizer.step()
    trained = train_toy_models(models, SHORT)
    torch.testing.assert_close(trained.W, W.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained.b, b.detach(), rtol=1e-4, atol=1e-5)


def test_a_run_gives_the_same_bits_and_depends_on_its_own_seed_alone() -> None:
    with deterministic(1):
        first, again = train_toy_models(toys(), SHORT), train_toy_models(toys(), SHORT)
        alone = train_toy_models(toys().part([1]), SHORT)
    assert torch.equal(first.W, again.W)
    assert torch.equal(first.b, again.b)
    assert torch.equal(toys().start()[0], toys().start()[2]), "models of one seed start alike"
    assert not torch.equal(toys().start()[0], toys().start()[1])
    torch.testing.assert_close(alone.W[0], first.W[1], rtol=1e-5, atol=1e-6)


def test_parts_in_processes_give_the_same_models_in_order() -> None:
    with deterministic(1):
        whole = train_toy_models(toys(), replace(SHORT, every=10))
    for workers in (2, 3):  # 36 and 18 weights and as few as 6 biases: no multiples of a vector register
        apart = train_toy_models_in_parts(toys(), replace(SHORT, every=10), workers)
        for name in ("W", "b", "kept", "losses"):
            assert torch.equal(getattr(apart, name), getattr(whole, name)), name
    with pytest.raises(ValueError, match="workers=0: expected at least 1"):
        train_toy_models_in_parts(toys(), SHORT, 0)


@pytest.mark.parametrize("threads", [2, 3, 9])
def test_threads_share_the_models_and_give_the_bits_of_one(threads: int) -> None:
    with deterministic(1):
        whole = train_toy_models(toys(), replace(SHORT, every=10), start=0.5 * toys().start())
    with deterministic(threads):
        shared = train_toy_models(toys(), replace(SHORT, every=10), start=0.5 * toys().start())
        assert torch.get_num_threads() == threads
        with ThreadPoolExecutor(1) as pool:  # a thread that comes later has as many as before
            assert pool.submit(torch.get_num_threads).result() == threads
    for name in ("W", "b", "kept", "losses"):
        assert torch.equal(getattr(shared, name), getattr(whole, name)), name


@pytest.mark.parametrize("batch", [17, 250])
def test_bits_depend_on_no_neighbour_at_any_batch(batch: int) -> None:
    models, recipe = ToyModels(8, 5, range(4)), ToyTraining(5, batch, 0.01)
    with deterministic(1):
        whole = train_toy_models(models, recipe)
        for number in range(4):
            alone = train_toy_models(models.part([number]), recipe)
            assert torch.equal(alone.W[0], whole.W[number])
            assert torch.equal(alone.b[0], whole.b[number])
            assert torch.equal(alone.losses[:, 0], whole.losses[:, number])


@pytest.mark.parametrize("count", [1, 2])
def test_every_share_multiplies_with_one_thread(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, threads = ToyInputs.draw, set()

    def watched(inputs: ToyInputs) -> None:
        threads.add(torch.get_num_threads())
        draw(inputs)

    monkeypatch.setattr(ToyInputs, "draw", watched)
    with deterministic(4):
        train_toy_models(toys().part(range(count)), replace(SHORT, steps=2))
        assert torch.get_num_threads() == 4
    assert threads == {1}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("around", [lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta")])
def test_contexts_of_torch_change_no_bit(around: Callable[[], AbstractContextManager], threads: int) -> None:
    models, recipe = toys(noise=0.1), replace(SHORT, steps=3, every=2)
    with deterministic(threads):
        plain = train_toy_models(models, recipe)
        losses = fresh_losses(models, plain.W, plain.b, 1, 64)
        with around():
            within = train_toy_models(replace(models, noise=0.1), recipe, start=models.start())
            assert torch.equal(fresh_losses(models, plain.W, plain.b, 1, 64), losses)
    for name in ("W", "b", "kept", "losses", "steps"):
        assert torch.equal(getattr(within, name), getattr(plain, name)), name


def test_parts_are_processes_whatever_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(SHORT, steps=2)
    whole = train_toy_models(toys(), recipe)
    monkeypatch.setattr(toy_models, "deterministic", None)  # what runs in this process would fail
    with joblib.parallel_config(backend="threading"):
        apart = train_toy_models_in_parts(toys(), recipe, 2)
    assert torch.equal(apart.W, whole.W)


def test_weights_that_diverge_in_any_thread_are_refused_by_their_seeds() -> None:
    with deterministic(2), pytest.raises(DivergenceError, match=r"seeds \[4, 9, 4, 1\]"):
        train_toy_models(toys(), replace(SHORT, learning_rate=1e38))


def test_an_interrupt_ends_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    draw, steps = ToyInputs.draw, []

    def interrupted(inputs: ToyInputs) -> None:
        steps.append(len(inputs.stream))
        if len(inputs.stream) == 1 and len(steps) > 4:  # the second thread's only model
            raise KeyboardInterrupt
        draw(inputs)

    monkeypatch.setattr(ToyInputs, "draw", interrupted)
    with deterministic(2), pytest.raises(KeyboardInterrupt):
        train_toy_models(toys().part([0, 1, 2]), replace(SHORT, steps=10**9))


def test_kept_weights_are_those_before_their_step() -> None:
    trained = train_toy_models(toys(), replace(SHORT, every=12))
    assert trained.steps.tolist() == [0, 12, 24, 30]
    assert trained.kept.shape == (4, 4, 3, 6)
    assert trained.losses.shape == (4, 4)
    assert torch.equal(trained.kept[0], toys().start())
    assert torch.equal(trained.kept[-1], trained.W)
    assert torch.equal(train_toy_models(toys(), replace(SHORT, steps=12)).W, trained.kept[1])
    assert train_toy_models(toys(), SHORT).steps.tolist() == [30]


def test_a_training_may_begin_at_given_weights() -> None:
    models = toys()
    first = train_toy_models(models, replace(SHORT, steps=1), start=0.5 * models.start())
    begun = train_toy_models(models, replace(SHORT, steps=1, every=1), start=0.5 * models.start().double())
    assert torch.equal(begun.kept[0], 0.5 * models.start())
    assert torch.equal(begun.W, first.W)
    assert torch.equal(train_toy_models(models, SHORT, start=models.start()).W, train_toy_models(models, SHORT).W)
    with deterministic(1):
        whole = train_toy_models(models, SHORT, start=0.5 * models.start())
    assert torch.equal(train_toy_models_in_parts(models, SHORT, 2, start=0.5 * models.start()).W, whole.W)


@pytest.mark.parametrize("train", [train_toy_models, lambda *a, start: train_toy_models_in_parts(*a, 2, start=start)])
@pytest.mark.parametrize("shape", [(3, 3, 6), (4, 6, 3)])
def test_a_start_of_another_shape_is_refused(train: Callable[..., object], shape: tuple[int, int, int]) -> None:
    with pytest.raises(
        ValueError, match=rf"start of shape \({shape[0]}, {shape[1]}, {shape[2]}\): expected \(4, 3, 6\)"
    ):
        train(toys(), SHORT, start=torch.zeros(shape))


def test_inputs_have_their_density_and_are_uniform() -> None:
    models = ToyModels(4, 2, [0, 0, 1], [1.0, 0.5, 0.05])
    _, x, noisy = drawn(models, 50_000)
    assert torch.equal(x, noisy)
    for model, density in enumerate([1.0, 0.5, 0.05]):
        values = x[:, model]
        assert float((values > 0).double().mean()) == pytest.approx(density, abs=0.005)
        present = values[values > 0]
        assert float(present.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(present.var()) == pytest.approx(1 / 12, abs=0.004)
        assert 0 < float(present.min()) <= float(present.max()) <= 1
    assert abs(float(torch.corrcoef(x[:, 1].T)[0, 1])) < 0.02


def test_noise_has_its_size_and_is_not_in_the_target() -> None:
    models = ToyModels(3, 2, [0, 1], 0.3, noise=[0.0, 0.25])
    _, clean, noisy = drawn(models, 50_000)
    assert torch.equal(clean[:, 0], noisy[:, 0])
    assert float((noisy - clean)[:, 1].std()) == pytest.approx(0.25, abs=0.005)
    assert float(clean.min()) == 0


def test_two_features_on_one_dimension_become_antipodal_when_sparse() -> None:
    trained = train_toy_models(ToyModels(2, 1, [0, 1, 2], 0.1), ToyTraining(steps=1500, batch=512, learning_rate=1e-2))
    good = [W for W in trained.W if float(dimensionality(W).min()) > 0.4]
    assert good, "no initialisation of three trained the pair"
    assert float(good[0][0, 0] * good[0][0, 1]) < 0


def test_fresh_losses_are_the_same_for_equal_models_and_for_each_call() -> None:
    models = ToyModels(3, 2, [0, 5], 0.3)
    W = models.start()[:1].expand(2, -1, -1).contiguous()
    losses = fresh_losses(models, W, torch.zeros(2, 3), batches=2, batch=128)
    assert losses[0] == losses[1]
    assert torch.equal(losses, fresh_losses(models, W, torch.zeros(2, 3), batches=2, batch=128))


def test_blocks_cover_all_models() -> None:
    cpu = torch.device("cpu")
    assert list(model_blocks(5, BLOCK // 2, cpu)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(model_blocks(2, 3 * BLOCK, cpu)) == [slice(0, 1), slice(1, 2)]
    assert list(model_blocks(5, BLOCK // 2, torch.device("meta"))) == [slice(0, 5)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "gelu"}, "kind 'gelu': expected one of relu, linear, layernorm"),
        ({"density": 0.0}, "density=0 to 0: expected above 0 and at most 1"),
        ({"density": 1.5}, "density=1.5 to 1.5: expected above 0"),
        ({"density": [0.1, 0.2]}, r"density of shape \(2, 1\): expected a number, 4 of them"),
        ({"density": 1e-5}, "density=1e-05 to 1e-05: expected above 0 and at most 1, and at least 1.52588e-05"),
        ({"importance": 0.0}, "importance=0, noise=0: expected importances above 0"),
        ({"importance": 1e25}, r"importance: the largest of each model is 1e\+25 to 1e\+25, expected 1e-06 to 1e\+12"),
        ({"importance": [1.0, 1.0, 1e-30, 1.0]}, "the largest of each model is 1e-30 to 1, expected 1e-06"),
        ({"seeds": 5}, "seeds=5: expected a sequence"),
        ({"noise": -1.0}, "noise=-1"),
        ({"n": 0}, "n=0: expected at least 1, a whole number"),
        ({"seeds": []}, "seeds=0: expected at least 1"),
    ],
)
def test_bad_models_are_refused_by_name(changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        toys(**changes)


@pytest.mark.parametrize("importance", [1e-6, 1e12])
def test_importances_at_the_ends_train(importance: float) -> None:
    models, recipe = ToyModels(2, 2, [0, 1], 0.3, importance), ToyTraining(300, 64, 1e-2)
    before = fresh_losses(models, models.start(), torch.zeros(2, 2), 2, 512)
    trained = train_toy_models(models, recipe)
    assert (fresh_losses(models, trained.W, trained.b, 2, 512) < 0.2 * before).all()


def test_bad_recipes_are_refused() -> None:
    for bad in ({"steps": 0}, {"batch": 0}, {"every": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            ToyTraining(**bad)
    for bad in ({"learning_rate": "0.1"}, {"weight_decay": None}):
        with pytest.raises(ValueError, match="learning_rate or weight_decay is of type"):
            ToyTraining(**bad)
    for bad in ({"learning_rate": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match="positive learning rate"):
            ToyTraining(**bad)
    with pytest.raises(ValueError, match="kind 'gelu'"):
        reconstruct_inputs(torch.zeros(1, 2, 3), torch.zeros(1, 3), torch.zeros(4, 1, 3), "gelu")
