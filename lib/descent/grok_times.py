"""When runs on tables of an operation generalise, over data fractions and weight decays (Nanda et al. 2023, 5.3)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from descent.grok_measures import lasting
from descent.grokking import Experiment, cross_entropy_in_double, prepared
from descent.training import Plan, fit

Array = NDArray[np.float64]


class _GeneralisedError(Exception):
    """The run has generalised."""


@dataclass(frozen=True)
class GrokTimes:
    """A task of `descent.sweeps.sweep`, whose points are (fraction of the data, weight decay, seed).

    A run ends when its test loss is below `done`, or after `experiment.steps`.

    Attributes:
        experiment: all that a point leaves open; its `every` is the number of steps between looks at the losses.
        done: nats, mean per example; below 1.
    """

    experiment: Experiment
    done: float = 0.01

    def __call__(self, points: Array) -> dict[str, Array]:
        """For each point `(n, 3)`, `(n,)` each: what `fit` finds on the way, in steps and nats.

        `generalised`: steps until the test loss stays below 1, infinite where it does not; `memorised`: until the
        training loss stays below 0.01; `peak`: the largest test loss.

        Raises:
            ValueError: a fraction that leaves a part empty, or another setting out of range.
        """
        rows = [self._one(float(fraction), float(decay), int(seed)) for fraction, decay, seed in points]
        return dict(zip(("generalised", "memorised", "peak"), np.array(rows).T, strict=True))

    def _one(self, fraction: float, decay: float, seed: int) -> tuple[float, float, float]:
        experiment = replace(self.experiment, fraction=fraction, weight_decay=decay, seed=seed)
        start, curve = prepared(experiment), []
        pairs, targets = start.task.pairs[start.test], start.task.targets[start.test]

        def look(step: int, loss: float) -> None:
            if (step + 1) % experiment.every == 0:
                with torch.no_grad():
                    test = float(cross_entropy_in_double(start.model, (pairs, targets)))
                curve.append((test, loss))
                if test < self.done:
                    raise _GeneralisedError

        plan = Plan(experiment.steps, start.scheduler, (look,))
        with suppress(_GeneralisedError):
            fit(start.model, cross_entropy_in_double, start.batches, start.optimizer, plan)
        test, shown = np.array(curve).reshape(-1, 2).T
        times = [lasting(test, 1.0), lasting(shown, 0.01)]
        first, second = (np.inf if index is None else (index + 1) * experiment.every for index in times)
        return first, second, float(test.max(initial=0.0))
