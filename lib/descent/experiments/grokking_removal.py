"""One direction is taken out of the weights of a run on addition, beside steps as long in other directions.

The direction is the first singular vector v of kept weights less their mean mu. A set of weights theta has the
coordinate v . (theta - mu) along it. Two things are called removal: the coordinate is set to the mean's, which is zero
in this formula, or the weights' own coordinate v . theta is set to zero. The first is that of LawrenceC's comment of
2022, with v and mu of a whole run; here both are also taken from the past of a checkpoint alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from descent.experiments.grokking import GrokkingRun, ModularExperiment
from descent.experiments.grokking_measures import first_lasting_step, mean_loss, train_and_test_losses
from descent.experiments.grokking_records import (
    LIMIT,
    STEPS,
    key_frequencies_of_run,
    make_induction_record,
    make_seed_records,
    make_undecayed_record,
    train_or_load,
)
from descent.repro.machine import cores
from descent.repro.records import Record, find_record, provenance, record_path
from descent.repro.seeding import deterministic, numpy_generator
from descent.spectra.fourier_modulo_p import restricted_logits
from descent.spectra.singular_values import gram_matrix, singular_spectrum

Array = NDArray[np.float64]
UNDECAYED = "removal-undecayed"
LOOK_STRIDE = 2  # kept weights from one look of a record to the next
CHORD = 21  # points on the straight line between two kept weights
SWAPPED = ("mean", "end", "shrink")  # steps whose effect is divided into waves and memory


@dataclass(frozen=True)
class Direction:
    """A direction of weights, and the mean from which coordinates along it count.

    Attributes:
        vector: `(P,)` float64 of length one; its sign is arbitrary.
        mean: `(P,)` float64.
    """

    vector: Array
    mean: Array

    def to_mean(self, weights: Array) -> Array:
        """The step `(P,)` that sets the coordinate of weights `(P,)` to that of the mean."""
        coordinate = float(self.vector @ (weights - self.mean))
        return -coordinate * self.vector

    def to_zero(self, weights: Array) -> Array:
        """The step `(P,)` that sets the weights' own coordinate to zero, which deletes the direction."""
        coordinate = float(self.vector @ weights)
        return -coordinate * self.vector


def principal_direction(rows: NDArray[np.floating], gram: Array, number: int = 0) -> Direction:
    """The singular vector `number`, from 0, of kept weights less their mean.

    Args:
        rows: `(m, P)`.
        gram: `(m, m)`, their Gram matrix.
        number: 0 for the direction along which the rows vary most.

    Raises:
        ValueError: the rows do not vary in so many directions, to rounding; or the matrix is not theirs.

    Examples:
        >>> rows = np.array([[3.0, 1.0], [1.0, 1.0], [-1.0, 1.0]])
        >>> found = principal_direction(rows, rows @ rows.T)
        >>> np.abs(found.vector).round(6).tolist(), found.mean.tolist()
        ([1.0, 0.0], [1.0, 1.0])
        >>> [(step.round(6) + 0.0).tolist() for step in (found.to_mean(rows[0]), found.to_zero(rows[0]))]
        [[-2.0, 0.0], [-3.0, 0.0]]
    """
    vectors = singular_spectrum(gram, centre=True).right(rows, number + 1)
    return Direction(np.ascontiguousarray(vectors[:, number]), rows.mean(0, dtype=np.float64))


@dataclass(frozen=True)
class KeptPath:
    """The kept weights of a run with what its removals need.

    Attributes:
        rows: `(m, P)`.
        gram: `(m, m)`, their Gram matrix.
        first, second: components 0 and 1 of all rows.
        end: `(P,)`, the weights after the last step.
        other: `(P,)`, a direction of another run, of length one.
    """

    rows: NDArray[np.floating]
    gram: Array
    first: Direction
    second: Direction
    end: Array
    other: Array

    @classmethod
    def of(cls, run: GrokkingRun, other: NDArray[np.floating]) -> KeptPath:
        """The path of a run; raises as `principal_direction` does."""
        rows, gram = run.stack.rows, gram_matrix(run.stack.rows)
        first, second = (principal_direction(rows, gram, number) for number in (0, 1))
        unit = other.astype(np.float64) / float(np.linalg.norm(other.astype(np.float64)))
        return cls(rows, gram, first, second, run.final().astype(np.float64), unit)

    def past(self, index: int) -> Direction:
        """Component 0 of the rows up to `index`, from 1, as it could be had at the time."""
        return principal_direction(self.rows[: index + 1], self.gram[: index + 1, : index + 1])

    def in_span(self, generator: np.random.Generator) -> Array:
        """A random direction `(P,)` of length one, evenly drawn from the span of the rows less their mean."""
        spectrum = singular_spectrum(self.gram, centre=True)
        count = int((spectrum.values > spectrum.floor).sum())
        mixed = spectrum.left[:, :count] @ (generator.standard_normal(count) / spectrum.values[:count])
        drawn: Array = (spectrum.transform.T @ mixed) @ self.rows
        return drawn / float(np.linalg.norm(drawn))


