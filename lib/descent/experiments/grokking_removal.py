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

from descent.experiments.grokking import GrokkingRun, ModularExperiment, train_modular_transformer
from descent.experiments.grokking_measures import (
    accuracy,
    first_lasting_step,
    highest_between,
    mean_loss,
    reaches_as_long,
    train_and_test_losses,
)
from descent.experiments.grokking_records import (
    LIMIT,
    STEPS,
    frequency_sets,
    key_frequencies_of_run,
    make_induction_record,
    make_seed_records,
    make_undecayed_record,
    train_or_load,
)
from descent.repro.machine import cores
from descent.repro.numbers import check_whole
from descent.repro.records import Record, find_record, provenance, record_path, relative_difference
from descent.repro.seeding import deterministic, numpy_generator
from descent.spectra.fourier_modulo_p import restricted_logits
from descent.spectra.singular_values import gram_matrix, singular_spectrum

Array = NDArray[np.float64]
UNDECAYED = "removal-undecayed"
LOOK_STRIDE = 2  # kept weights from one look of a record to the next
SWAPPED = ("mean", "zero", "end", "shrink")  # steps whose effect is divided into waves and memory
REACHES = (4, 12)  # kept weights on each side of a look, between which straight lines are drawn
INNER = (0.25, 0.5, 0.75)  # places on these lines
TENTHS = tuple(tenth / 10 for tenth in range(1, 10))  # places on lines as long as that across the switch
EARLY = 1.25  # rows up to so many times the step of the switch give the direction of `early mean`
CONTROLS = {
    "mean": ("end", "shrink", "random", "span"),
    "zero": ("end", "shrink", "random", "span"),
    "past mean": ("shrink", "random"),
    "past zero": ("shrink", "random"),
}  # removal -> the steps that are taken as long as it


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
        """The path of a run.

        Raises:
            ValueError: `other` is no direction of these weights; and as `principal_direction`.
        """
        rows, gram, size = run.stack.rows, gram_matrix(run.stack.rows), run.stack.layout.size
        if np.shape(other) != (size,) or not (np.isfinite(other).all() and np.any(other)):
            raise ValueError(f"other of shape {np.shape(other)}: expected ({size},), finite numbers, not all zero")
        first, second = (principal_direction(rows, gram, number) for number in (0, 1))
        scaled = other.astype(np.float64) / float(np.abs(other).max())
        unit = scaled / float(np.linalg.norm(scaled))
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


def removal_steps(path: KeptPath, index: int, generator: np.random.Generator, known: int) -> dict[str, Array]:
    """What is added to one row of a path, `(P,)` each: removals, and steps as long as each of them.

    Args:
        path: a run's.
        index: of the row, at least 1.
        generator: of the random directions.
        known: number of the path's first rows from which the direction of `early mean` comes, at least 2.

    Returns:
        `mean` and `zero`, the two removals along component 0 of the whole run; `early mean`, to the mean, of the first
        `known` rows; `past mean` and `past zero`, of the rows up to this one; `second mean` and `second zero`, along
        component 1. As long as `mean`: `end` straight to the last weights (or to them, where they are nearer);
        `shrink`, towards zero; `random`; `span`, random in the span of the rows; `other`, along another run's direction
        towards this run's mean. The first four also as long as `zero`, and `shrink` and `random` as long as removals of
        the past, under `NAME of REMOVAL`. And `mean` in two parts, twice: `along` the way to the last weights and
        `across` it; `inward`, along the way to zero, and `beside` it. `swapped` is `along` with a part as long as
        `across` in a random direction of the span, across the way too, which alone is `across swapped`.
    """
    weights, past = path.rows[index].astype(np.float64), path.past(index)
    removals = {
        "mean": path.first.to_mean(weights),
        "zero": path.first.to_zero(weights),
        "past mean": past.to_mean(weights),
        "past zero": past.to_zero(weights),
    }
    way, sideways = path.end - weights, float(path.other @ (path.first.mean - weights))
    distance, size = float(np.linalg.norm(way)), float(np.linalg.norm(removals["mean"]))
    units = {
        "end": way / max(distance, float(np.finfo(float).tiny)),
        "shrink": -weights / float(np.linalg.norm(weights)),
        "random": _unit(generator.standard_normal(len(weights))),
        "span": path.in_span(generator),
    }
    steps = {**removals, "other": size * float(np.sign(sideways)) * path.other}
    for removal, names in CONTROLS.items():
        length = float(np.linalg.norm(removals[removal]))
        for name in names:
            control = name if removal == "mean" else f"{name} of {removal}"
            steps[control] = (min(length, distance) if name == "end" else length) * units[name]
    early = path.past(min(known, len(path.rows)) - 1)
    steps |= {"early mean": early.to_mean(weights), "second mean": path.second.to_mean(weights)}
    steps |= {"second zero": path.second.to_zero(weights), **_parts(removals["mean"], units)}
    aside = _across(path.in_span(generator), units["end"])
    steps["across swapped"] = float(np.linalg.norm(steps["across"])) * _unit(aside)
    steps["swapped"] = steps["along"] + steps["across swapped"]
    return steps


