"""When runs on tables of an operation generalise, over any of their settings (Nanda et al. 2023, section 5.3)."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from descent.experiments.grokking import ModularExperiment, cross_entropy_in_double, prepare_experiment
from descent.experiments.grokking_measures import accuracy, first_lasting_step, mean_loss
from descent.repro.machine import keep_freed_memory
from descent.training.loop import TrainingPlan, fit

Array = NDArray[np.float64]
COURSE = ("generalised", "memorised", "peak", "accuracy")


class _GeneralisedError(Exception):
    """The run has generalised."""


def generalisation_course(steps: Array, train_loss: Array, test_loss: Array, test_accuracy: Array) -> dict[str, float]:
    """What the curves `(m,)` of a run at `steps` `(m,)` come to, in steps, nats and shares.

    `generalised`: steps until the test loss stays below 1, infinite where it does not; `memorised`: until the training
    loss stays below 0.01; `peak`: the largest test loss; `accuracy`: the last share of right answers on test examples.
    """
    times = [first_lasting_step(test_loss, 1.0), first_lasting_step(train_loss, 0.01)]
    ends = [np.inf if index is None else float(steps[index]) for index in times]
    return dict(zip(COURSE, (*ends, float(test_loss.max()), float(test_accuracy[-1])), strict=True))


@dataclass(frozen=True)
class GeneralisationTimes:
    """A task of `descent.repro.sweeps.sweep`, whose points are indices of experiments.

    A run ends when its test loss is below `done`, or after its `steps`.

    Attributes:
        experiments: their `every` is the number of steps between looks at the losses.
        done: nats, mean per example; below 1.
    """

    experiments: tuple[ModularExperiment, ...]
    done: float = 0.01

    def __post_init__(self) -> None:
        for each in self.experiments:
            if each.every > each.steps:
                raise ValueError(f"every={each.every}, steps={each.steps}: expected a look before the run ends")

    def key(self) -> str:
        """Twelve hexadecimal digits that name it."""
        digests = " ".join(experiment.digest() for experiment in self.experiments)
        return hashlib.sha256(f"{digests} until {self.done}".encode()).hexdigest()[:12]

    def __call__(self, points: Array) -> dict[str, Array]:
        """For each point `(n, 1)`, `(n,)` each: see `generalisation_course`.

        Raises:
            ValueError: a fraction that leaves a part empty, or another setting out of range.
        """
        rows = [self._one(self.experiments[int(index)]) for (index,) in points]
        return {name: np.array([row[name] for row in rows]) for name in COURSE}

    def _one(self, experiment: ModularExperiment) -> dict[str, float]:
        keep_freed_memory()
        start, looks = prepare_experiment(experiment), []
        device = next(start.model.parameters()).device
        pairs, targets = (part[start.test].to(device) for part in (start.task.pairs, start.task.targets))

        def look(step: int, loss: float) -> None:
            if (step + 1) % experiment.every == 0:
                with torch.no_grad():
                    logits = start.model(pairs)
                looks.append((step + 1, loss, mean_loss(logits, targets), accuracy(logits, targets)))
                if looks[-1][2] < self.done:
                    raise _GeneralisedError

        with suppress(_GeneralisedError):
            plan = TrainingPlan(experiment.steps, start.scheduler, (look,))
            fit(start.model, cross_entropy_in_double, start.batches, start.optimizer, plan)
        return generalisation_course(*np.array(looks, float).T)