def removal_steps(path: KeptPath, index: int, generator: np.random.Generator) -> dict[str, Array]:
    """What is added to one row of a path, `(P,)` each: removals, and steps as long as the first of them.

    Args:
        path: a run's.
        index: of the row, at least 1.
        generator: of the random directions.

    Returns:
        `mean` and `zero`, the two removals along component 0 of the whole run; `past mean` and `past zero`, along that
        of the rows up to this one; `second mean` and `second zero`, along component 1. As long as `mean`: `end`
        straight to the last weights (or to them, where they are nearer); `shrink`, towards zero; `random`; `span`,
        random in the span of the rows; `other`, along another run's direction towards this run's mean. And `mean` in
        two parts: `along`, that along the way to the last weights, and `across`, the rest; `swapped`, the first part
        with one as long as the second in a random direction of the span, across the way too.
    """
    weights = path.rows[index].astype(np.float64)
    past, removed = path.past(index), path.first.to_mean(weights)
    size, way = float(np.linalg.norm(removed)), path.end - weights
    distance = float(np.linalg.norm(way))
    ahead = way / max(distance, float(np.finfo(float).tiny))
    along = float(ahead @ removed) * ahead
    aside = path.in_span(generator)
    aside -= float(ahead @ aside) * ahead
    aside *= float(np.linalg.norm(removed - along) / np.linalg.norm(aside))
    random, sideways = generator.standard_normal(len(weights)), float(path.other @ (path.first.mean - weights))
    return {
        "mean": removed,
        "zero": path.first.to_zero(weights),
        "past mean": past.to_mean(weights),
        "past zero": past.to_zero(weights),
        "second mean": path.second.to_mean(weights),
        "second zero": path.second.to_zero(weights),
        "end": min(size, distance) * ahead,
        "shrink": -size * weights / float(np.linalg.norm(weights)),
        "random": size * random / float(np.linalg.norm(random)),
        "span": size * path.in_span(generator),
        "other": size * float(np.sign(sideways)) * path.other,
        "along": along,
        "across": removed - along,
        "swapped": along + aside,
        "across swapped": aside,
    }


def losses_of_halves(
    run: GrokkingRun, before: Tensor, after: Tensor, frequencies: Sequence[int]
) -> tuple[float, float]:
    """The test losses of two mixtures of logits: waves of `after` with memory of `before`, and the other way round.

    The waves are the logits' part along the waves of a + b of these frequencies, with each class's mean; memory is the
    rest. `before` and `after` are logits `(n, p)` of all pairs; losses are in nats, mean per example.
    """
    logits = before.double(), after.double()
    waves = [restricted_logits(each, frequencies) for each in logits]
    mixed = (waves[1] + logits[0] - waves[0], waves[0] + logits[1] - waves[1])
    first, second = (mean_loss(each[run.test], run.task.targets[run.test]) for each in mixed)
    return first, second


def losses_on_chord(run: GrokkingRun, start: int) -> dict[str, Array]:
    """Training and test loss on the straight line from the kept weights number `start` to the last weights.

    Returns:
        `chord train_loss` and `chord test_loss`, `(CHORD,)` each, at equal distances, the ends included.
    """
    first, last = run.stack.rows[start].astype(np.float64), run.final().astype(np.float64)
    losses = train_and_test_losses(run, ((1 - part) * first + part * last for part in np.linspace(0, 1, CHORD)))
    return {f"chord {name}": losses[name] for name in ("train_loss", "test_loss")}


