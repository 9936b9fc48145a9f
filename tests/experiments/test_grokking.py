"""Runs that generalise late: the recipe, resuming, and what is measured along them."""

import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from descent.checkout import project_root
from descent.experiments.grokking import (
    GrokkingRun,
    ModularExperiment,
    cross_entropy_in_double,
    prepare_experiment,
    train_modular_transformer,
)
from descent.experiments.grokking_measures import (
    GeneralisationTimes,
    embedding_frequencies,
    first_lasting_step,
    generalisation_course,
    path_gradients,
    progress_measures,
    train_and_test_losses,
    weight_and_logit_grams,
)
from descent.models.flat_weights import Layout, flatten, unflatten
from descent.models.transformer import every_position
from descent.repro.records import Record
from descent.repro.seeding import deterministic
from descent.training.loop import Batch

SMALL = ModularExperiment(p=13, fraction=0.5, width=16, heads=2, hidden=24, steps=60, every=20)


@pytest.fixture(scope="module")
def small() -> GrokkingRun:
    with deterministic(1):
        return train_modular_transformer(SMALL)


def test_the_defaults_are_the_sources() -> None:
    run = train_modular_transformer(ModularExperiment(steps=1))
    assert run.stack.layout.size == 226_816
    assert (len(run.train), len(run.test)) == (3830, 8939)
    assert not np.any(run.final() - run.stack.rows[0])  # the first step of the warm-up has rate zero
    assert len(torch.cat([run.train, run.test]).unique()) == 113**2


def test_a_run_is_adamw_on_the_whole_training_set(small: GrokkingRun) -> None:
    """Written out once more with the textbook's pass and the source's schedule."""
    with deterministic(1):
        model = small.at(small.stack.rows[0])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 10, 1))
        pairs, targets = small.task.pairs[small.train], small.task.targets[small.train]
        for step in range(SMALL.steps):
            if step % SMALL.every == 0:
                row = flatten(dict(model.named_parameters())).detach().numpy()
                np.testing.assert_allclose(row, small.stack.rows[step // SMALL.every], atol=2e-5)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(every_position(model, pairs).double(), targets)
            assert loss.item() == pytest.approx(small.losses[step], rel=1e-4)
            loss.backward()
            optimizer.step()
            schedule.step()
    assert small.stack.steps.tolist() == [0, 20, 40]
    assert small.losses[-1] < 0.95 * small.losses[0]


def test_the_softmax_is_in_double(small: GrokkingRun) -> None:
    logits = torch.tensor([[0.0, 20.0], [0.0, -20.0]], requires_grad=True)
    loss = cross_entropy_in_double(nn.Identity(), (logits, torch.tensor([1, 0])))
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-9)


def test_no_gradient_is_subnormal_and_no_weight_differs_by_a_bit() -> None:
    """At the end of a run, where thousands of gradients of logits would be."""
    final = Record.load(project_root() / "data/records/grokking/seed-1.npz").values["final"].astype(np.float32)

    def plain(model: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]).double(), batch[1])

    weights, subnormal = [], []
    for loss in (cross_entropy_in_double, plain):
        with deterministic(1):
            start = prepare_experiment(ModularExperiment(seed=1))
            start.model.load_state_dict(unflatten(torch.from_numpy(final), Layout.of(start.model.named_parameters())))
            pairs, targets = start.batches(0)
            logits = start.model(pairs).detach().requires_grad_()
            loss(nn.Identity(), (logits, targets)).backward()
            subnormal.append(int(((logits.grad != 0) & (logits.grad.abs() < torch.finfo(torch.float32).tiny)).sum()))
            start.optimizer.param_groups[0]["lr"] = 1e-3  # of the first step of the warm-up it is zero
            for _ in range(2):
                start.optimizer.zero_grad()
                loss(start.model, (pairs, targets)).backward()
                start.optimizer.step()
            weights.append(flatten(dict(start.model.named_parameters())).detach())
    assert subnormal[0] == 0
    assert subnormal[1] > 1000
    assert not np.array_equal(weights[0].numpy(), final)
    assert torch.equal(*weights)


