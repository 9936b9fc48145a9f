"""Networks trained in a stack: each as if it were alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from descent.experiments.grokking import ModularExperiment, train_modular_transformer
from descent.experiments.grokking_together import TransformerStack, stack_digest, train_together
from descent.models.transformer import OneLayerTransformer, TransformerSizes, every_position
from descent.repro.seeding import deterministic

SMALL = ModularExperiment(p=13, fraction=0.5, width=16, heads=2, hidden=24, steps=40, every=20)


def test_each_network_of_a_stack_has_its_own_textbook_logits() -> None:
    models = [OneLayerTransformer(TransformerSizes(7, 8, 2, 16), seed) for seed in range(3)]
    pairs = torch.from_numpy(np.random.default_rng(0).integers(0, 7, (3, 5, 2)))
    logits = TransformerStack(models)(pairs)
    for number, model in enumerate(models):
        torch.testing.assert_close(logits[number], every_position(model, pairs[number]))


def test_a_stack_trains_each_experiment_as_if_it_were_alone() -> None:
    others = ({"seed": 1, "weight_decay": 0.3}, {"fraction": 0.4, "task": "subtraction"}, {"weight_decay": 0.0})
    experiments = [SMALL, *(replace(SMALL, **other) for other in others)]  # type: ignore[arg-type]
    with deterministic(1):
        together = train_together(experiments)
        for experiment, run in zip(experiments, together, strict=True):
            alone = train_modular_transformer(experiment)
            assert run.experiment == experiment
            assert torch.equal(run.train, alone.train)
            np.testing.assert_allclose(run.stack.rows, alone.stack.rows, atol=2e-5)
            np.testing.assert_allclose(run.final(), alone.final(), atol=2e-5)
            assert run.stack.layout == alone.stack.layout
        mean = np.mean([train_modular_transformer(each).losses for each in experiments], axis=0)
    np.testing.assert_allclose(together[0].losses, mean, rtol=1e-4)


def test_a_stack_that_was_finished_is_read_from_its_folder(tmp_path: Path) -> None:
    experiments = [SMALL, replace(SMALL, seed=1)]
    with deterministic(1):
        first = train_together(experiments, tmp_path)
        again = train_together(experiments, tmp_path)
    for run, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(run.stack.rows, other.stack.rows)
        np.testing.assert_array_equal(run.final(), other.final())
    assert stack_digest(experiments) != stack_digest(experiments[::-1])


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"steps": 41}, r"steps=\[40, 41\]: expected one value for all networks of a stack"),
        ({"learning_rate": 0.1}, "learning_rate="),
        ({"task": "s5"}, "expected one size in a stack"),
        ({"p": 11}, "expected one size in a stack"),
    ],
)
def test_networks_that_cannot_share_a_step_are_refused(other: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train_together([SMALL, replace(SMALL, **other)])  # type: ignore[arg-type]


def test_no_network_and_mini_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="no experiment to train"):
        train_together([])
    with pytest.raises(ValueError, match="batch_size=10: expected None"):
        train_together([replace(SMALL, batch_size=10)])
