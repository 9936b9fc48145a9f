"""The records of the chapters on grokking: runs at the source's scale, and when such runs generalise.

A run's weights, hundreds of megabytes, stay in `_build/runs`, where a killed run finds them; its records hold what was
measured on them, and the last weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from descent.experiments.grokking import GrokkingRun, ModularExperiment, train_modular_transformer
from descent.experiments.grokking_measures import (
    GeneralisationTimes,
    embedding_frequencies,
    losses_without_components,
    path_gradients,
    progress_measures,
    train_and_test_losses,
    weight_and_logit_grams,
)
from descent.experiments.induction_heads import InductionExperiment, InductionRun, train_induction
from descent.repro.machine import cores
from descent.repro.records import Record, find_record, provenance, record_path
from descent.repro.seeding import deterministic, numpy_generator
from descent.repro.sweeps import Sweep, sweep
from descent.spectra.fourier_modulo_p import key_frequencies
from descent.spectra.singular_values import gram_matrix, singular_spectrum

STEPS = {0: 40_000, 1: 15_000, 2: 15_000, 3: 15_000, 4: 15_000}  # of the runs, by seed
COMPONENTS, BATCH = 8, 256
FRACTIONS, DECAYS, SEEDS = (0.25, 0.3, 0.35, 0.4, 0.5, 0.6), (4.0, 2.0, 1.0, 0.5), (0, 1, 2)
LIMIT = 15_000  # steps of a run on another operation or without weight decay
GRID_LIMIT = 5_000  # steps of a run of the grid of fractions and decays
LOOK_EVERY = 50  # steps
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
        an eighth of them). `gradient frequencies` `(m, (p - 1) / 2)`. Of the weights as they are (`raw`) and less
        their mean (`centred`): `raw frequencies` `(count, (p - 1) / 2)` of the singular vectors' W_E, and
        `raw test_loss` and so on, see `losses_without_components`.
    """
    rows = run.stack.rows
    gradients = path_gradients(run, rows, progress=progress)
    measured = {**weight_and_logit_grams(run, progress), "gradients": gram_matrix(gradients)}
    measured["gradient frequencies"] = embedding_frequencies(run, gradients)
    measured["batch gradients"] = gram_matrix(path_gradients(run, rows, min(BATCH, len(run.train) // 8), progress))
    for name, centre in (("raw", False), ("centred", True)):
        spectrum = singular_spectrum(measured["weights"], centre)
        measured[f"{name} frequencies"] = embedding_frequencies(run, spectrum.right(rows, count).T)
        losses = losses_without_components(run, spectrum, count, progress)
        measured |= {f"{name} {curve}": values for curve, values in losses.items()}
    return measured


def train_or_load(experiment: ModularExperiment, root: Path) -> GrokkingRun:
    """Train a run in its folder below `_build/runs`, or load it from there where it is finished."""
    name = f"{experiment.task}, seed {experiment.seed}"
    with deterministic(cores()):
        return train_modular_transformer(experiment, root / "_build" / "runs" / experiment.digest(), name)


def make_seed_records(seed: int, root: Path) -> None:
    """Make the record of a seed for each of the two chapters; the control frequencies are those of the next seed."""
    following = (seed + 1) % len(STEPS)
    first, second = (ModularExperiment(steps=STEPS[each], seed=each) for each in (seed, following))
    paths = [record_path(root, chapter, f"seed-{seed}") for chapter in ("grokking", "grokking_basins")]
    digests = {"experiment": first.digest(), "control": second.digest()}
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


def sweep_times(experiments: Sequence[ModularExperiment], root: Path, scheduler: str, name: str) -> dict[str, Array]:
    """The values of `GeneralisationTimes` for these experiments, `(n,)` each; a killed sweep goes on."""
    task, folder = GeneralisationTimes(tuple(experiments)), root / "_build" / "sweeps" / "grokking"
    points = np.arange(len(experiments), dtype=float)[:, None]
    return sweep(task, points, Sweep(scheduler, folder / task.key(), 1, name), task.key())


def _make_missing(path: Path, settings: dict[str, Any], measure: Callable[[], dict[str, Array]]) -> None:
    """Measure a record and keep it, unless there is one with these settings."""
    if not find_record(path, **settings):
        Record(path.stem, measure(), settings, provenance(settings.get("seed"))).save(path)


def make_operations_record(root: Path, scheduler: str) -> None:
    """Make the record of when runs on other operations generalise, in the order of OPERATIONS."""
    experiments = [ModularExperiment(task=task, steps=LIMIT, every=LOOK_EVERY) for task in OPERATIONS]
    settings = {"experiments": [each.digest() for each in experiments], "tasks": list(OPERATIONS), "limit": LIMIT}
    path = record_path(root, "grokking", "others")
    _make_missing(path, settings, lambda: sweep_times(experiments, root, scheduler, "operations"))


def make_undecayed_record(root: Path) -> None:
    """Make the record of a run on addition without weight decay: `steps` `(m,)`, losses and two Gram matrices."""
    experiment = ModularExperiment(weight_decay=0.0, steps=LIMIT)

    def measure() -> dict[str, Array]:
        run = train_or_load(experiment, root)
        with deterministic(cores()):
            losses = train_and_test_losses(run, run.stack.rows)
            return {"steps": run.stack.steps.astype(float), **losses, **weight_and_logit_grams(run, "no decay")}

    _make_missing(record_path(root, "grokking_basins", "undecayed"), {"experiment": experiment.digest()}, measure)


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


def sweep_decay_grid(root: Path, scheduler: str) -> dict[str, Array]:
    """When runs generalise over fractions of the data, weight decays and seeds.

    Half the weight decay takes about twice the steps. So the decays of a fraction are tried from the largest down, and
    no smaller one is begun where the median seed took more than half of GRID_LIMIT.

    Returns:
        `points` (fraction, weight decay, seed) `(n, 3)`, and the values of `GeneralisationTimes`, `(n,)` each.
    """
    parts: list[dict[str, Array]] = []
    fractions = list(FRACTIONS)
    for decay in DECAYS:
        points = list(itertools.product(fractions, [decay], SEEDS))
        experiments = [
            ModularExperiment(fraction=fraction, weight_decay=decay, seed=seed, steps=GRID_LIMIT, every=LOOK_EVERY)
            for fraction, _, seed in points
        ]
        times = sweep_times(experiments, root, scheduler, f"weight decay {decay:g}")
        parts.append({"points": np.array(points, float), **times})
        median = np.median(times["generalised"].reshape(len(fractions), -1), axis=1)
        fractions = [fraction for fraction, steps in zip(fractions, median, strict=True) if 2 * steps <= GRID_LIMIT]
        if not fractions:
            break
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def make_times_record(root: Path, scheduler: str) -> None:
    """Make the record of `sweep_decay_grid`."""
    experiment = ModularExperiment(steps=GRID_LIMIT, every=LOOK_EVERY)
    settings = {"experiment": experiment.digest(), "limit": GRID_LIMIT}
    settings |= {"fractions": list(FRACTIONS), "decays": list(DECAYS), "seeds": list(SEEDS)}
    _make_missing(record_path(root, "grokking", "times"), settings, lambda: sweep_decay_grid(root, scheduler))


def make_grokking(root: Path, scheduler: str) -> None:
    """Make what is missing of the records of the chapter `grokking`; the shorter runs go to the scheduler."""
    for seed in STEPS:
        make_seed_records(seed, root)
    make_operations_record(root, scheduler)
    make_times_record(root, scheduler)


def make_grokking_basins(root: Path, scheduler: str) -> None:
    """Make what is missing of the records of the chapter `grokking_basins`, all on this machine."""
    for seed in STEPS:
        make_seed_records(seed, root)
    make_undecayed_record(root)
    make_induction_record(root)


CHAPTERS = {"grokking": make_grokking, "grokking_basins": make_grokking_basins}
