"""What is measured along a run that generalises late, and when such runs generalise (Nanda et al. 2023, section 5)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from descent.experiments.grokking import GrokkingRun, ModularExperiment, cross_entropy_in_double, prepare_experiment
from descent.models.flat_weights import flatten
from descent.repro.machine import keep_freed_memory
from descent.spectra.fourier_modulo_p import (
    answer_coefficients,
    answer_share,
    excluded_logits,
    frequency_norms,
    gini,
    restricted_logits,
)
from descent.spectra.singular_values import gram_matrix
from descent.training.loop import MiniBatches, TrainingPlan, fit

Array = NDArray[np.float64]


def mean_loss(logits: Tensor, targets: Tensor) -> float:
    """Cross-entropy in nats, mean per example, with the softmax in float64; `(n, classes)`, `(n,)`."""
    return float(nn.functional.cross_entropy(logits.double(), targets))


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """The share of examples whose largest logit is the target's; `(n, classes)`, `(n,)`. NaN if a logit is."""
    right = (logits.argmax(1) == targets).double().mean()
    return math.nan if logits.isnan().any() else float(right)


def train_and_test_losses(
    run: GrokkingRun, rows: Iterable[NDArray[np.floating]], progress: str | None = None
) -> dict[str, Array]:
    """Loss (nats, mean per example) and accuracy on the two parts of the examples, for flat weights `(P,)` each.

    Returns:
        `train_loss`, `test_loss`, `train_accuracy`, `test_accuracy`, one `(len(rows),)` each.
    """
    measured = []
    for row in tqdm(rows, desc=progress, disable=progress is None):
        logits, targets = run.logits(row), run.task.targets
        parts = [(logits[part], targets[part]) for part in (run.train, run.test)]
        measured.append([mean_loss(*part) for part in parts] + [accuracy(*part) for part in parts])
    names = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    return dict(zip(names, np.array(measured).reshape(-1, 4).T, strict=True))


def progress_measures(
    run: GrokkingRun,
    sets: Mapping[str, Sequence[int]],
    rows: NDArray[np.floating] | None = None,
    progress: str | None = None,
) -> dict[str, Array]:
    """The measures of Nanda et al. 2023 (section 5.1) along a run on addition, for several sets of frequencies.

    Args:
        run: a run on addition modulo an odd p.
        sets: name -> frequencies, such as the key ones of the final weights, and controls.
        rows: `(m, P)` flat weights; None takes those that the run kept.
        progress: text before a progress bar; None shows none.

    Returns:
        Arrays `(m,)`: `squares` (sum of squared weights), `gini_embedding` and `gini_map` (of the norms of the
        frequencies of W_E and of the neuron-logit map); for each set `restricted_loss`, `restricted_accuracy` (both on
        all examples), `excluded_loss` (on training examples) and `explained` (share of the logits' variance), each with
        " name" behind it; and `coefficients name` `(m, len(frequencies))`, the logits' inner products with the waves
        of a + b - c.
    """
    measured: dict[str, list[float | list[float]]] = {}

    def note(name: str, value: float | list[float]) -> None:
        measured.setdefault(name, []).append(value)

    targets = run.task.targets
    for row in tqdm(run.stack.rows if rows is None else rows, desc=progress, disable=progress is None):
        model = run.at(row)
        with torch.no_grad():
            logits = model(run.task.pairs)[:, :-1].double()
            note("squares", float(np.square(row, dtype=np.float64).sum()))
            note("gini_embedding", gini(frequency_norms(model.W_E[:, :-1].T)))
            note("gini_map", gini(frequency_norms(model.neuron_logit_map().T)))
        for name, frequencies in sets.items():
            restricted, excluded = restricted_logits(logits, frequencies), excluded_logits(logits, frequencies)
            note(f"restricted_loss {name}", mean_loss(restricted, targets))
            note(f"restricted_accuracy {name}", accuracy(restricted, targets))
            note(f"excluded_loss {name}", mean_loss(excluded[run.train], targets[run.train]))
            note(f"explained {name}", answer_share(logits, frequencies))
            note(f"coefficients {name}", answer_coefficients(logits, frequencies).tolist())
    return {name: np.array(values) for name, values in measured.items()}


