"""The records of the chapters on grokking: runs at the source's scale, and when such runs generalise.

A run's weights, hundreds of megabytes, stay in `_build/runs`, where a killed run finds them; its records hold what was
measured on them, and the last weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from descent.experiments.grokking import GrokkingRun, ModularExperiment, train_modular_transformer
from descent.experiments.grokking_measures import (
    GeneralisationTimes,
    embedding_frequencies,
    path_gradients,
    progress_measures,
    train_and_test_losses,
    weight_and_logit_grams,
)
from descent.experiments.induction_heads import InductionExperiment, InductionRun, train_induction
from descent.repro.machine import cores
from descent.repro.records import Record, find_record, provenance, record_path, relative_difference
from descent.repro.seeding import deterministic, numpy_generator
from descent.repro.sweeps import Sweep, sweep
from descent.spectra.fourier_modulo_p import key_frequencies
from descent.spectra.singular_values import gram_matrix, singular_spectrum

STEPS = {0: 40_000, 1: 15_000, 2: 15_000, 3: 15_000, 4: 15_000}  # of the runs, by seed
COMPONENTS, BATCH = 8, 256
LIMIT = 15_000  # steps of a run on another operation or without weight decay
LOOK_EVERY = 50  # steps
RECHECKED = 2  # kept weights of a run, the first ones, that a recheck trains again
EARLY = 400  # steps after which a recheck of `others` ends
OPERATIONS = ("subtraction", "squares", "division", "s5")
Array = NDArray[np.float64]


def key_frequencies_of_run(run: GrokkingRun) -> list[int]:
    """The key frequencies of the last weights of a run on addition: those of more than one neuron in a hundred."""
    with deterministic(1):
        neurons = run.model.activations(run.task.pairs).neurons.detach()
    return key_frequencies(neurons, fewest=1 + run.experiment.hidden // 100)


def frequency_sets(keys: Sequence[int], others: Sequence[int], p: int, seed: int) -> dict[str, list[int]]:
    """The key frequencies and two controls.

    Args:
        keys: the key frequencies of a run on addition modulo p.
        others: those of a run with another seed.
        p: the modulus, which has the frequencies 1 to p // 2.
        seed: decides the random set.

    Returns:
        `key`; `random`, as many of the other frequencies; `other seed`, those in `others` that are not key.
    """
    rest = sorted(set(range(1, p // 2 + 1)) - set(keys))
    random = numpy_generator(seed, "frequencies").choice(rest, min(len(keys), len(rest)), replace=False)
    return {"key": list(keys), "random": sorted(random.tolist()), "other seed": sorted(set(others) - set(keys))}


def measure_curves(
    run: GrokkingRun, sets: Mapping[str, Sequence[int]], progress: str | None = None
) -> dict[str, Array]:
    """The curves of one run for the chapter `grokking`.

    Returns:
        `steps` `(m,)`; `final`, the last weights `(P,)`; what `train_and_test_losses` and `progress_measures` give.
    """
    first = {"steps": run.stack.steps.astype(float), "final": run.final()}
    losses = train_and_test_losses(run, run.stack.rows, progress)
    return first | losses | progress_measures(run, sets, progress=progress)


def measure_spectra(run: GrokkingRun, count: int, progress: str | None = None) -> dict[str, Array]:
    """What the chapter `grokking_basins` takes from the kept weights `(m, P)` of one run.

    Args:
        run: a run on addition.
        count: number of singular components.
        progress: text before the progress bars; None shows none.

    Returns:
        Gram matrices `(m, m)`: `weights`, `logits`, `gradients` (full batch), `batch gradients` (of 256 examples, or of
        an eighth of them). `gradient frequencies` `(m, (p - 1) / 2)`. Of the singular vectors of the weights as they
        are, `raw frequencies` `(count, (p - 1) / 2)` of their W_E; of those less their mean, `centred frequencies`.
    """
    rows = run.stack.rows
    gradients = path_gradients(run, rows, progress=progress)
    measured = {**weight_and_logit_grams(run, progress), "gradients": gram_matrix(gradients)}
    measured["gradient frequencies"] = embedding_frequencies(run, gradients)
    measured["batch gradients"] = gram_matrix(path_gradients(run, rows, min(BATCH, len(run.train) // 8), progress))
    for name, centre in (("raw", False), ("centred", True)):
        spectrum = singular_spectrum(measured["weights"], centre)
        measured[f"{name} frequencies"] = embedding_frequencies(run, spectrum.right(rows, count).T)
    return measured


def train_or_load(experiment: ModularExperiment, root: Path) -> GrokkingRun:
    """Train a run in its folder below `_build/runs`, or load it from there where it is finished."""
    name = f"{experiment.task}, seed {experiment.seed}"
    with deterministic(cores()):
        return train_modular_transformer(experiment, root / "_build" / "runs" / experiment.digest(), name)


def recorded_experiments(name: str, base: ModularExperiment) -> list[ModularExperiment]:
    """The experiments of the record `name`, of which `base` gives all but task, data fraction, decay, steps and seed.

    Of `seed-N` the run and its control, the next seed; of `others` in the order of OPERATIONS.
    """
    if name == "others":
        return [replace(base, task=task, steps=LIMIT, every=LOOK_EVERY, seed=0) for task in OPERATIONS]
    if name == "undecayed":
        return [replace(base, weight_decay=0.0, steps=LIMIT, seed=0)]
    seed = int(name.removeprefix("seed-"))
    return [replace(base, steps=STEPS[each], seed=each) for each in (seed, (seed + 1) % len(STEPS))]


def record_settings(name: str, base: ModularExperiment) -> dict[str, Any]:
    """What the record `name` must have been made from; arguments as for `recorded_experiments`."""
    digests = [experiment.digest() for experiment in recorded_experiments(name, base)]
    if name == "others":
        return {"experiments": digests, "tasks": list(OPERATIONS), "limit": LIMIT}
    if name == "undecayed":
        return {"experiment": digests[0]}
    return {"experiment": digests[0], "control": digests[1]}


def read_record(root: Path, chapter: str, name: str, base: ModularExperiment) -> Record:
    """The record `name` of a chapter, made by the experiments that would be trained today.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of other experiments; the message names the command that makes it again.
    """
    path = record_path(root, chapter, name)
    return Record.load(path, f"make records CHAPTER={chapter}", **record_settings(name, base))


def recompute_start(record: Record, experiment: ModularExperiment) -> float:
    """Train the first steps of a recorded run again; the largest relative difference of what is measured on them.

    Compared are, of `train_loss`, `test_loss` and the Gram matrices `weights` and `logits`, those that the record
    holds, at the first `RECHECKED` kept weights; of a matrix relative to its largest entry. On one processor the
    difference is rounding; on another it grows to some thousandths within a hundred steps, while the losses of another
    seed differ by hundredths.
    """
    run = train_modular_transformer(replace(experiment, steps=1 + (RECHECKED - 1) * experiment.every))
    anew = {**train_and_test_losses(run, run.stack.rows), **weight_and_logit_grams(run)}
    largest = []
    for name in {"train_loss", "test_loss", "weights", "logits"} & record.values.keys():
        kept = record.values[name][tuple(slice(size) for size in anew[name].shape)]
        scale = float(np.abs(anew[name]).max()) if kept.ndim == 2 else None
        largest.append(float(relative_difference(kept, anew[name], scale).max()))
    return max(largest)


def recompute_memorised(record: Record, base: ModularExperiment, seed: int) -> float:
    """Train a run of `others` again until it has memorised; the relative difference of that step.

    The run is drawn by `seed` from those that had memorised by the step `EARLY`.
    """
    index = numpy_generator(seed, record.name).choice(np.flatnonzero(record.values["memorised"] <= EARLY))
    experiment = recorded_experiments(record.name, base)[index]
    anew = GeneralisationTimes((replace(experiment, steps=EARLY),))(np.zeros((1, 1)))
    return float(relative_difference(record.values["memorised"][index], anew["memorised"][0]))


def make_seed_records(seed: int, root: Path) -> None:
    """Make the record of a seed for each of the two chapters; the control frequencies are those of the next seed."""
    name = f"seed-{seed}"
    first, second = recorded_experiments(name, ModularExperiment())
    paths = [record_path(root, chapter, name) for chapter in ("grokking", "grokking_basins")]
    digests = record_settings(name, ModularExperiment())
    if all(find_record(path, **digests) for path in paths):
        return
    run, control = train_or_load(first, root), train_or_load(second, root)
    keys = key_frequencies_of_run(run)
    sets = frequency_sets(keys, key_frequencies_of_run(control), run.experiment.p, seed)
    settings = {**digests, "steps": run.experiment.steps, "seed": seed, "sets": sets}
    with deterministic(cores()):
        measured = measure_curves(run, sets, f"seed {seed}"), measure_spectra(run, COMPONENTS, f"seed {seed}")
        for path, values in zip(paths, measured, strict=True):
            Record(f"seed-{seed}", values, settings, provenance(seed)).save(path)


def _make_missing(path: Path, settings: dict[str, Any], measure: Callable[[], dict[str, Array]]) -> None:
    """Measure a record and keep it, unless there is one with these settings."""
    if not find_record(path, **settings):
        Record(path.stem, measure(), settings, provenance(settings.get("seed"))).save(path)


def make_operations_record(root: Path, scheduler: str) -> None:
    """Make the record of when runs on other operations generalise, in the order of OPERATIONS."""
    base = ModularExperiment()
    experiments, path = recorded_experiments("others", base), record_path(root, "grokking", "others")
    task, points = GeneralisationTimes(tuple(experiments)), np.arange(len(experiments), dtype=float)[:, None]
    folder = root / "_build" / "sweeps" / "grokking" / task.key()
    how = Sweep(scheduler, folder, 1, "operations", recompute=False)  # a point is a whole training
    _make_missing(path, record_settings("others", base), lambda: sweep(task, points, how, task.key()))


def make_undecayed_record(root: Path) -> None:
    """Make the record of a run on addition without weight decay: `steps` `(m,)`, losses and two Gram matrices."""
    (experiment,) = recorded_experiments("undecayed", ModularExperiment())

    def measure() -> dict[str, Array]:
        run = train_or_load(experiment, root)
        with deterministic(cores()):
            losses = train_and_test_losses(run, run.stack.rows)
            return {"steps": run.stack.steps.astype(float), **losses, **weight_and_logit_grams(run, "no decay")}

    settings = record_settings("undecayed", ModularExperiment())
    _make_missing(record_path(root, "grokking_basins", "undecayed"), settings, measure)


def measure_copying(run: InductionRun) -> dict[str, Array]:
    """The losses of predictable tokens at `looks` `(m,)`: their mean `repeated` `(m,)` and their `gram` `(m, m)`."""
    losses = np.ascontiguousarray(run.token_losses[:, run.predictable])
    return {"looks": run.looks.astype(float), "repeated": losses.mean(1, dtype=float), "gram": gram_matrix(losses)}


def make_induction_record(root: Path) -> None:
    """Make the record of `measure_copying` at the defaults of `InductionExperiment`."""
    experiment = InductionExperiment()

    def measure() -> dict[str, Array]:
        with deterministic(cores()):
            return measure_copying(train_induction(experiment, progress="induction"))

    _make_missing(record_path(root, "grokking_basins", "induction"), asdict(experiment), measure)


def make_grokking(root: Path, scheduler: str) -> None:
    """Make what is missing of `seed-N` and `others`; the shorter runs go to the scheduler."""
    for seed in STEPS:
        make_seed_records(seed, root)
    make_operations_record(root, scheduler)