def _unit(vector: Array) -> Array:
    return vector / max(float(np.linalg.norm(vector)), float(np.finfo(float).tiny))


def _across(vector: Array, unit: Array) -> Array:
    return vector - float(unit @ vector) * unit


def _parts(removed: Array, units: dict[str, Array]) -> dict[str, Array]:
    """A step in two parts at right angles: along the way to the last weights, and along the way to zero."""
    across, beside = (_across(removed, units[name]) for name in ("end", "shrink"))
    return {"along": removed - across, "across": across, "inward": removed - beside, "beside": beside}


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
        `steps` `(m,)`, losses and accuracies `(m,)` of the kept weights as in `train_and_test_losses`; `looks` `(n,)`,
        indices of kept weights; for each name of a step `test_loss NAME`, `test_accuracy NAME` and `length NAME`
        `(n,)`; for those in SWAPPED the test losses `waves NAME` and `memory NAME` `(n,)` of `losses_of_halves`, and
        `waves random`, `memory random` of the step `mean` with as many other frequencies; `restricted`, the test loss
        `(n,)` of the waves alone; `reach long` `(n,)` of `reaches_as_long`; and what `highest_between` gives, under
        `line long NAME` of lines that reach so far, and under `line REACH NAME` of those of each of REACHES.

    Raises:
        ValueError: the run is not on addition, or kept too little; a stride below 1; and as `KeptPath.of` and, for the
            frequencies, `restricted_logits`.
    """
    rows, task = run.stack.rows, run.experiment.task
    check_whole(stride=stride)
    if task != "addition":
        raise ValueError(f"a run on {task}: expected one on addition, whose waves are those of a + b")
    if len(rows) < 3:
        raise ValueError(f"{len(rows)} kept weights: expected at least 3")
    looks = np.arange(1, len(rows), stride)
    path, generator = KeptPath.of(run, other), numpy_generator(run.experiment.seed, "removal")
    losses = train_and_test_losses(run, rows)
    switch = first_lasting_step(losses["test_loss"], 1.0)
    known = len(rows) if switch is None else max(2, round(EARLY * switch) + 1)
    drawn = frequency_sets(frequencies, [], run.experiment.p, run.experiment.seed)["random"]
    found: list[dict[str, float]] = []
    for index in tqdm(looks, desc=progress, disable=progress is None):
        weights = rows[index].astype(np.float64)
        steps = removal_steps(path, int(index), generator, known)
        found.append(_measure_steps(run, weights, steps, frequencies, drawn))
    whole: dict[str, NDArray[Any]] = {"steps": run.stack.steps.astype(float), **losses, "looks": looks}
    whole["reach long"] = reaches_as_long(path.gram, looks, switch, REACHES[0])
    lines = {"long": highest_between(run, looks, whole["reach long"], TENTHS)}
    lines |= {str(reach): highest_between(run, looks, np.full(len(looks), reach), INNER) for reach in REACHES}
    whole |= {f"line {name} {kind}": values for name, line in lines.items() for kind, values in line.items()}
    return {**whole, **{name: np.array([one[name] for one in found]) for name in found[0]}}


def _measure_steps(
    run: GrokkingRun, weights: Array, steps: dict[str, Array], frequencies: Sequence[int], drawn: Sequence[int]
) -> dict[str, float]:
    """What `measure_removal` keeps of one look; `drawn` are the random frequencies."""
    before, targets = run.logits(weights), run.task.targets[run.test]
    one = {"restricted": mean_loss(restricted_logits(before.double(), frequencies)[run.test], targets)}
    for name, step in steps.items():
        after = run.logits(weights + step)
        one[f"length {name}"] = float(np.linalg.norm(step))
        one[f"test_loss {name}"] = mean_loss(after[run.test], targets)
        one[f"test_accuracy {name}"] = accuracy(after[run.test], targets)
        sets = {name: frequencies} if name in SWAPPED else {}
        for label, chosen in (sets | ({"random": drawn} if name == "mean" else {})).items():
            one[f"waves {label}"], one[f"memory {label}"] = losses_of_halves(run, before, after, chosen)
    return one


def recompute_removal(record: Record, experiment: ModularExperiment) -> float:
    """Train the first steps of a recorded run again and take the past out of them; the largest relative difference.

    Compared are the lengths and test losses of the removals of the past at the first look, which need no later weights.
    """
    run = train_modular_transformer(replace(experiment, steps=1 + experiment.every))
    rows, largest = run.stack.rows, 0.0
    weights, past = rows[1].astype(np.float64), principal_direction(rows, gram_matrix(rows))
    for name, step in (("past mean", past.to_mean(weights)), ("past zero", past.to_zero(weights))):
        logits = run.logits(weights + step)[run.test]
        anew = {"length": float(np.linalg.norm(step)), "test_loss": mean_loss(logits, run.task.targets[run.test])}
        kept = {kind: record.values[f"{kind} {name}"][:1] for kind in anew}
        parts = (relative_difference(kept[kind], np.array([anew[kind]])).max() for kind in anew)
        largest = max(largest, *map(float, parts))
    return largest


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
        "lines": [*REACHES, *INNER, *TENTHS],
        "early": EARLY,
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