def test_seeds_differ_in_weights_and_split_and_batches_are_used() -> None:
    first, second = (
        train_modular_transformer(replace(SMALL, steps=1)),
        train_modular_transformer(replace(SMALL, steps=1, seed=1)),
    )
    assert not np.array_equal(first.stack.rows, second.stack.rows)
    assert not torch.equal(first.train, second.train)
    batched = train_modular_transformer(replace(SMALL, steps=3, batch_size=10))
    assert batched.losses[0] != pytest.approx(first.losses[0], abs=1e-6)


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
import descent.training.checkpoints
from descent.experiments.grokking import train_modular_transformer
from descent.repro.seeding import deterministic
from test_grokking import SMALL
saved, save = [], descent.training.checkpoints.Checkpoints.save
def kill(*given):
    save(*given)
    saved.append(1)
    if len(saved) == 3:  # the first is written before any step
        os.kill(os.getpid(), signal.SIGKILL)
descent.training.checkpoints.Checkpoints.save = kill
with deterministic(1):
    train_modular_transformer(replace(SMALL, every=2), Path({folder!r}))
"""


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run"))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    with deterministic(1):
        whole = train_modular_transformer(replace(SMALL, every=2))
        resumed = train_modular_transformer(replace(SMALL, every=2), tmp_path / "run")
    assert (tmp_path / "run" / "weights" / "rows.f32").stat().st_size == 4 * whole.stack.rows.size
    np.testing.assert_array_equal(resumed.stack.rows, whole.stack.rows)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    np.testing.assert_array_equal(resumed.final(), whole.final())


def test_another_experiments_folder_is_refused(tmp_path: Path) -> None:
    train_modular_transformer(replace(SMALL, steps=20), tmp_path)
    with pytest.raises(RuntimeError, match=SMALL.digest()):
        train_modular_transformer(SMALL, tmp_path)


def test_digests_tell_experiments_apart() -> None:
    others = [{"task": "subtraction"}, {"p": 17}, {"fraction": 0.4}, {"seed": 1}, {"weight_decay": 0.5}, {"steps": 61}]
    assert len({SMALL.digest(), *(replace(SMALL, **other).digest() for other in others)}) == 7


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"task": "addtion"}, "operation 'addtion': expected one of addition, "),
        ({"task": "division", "p": 15}, "p=15: division needs a prime, such as 17"),
        ({"fraction": 1.0}, "fraction=1.0: expected one that leaves"),
        ({"heads": 3}, "width=16, heads=3: expected heads that divide the width"),
        ({"batch_size": 100}, "batch_size=100: expected 1 to 84, the data's size"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_a_wrong_experiment_is_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train_modular_transformer(replace(SMALL, **wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["addition", "subtraction", "squares", "division", "s5"])
def test_every_task_trains(task: str) -> None:
    run = train_modular_transformer(replace(SMALL, task=task, steps=30, every=29))
    losses = train_and_test_losses(run, run.stack.rows)
    assert losses["train_loss"][1] < losses["train_loss"][0]
    symbols = 120 if task == "s5" else 13
    assert run.logits(run.final()).shape == (len(run.task), symbols)


def test_losses_are_of_each_part_without_the_logit_of_equals(small: GrokkingRun) -> None:
    row = small.stack.rows[2]
    losses = train_and_test_losses(small, [row, small.stack.rows[0]])
    with torch.no_grad():
        logits = every_position(small.at(row), small.task.pairs)[:, :13].double()
    for name, part in (("train", small.train), ("test", small.test)):
        chances = logits[part].softmax(1)[torch.arange(len(part)), small.task.targets[part]]
        assert losses[f"{name}_loss"][0] == pytest.approx(-float(chances.log().mean()), rel=1e-5)
        right = logits[part].argmax(1) == small.task.targets[part]
        assert losses[f"{name}_accuracy"][0] == pytest.approx(float(right.double().mean()))
    assert train_and_test_losses(small, [])["train_loss"].shape == (0,)


def test_progress_measures_have_a_column_for_each_set(small: GrokkingRun) -> None:
    measures = progress_measures(small, {"two": [1, 4], "none": []})
    assert measures["squares"].tolist() == pytest.approx(
        [float((row.astype(float) ** 2).sum()) for row in small.stack.rows]
    )
    assert measures["coefficients two"].shape == (3, 2)
    assert measures["coefficients none"].shape == (3, 0)
    assert (measures["explained none"] == 0).all()
    assert (measures["explained two"] > 0).all()
    # without a frequency, nothing is restricted to but the mean, and nothing is excluded
    np.testing.assert_allclose(
        measures["excluded_loss none"], train_and_test_losses(small, small.stack.rows)["train_loss"], rtol=1e-5
    )
    one = progress_measures(small, {"two": [1, 4]}, small.stack.rows[1:2])
    assert one["restricted_loss two"][0] == measures["restricted_loss two"][1]


def test_gradients_are_those_of_the_training_loss(small: GrokkingRun) -> None:
    rows = small.stack.rows[:2]
    whole = path_gradients(small, rows)
    model = small.at(rows[1])
    pairs, targets = small.task.pairs[small.train], small.task.targets[small.train]
    nn.functional.cross_entropy(every_position(model, pairs), targets).backward()
    expected = flatten({name: part.grad for name, part in model.named_parameters()}).numpy()  # type: ignore[misc]
    np.testing.assert_allclose(whole[1], expected, atol=1e-6)
    some = path_gradients(small, np.stack([rows[0], rows[0]]), batch_size=10)
    assert not np.array_equal(some[0], some[1])


def test_lasting_is_the_step_after_the_last_return() -> None:
    assert first_lasting_step(np.array([3.0, 0.5, 2.0, 0.5, 0.4]), 1) == 3
    assert first_lasting_step(np.array([0.5, 0.4]), 1) == 0
    assert first_lasting_step(np.array([0.5, 1.0]), 1) is None
    assert first_lasting_step(np.array([0.5, np.nan]), 1) is None
    assert first_lasting_step(np.array([]), 1) is None


def test_grok_times_are_those_of_the_curves() -> None:
    """A set-up that generalises within seconds; the same curve from a run that keeps its weights."""
    experiment = ModularExperiment(
        p=31, fraction=0.7, width=32, hidden=128, steps=500, every=20, learning_rate=3e-3, seed=3
    )
    never = replace(experiment, fraction=0.3, weight_decay=0.0)
    task = GeneralisationTimes((experiment, never))
    with deterministic(1):
        times = task(np.array([[0.0], [1.0]]))
        run = train_modular_transformer(experiment)
    assert task.key() != GeneralisationTimes((never, experiment)).key()
    assert times["accuracy"][0] > 0.95
    assert times["accuracy"][1] < 0.5
    assert np.isinf(times["generalised"][1])
    assert times["peak"][1] > times["peak"][0] > 0
    curve = train_and_test_losses(run, run.stack.rows)
    first = first_lasting_step(curve["test_loss"], 1.0)
    assert first is not None
    assert abs(times["generalised"][0] - 20 * first) <= 20
    learned = first_lasting_step(run.losses, 0.01)
    assert learned is not None
    assert abs(times["memorised"][0] - learned) <= 20


def test_a_course_reads_the_curves() -> None:
    shown, unseen = np.array([1, 0.02, 0.005, 0.005]), np.array([3, 9, 2, 0.5])
    course = generalisation_course(np.array([10.0, 20, 30, 40]), shown, unseen, np.array([0, 0.1, 0.2, 0.9]))
    assert course == {"generalised": 40, "memorised": 30, "peak": 9, "accuracy": 0.9}
    assert generalisation_course(np.array([10.0]), *np.array([[0.1], [1.0], [0.3]]))["generalised"] == np.inf


def test_grok_times_refuse_a_run_without_a_look() -> None:
    with pytest.raises(ValueError, match="every=50, steps=20"):
        GeneralisationTimes((ModularExperiment(steps=20, every=50),))


def test_the_logit_gram_is_of_all_examples_and_answers(small: GrokkingRun) -> None:
    expected = np.stack([small.logits(row).flatten().numpy() for row in small.stack.rows]).astype(float)
    np.testing.assert_allclose(weight_and_logit_grams(small)["logits"], expected @ expected.T, rtol=1e-5)


def test_embedding_frequencies_are_of_the_embedding_alone(small: GrokkingRun) -> None:
    row = np.zeros((1, small.stack.layout.size), np.float32)
    parts = unflatten(torch.from_numpy(row[0]), small.stack.layout)
    parts["W_E"][3, :13] = 2 * torch.cos(2 * math.pi * 4 * torch.arange(13) / 13) + 1
    parts["W_E"][3, 13] = 9.0
    parts["W_in"].fill_(1.0)
    norms = embedding_frequencies(small, row)
    np.testing.assert_allclose(norms, [[0, 0, 0, 2 * math.sqrt(6.5), 0, 0]], atol=1e-5)