def path_gradients(
    run: GrokkingRun, rows: NDArray[np.floating], batch_size: int | None = None, progress: str | None = None
) -> NDArray[np.float32]:
    """The gradient of the training loss at each of `rows`, `(m, P)` (loss per unit of weight, mean per example).

    Args:
        run: gives task and split.
        rows: `(m, P)` flat weights.
        batch_size: examples of the mini-batch that each row has of its own; None takes all training examples.
        progress: text before a progress bar; None shows none.
    """
    examples = run.task.pairs[run.train], run.task.targets[run.train]
    batches = MiniBatches(examples, batch_size or len(run.train), run.experiment.seed)
    gradients = np.empty(rows.shape, np.float32)
    for index, row in enumerate(tqdm(rows, desc=progress, disable=progress is None)):
        model = run.at(row)
        cross_entropy_in_double(model, batches(index)).backward()  # type: ignore[no-untyped-call]
        parts = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
        gradients[index] = flatten(parts)
    return gradients


def weight_and_logit_grams(run: GrokkingRun, progress: str | None = None) -> dict[str, Array]:
    """Gram matrices `(m, m)` over the kept sets of weights: of the `weights`, and of the `logits` of all examples.

    They determine the principal components over training, except for their directions.
    """
    rows = run.stack.rows
    logits = np.empty((len(rows), len(run.task) * run.task.symbols), np.float32)
    for index, row in enumerate(tqdm(rows, desc=progress, disable=progress is None)):
        logits[index] = run.logits(row).flatten().numpy()
    return {"weights": gram_matrix(rows), "logits": gram_matrix(logits)}


def embedding_frequencies(run: GrokkingRun, rows: NDArray[np.floating]) -> Array:
    """The norm of each frequency in the W_E part of flat vectors, `(m, P) -> (m, (p - 1) / 2)`, in their units.

    The vectors may be weights, gradients or singular vectors; the token for "=" and the constant are left out.
    """
    part = run.stack.layout.slices()["W_E"]
    tables = torch.from_numpy(np.array(rows[:, part], np.float64)).view(len(rows), -1, run.task.symbols + 1)
    return np.stack([frequency_norms(table[:, :-1].T).numpy() for table in tables])


def first_lasting_step(values: Array, below: float) -> int | None:
    """The first index from which all values `(m,)` are below a threshold; None where the last one is not."""
    above = np.flatnonzero(~(np.asarray(values) < below))
    first = int(above[-1]) + 1 if len(above) else 0
    return first if first < len(values) else None


def generalisation_course(steps: Array, train_loss: Array, test_loss: Array, test_accuracy: Array) -> dict[str, float]:
    """Sum up the curves `(m,)` of a run, measured at `steps` `(m,)`.

    Returns:
        `generalised`, the step from which the test loss stays below 1 nat, infinite where it does not; `memorised`,
        that from which the training loss stays below 0.01; `peak`, the largest test loss; `accuracy`, the last share
        of right answers on test examples.
    """
    indices = {"generalised": first_lasting_step(test_loss, 1.0), "memorised": first_lasting_step(train_loss, 0.01)}
    times = {name: np.inf if index is None else float(steps[index]) for name, index in indices.items()}
    return {**times, "peak": float(test_loss.max()), "accuracy": float(test_accuracy[-1])}


class _GeneralisedError(Exception):
    """Ends a training whose test loss is low enough."""


@dataclass(frozen=True)
class GeneralisationTimes:
    """A task of `descent.repro.sweeps.sweep`: its points are indices of experiments, its values their courses.

    A run ends when its test loss is below `done`, or after its `steps` (Nanda et al. 2023, section 5.3).

    Attributes:
        experiments: their `every` is the number of steps between looks at the losses.
        done: nats, mean per example; below 1.

    Raises:
        ValueError: an experiment that ends before the first look.
    """

    experiments: tuple[ModularExperiment, ...]
    done: float = 0.01

    def __post_init__(self) -> None:
        for each in self.experiments:
            if each.every > each.steps:
                raise ValueError(f"every={each.every}, steps={each.steps}: expected a look before the run ends")

    def key(self) -> str:
        """Twelve hexadecimal digits that name the experiments and `done`."""
        digests = " ".join(experiment.digest() for experiment in self.experiments)
        return hashlib.sha256(f"{digests} until {self.done}".encode()).hexdigest()[:12]

    def __call__(self, points: Array) -> dict[str, Array]:
        """The values of `generalisation_course` for each point `(n, 1)`, `(n,)` each.

        Raises:
            ValueError: a fraction that leaves a part empty, or another setting out of range.
        """
        courses = [self._course(self.experiments[int(index)]) for (index,) in points]
        return {name: np.array([course[name] for course in courses]) for name in courses[0]}

    def _course(self, experiment: ModularExperiment) -> dict[str, float]:
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