def measure_removal(
    run: GrokkingRun,
    other: NDArray[np.floating],
    frequencies: Sequence[int],
    stride: int,
    progress: str | None = None,
) -> dict[str, NDArray[Any]]:
    """The losses of a run's weights after each of `removal_steps`, at every so many of its kept weights.

    Args:
        run: a run on addition that kept at least three sets of weights.
        other: `(P,)`, a direction of another run.
        frequencies: the key ones of the run's last weights.
        stride: kept weights from one look to the next; the first look is at number 1.
        progress: text before a progress bar; None shows none.

    Returns:
        `steps` `(m,)`, `train_loss` `(m,)`, `test_loss` `(m,)` of the kept weights; `looks` `(n,)`, indices of kept
        weights; for each name of a step `test_loss NAME` `(n,)` and `length NAME` `(n,)`; for `mean`, `end`, `shrink`
        the test losses `waves NAME` `(n,)` and `memory NAME` `(n,)` of `losses_of_halves`; what `losses_on_chord` gives
        from where the training loss stays below 0.01, or from the last kept weights where it does not.

    Raises:
        ValueError: the stride is below 1, or leaves no look.
    """
    looks = np.arange(1, len(run.stack.rows), max(stride, 0) or len(run.stack.rows))
    if stride < 1 or not len(looks):
        raise ValueError(f"stride={stride}, {len(run.stack.rows)} kept weights: expected a stride of 1 or more, a look")
    path, generator = KeptPath.of(run, other), numpy_generator(run.experiment.seed, "removal")
    targets = run.task.targets[run.test]
    found: list[dict[str, float]] = []
    for index in tqdm(looks, desc=progress, disable=progress is None):
        one: dict[str, float] = {}
        weights = path.rows[index].astype(np.float64)
        before = run.logits(weights)
        for name, step in removal_steps(path, int(index), generator).items():
            after = run.logits(weights + step)
            one[f"length {name}"] = float(np.linalg.norm(step))
            one[f"test_loss {name}"] = mean_loss(after[run.test], targets)
            if name in SWAPPED:
                halves = losses_of_halves(run, before, after, frequencies)
                one[f"waves {name}"], one[f"memory {name}"] = halves
        found.append(one)
    losses = train_and_test_losses(run, path.rows)
    learned = first_lasting_step(losses["train_loss"], 0.01)
    start = len(path.rows) - 1 if learned is None else learned
    whole: dict[str, NDArray[Any]] = {name: losses[name] for name in ("train_loss", "test_loss")}
    whole |= {"steps": run.stack.steps.astype(float), "looks": looks, **losses_on_chord(run, start)}
    return {**whole, **{name: np.array([one[name] for one in found]) for name in found[0]}}


def removal_experiments(base: ModularExperiment) -> dict[str, ModularExperiment]:
    """Record -> its run: `removal-N` for each seed, and one without weight decay; `base` gives all else."""
    seeds = {f"removal-{seed}": replace(base, steps=LIMIT, seed=seed) for seed in STEPS}
    return {**seeds, UNDECAYED: replace(base, steps=LIMIT, seed=0, weight_decay=0.0)}


def removal_settings(name: str, base: ModularExperiment) -> dict[str, object]:
    """What the record `name` of a removal must have been made from."""
    experiments = removal_experiments(base)
    return {
        "experiment": experiments[name].digest(),
        "other": experiments[_other_of(name)].digest(),
        "stride": LOOK_STRIDE,
        "chord": CHORD,
    }


def _other_of(name: str) -> str:
    """The record of the run whose direction a record takes: that of the next seed; for the undecayed run seed 1."""
    seeds = list(STEPS)
    number = 0 if name == UNDECAYED else seeds.index(int(name.removeprefix("removal-")))
    return f"removal-{seeds[(number + 1) % len(seeds)]}"


def read_removal(root: Path, name: str, base: ModularExperiment) -> Record:
    """The record `name` of a removal, made by the experiments that would be trained today.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of other experiments; the message names the command that makes it again.
    """
    path = record_path(root, "grokking_basins", name)
    return Record.load(path, "make records CHAPTER=grokking_basins", **removal_settings(name, base))


def run_direction(run: GrokkingRun) -> Array:
    """Component 0 of all kept weights of a run, `(P,)`, of length one."""
    return principal_direction(run.stack.rows, gram_matrix(run.stack.rows)).vector


def make_removal_records(root: Path) -> None:
    """Make those records of removals that are missing.

    The runs stay in `_build/runs`, where one that was killed goes on. A record has what `measure_removal` gives; that
    of the first seed also `direction` `(P,)` float16, for a run that has no other beside it.
    """
    base = ModularExperiment()
    experiments = removal_experiments(base)
    for name, experiment in experiments.items():
        path, settings = record_path(root, "grokking_basins", name), removal_settings(name, base)
        if find_record(path, **settings):
            continue
        run, other = train_or_load(experiment, root), train_or_load(experiments[_other_of(name)], root)
        with deterministic(cores()):
            keys = key_frequencies_of_run(run)
            values = measure_removal(run, run_direction(other), keys, LOOK_STRIDE, name)
            if name == next(iter(experiments)):
                values["direction"] = run_direction(run).astype(np.float16)
        Record(name, values, {**settings, "key": keys}, provenance(experiment.seed)).save(path)


def make_grokking_basins(root: Path, scheduler: str) -> None:
    """Make what is missing of the records of the chapter `grokking_basins`, all on this machine."""
    for seed in STEPS:
        make_seed_records(seed, root)
    make_undecayed_record(root)
    make_induction_record(root)
    make_removal_records(root)


CHAPTERS = {"grokking_basins": make_grokking_basins}