def highest_between(
    run: GrokkingRun, looks: NDArray[np.integer], reaches: Array, places: Sequence[float]
) -> dict[str, Array]:
    """How high the loss is on the straight line that reaches so many kept weights before and after each look.

    Where a reach is no whole number, the line ends on the straight way from one kept set of weights to the next.

    Args:
        run: its kept weights.
        looks: `(n,)`, indices of kept weights.
        reaches: `(n,)`; NaN for no line.
        places: where on a line the losses are taken, 0 to 1.

    Returns:
        `train_loss` and `test_loss` `(n,)`, the highest of the places; `ends` `(n,)`, the training loss of the higher
        end. NaN where there is no line, or it would begin before the first kept weights or end after the last ones.

    Raises:
        ValueError: a look that is none of the kept weights, no place, or a place beyond the line.
    """
    rows, found = run.stack.rows, np.full((3, len(looks)), np.nan)
    if len(outside := [int(look) for look in looks if not 0 <= look < len(rows)]):
        raise ValueError(f"looks {outside}: expected indices of kept weights, 0 to {len(rows) - 1}")
    if not (len(places) and min(places) >= 0 and max(places) <= 1):
        raise ValueError(f"places={list(places)}: expected one or more, 0 to 1")
    for number, (look, reach) in enumerate(zip(looks, reaches, strict=True)):
        if not (0 < reach <= min(look, len(rows) - 1 - look)):
            continue
        near, part = math.floor(reach), reach - math.floor(reach)
        far = min(near + 1, look, len(rows) - 1 - look)
        sides = ((rows[look + way * each].astype(np.float64) for each in (near, far)) for way in (-1, 1))
        before, after = ((1 - part) * nearer + part * farther for nearer, farther in sides)
        losses = train_and_test_losses(run, ((1 - place) * before + place * after for place in (0, 1, *places)))
        inside = (losses[name][2:].max() for name in ("train_loss", "test_loss"))
        found[:, number] = *inside, losses["train_loss"][:2].max()
    return dict(zip(("train_loss", "test_loss", "ends"), found, strict=True))


def reaches_as_long(gram: Array, looks: NDArray[np.integer], switch: int | None, reach: int) -> Array:
    """How far the line around each look has to reach to be as long in weights as that across the switch.

    Args:
        gram: `(m, m)`, the Gram matrix of kept weights.
        looks: `(n,)`, indices of kept weights.
        switch: index of the kept weights where the test loss has dropped; None for nowhere.
        reach: of the line across it, to each side of the look nearest to it.

    Returns:
        `(n,)` numbers of kept weights, the least that do, between which the ends move straight; NaN where none does, or
        no line lies across the switch.
    """

    def product(look: int, one: Any, other: Any) -> Any:  # of the lines that reach so far
        ends = gram[look + one, look + other], gram[look - one, look - other]
        return sum(ends) - gram[look + one, look - other] - gram[look - one, look + other]

    found = np.full(len(looks), np.nan)
    middle = -1 if switch is None or not len(looks) else int(looks[np.abs(looks - switch).argmin()])
    if not (0 < reach <= min(middle, len(gram) - 1 - middle)):
        return found
    wanted = product(middle, reach, reach)
    for number, look in enumerate(looks.tolist()):
        reaches = np.arange(min(look, len(gram) - 1 - look) + 1)
        squares = product(look, reaches, reaches)
        if squares.max() >= wanted:
            far = int((squares >= wanted).argmax())
            near, mixed = far - 1, product(look, far - 1, far)
            bend, slope = squares[near] - 2 * mixed + squares[far], mixed - squares[near]
            root = math.sqrt(slope**2 + bend * (wanted - squares[near]))
            found[number] = near + (root - slope) / bend  # |(1 - f) D_near + f D_far|^2 = wanted
    found[looks == middle] = reach
    return found
