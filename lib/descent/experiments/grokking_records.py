"""The records of the chapters on grokking: runs at the source's scale, resumable, and when such runs generalise.

`python -m descent.experiments.grokking_records` makes those that are missing from `data/records` or are
of another set-up. A run's weights, hundreds of megabytes, stay in `_build/runs`; its records have what was measured on
them, and the last weights.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from descent.checkout import project_root
from descent.experiments.grokking import GrokkingRun, ModularExperiment, train_modular_transformer
from descent.experiments.grokking_measures import (
    embedding_frequencies,
    logit_gram,
    losses_without_components,
    path_gradients,
    progress_measures,
    train_and_test_losses,
)
from descent.experiments.grokking_times import GeneralisationTimes
from descent.experiments.induction_heads import InductionExperiment, InductionRun, train_induction
from descent.repro.machine import cores
from descent.repro.records import Record, provenance
from descent.repro.seeding import deterministic, numpy_generator
from descent.repro.sweeps import Sweep, sweep
from descent.spectra.fourier import key_frequencies
from descent.spectra.singular_values import gram_matrix, singular_spectrum

CURVES, BASINS = "grokking", "grokking_basins"  # the chapters
STEPS = {0: 40_000, 1: 15_000, 2: 15_000, 3: 15_000, 4: 15_000}  # of the runs, by seed
COMPONENTS, BATCH = 8, 256
FRACTIONS, DECAYS, SEEDS = (0.25, 0.3, 0.35, 0.4, 0.5, 0.6), (4.0, 2.0, 1.0, 0.5), (0, 1, 2)
LIMIT, LATEST, LOOKS = 15_000, 5_000, 50  # steps: of other runs at most; over fractions and decays; between looks
OTHERS = ("subtraction", "squares", "division", "s5")
Array = NDArray[np.float64]


def key_frequencies_of_run(run: GrokkingRun) -> list[int]:
    """The key frequencies of the last weights of a run on addition: of more than one neuron in a hundred."""
    with deterministic(1):
        neurons = run.model.activations(run.task.pairs).neurons.detach()
    return key_frequencies(neurons, fewest=1 + run.experiment.hidden // 100)


def frequency_sets(keys: Sequence[int], others: Sequence[int], p: int, seed: int) -> dict[str, list[int]]:
    """Frequencies to compare: the key ones; as many at random of the rest; of the rest, those key to another seed."""
    rest = sorted(set(range(1, p // 2 + 1)) - set(keys))
    random = numpy_generator(seed, "frequencies").choice(rest, min(len(keys), len(rest)), replace=False)
    return {"key": list(keys), "random": sorted(random.tolist()), "other seed": sorted(set(others) - set(keys))}


def measure_curves(
    run: GrokkingRun, sets: Mapping[str, Sequence[int]], progress: str | None = None
) -> dict[str, Array]:
    """Curves of one run for the chapter `grokking`: `steps` `(m,)`, `final`, losses, progress measures."""
    about = {"steps": run.stack.steps.astype(float), "final": run.final()}
    return (
        about | train_and_test_losses(run, run.stack.rows, progress) | progress_measures(run, sets, progress=progress)
    )


def weight_and_logit_grams(run: GrokkingRun, progress: str | None = None) -> dict[str, Array]:
    """Of the kept weights of a run, `(m, m)` each: Gram matrices of the `weights` and of the `logits` of all pairs."""
    return {"weights": gram_matrix(run.stack.rows), "logits": logit_gram(run, run.stack.rows, progress)}


def measure_spectra(run: GrokkingRun, count: int, progress: str | None = None) -> dict[str, Array]:
    """What the chapter `grokking_basins` takes from the kept weights `(m, P)` of one run.

    Returns:
        Gram matrices `(m, m)`: `weights`, `logits`, `gradients` (full batch), `batch gradients` (of 256 examples, or of
        an eighth of them). `gradient frequencies` `(m, (p - 1) / 2)`. Of the weights as they are (`raw`) and less
        their mean (`centred`): `raw frequencies` `(count, (p - 1) / 2)` of the singular vectors' W_E, and
        `raw test_loss` and so on, see `losses_without_components`.
    """
    rows = run.stack.rows
    full = path_gradients(run, rows, progress=progress)
    found = {**weight_and_logit_grams(run, progress), "gradients": gram_matrix(full)}
    found["gradient frequencies"] = embedding_frequencies(run, full)
    found["batch gradients"] = gram_matrix(path_gradients(run, rows, min(BATCH, len(run.train) // 8), progress))
    for name, centre in (("raw", False), ("centred", True)):
        whole = singular_spectrum(found["weights"], centre)
        found[f"{name} frequencies"] = embedding_frequencies(run, whole.right(rows, count).T)
        removed = losses_without_components(run, whole, count, progress)
        found |= {f"{name} {curve}": values for curve, values in removed.items()}
    return found


def train_or_load(experiment: ModularExperiment, root: Path) -> GrokkingRun:
    """A run, from its folder in `_build/runs` where that is finished."""
    name = f"{experiment.task}, seed {experiment.seed}"
    with deterministic(cores()):
        return train_modular_transformer(experiment, root / "_build" / "runs" / experiment.digest(), name)


def path_of(root: Path, chapter: str, name: str) -> Path:
    """Where a record lies."""
    return root / "data" / "records" / chapter / f"{name}.npz"


def make_missing_records(path: Path, **expected: object) -> bool:
    """Whether a record is there and its settings have these values."""
    if not path.exists():
        return False
    settings = Record.load(path).settings
    return all(settings.get(name) == value for name, value in expected.items())


def make_seed_records(seed: int, root: Path) -> None:
    """The two records of a seed; the control frequencies are those of the next seed."""
    following = (seed + 1) % len(STEPS)
    first, second = (ModularExperiment(steps=STEPS[each], seed=each) for each in (seed, following))
    paths = {chapter: path_of(root, chapter, f"seed-{seed}") for chapter in (CURVES, BASINS)}
    about = {"experiment": first.digest(), "control": second.digest()}
    if all(make_missing_records(path, **about) for path in paths.values()):
        return
    run, other = train_or_load(first, root), train_or_load(second, root)
    keys = key_frequencies_of_run(run)
    sets = frequency_sets(keys, key_frequencies_of_run(other), run.experiment.p, seed)
    settings = {**about, "steps": run.experiment.steps, "seed": seed, "sets": sets}
    with deterministic(cores()):
        for chapter, values in (
            (CURVES, measure_curves(run, sets, f"seed {seed}")),
            (BASINS, measure_spectra(run, COMPONENTS, f"seed {seed}")),
        ):
            Record(f"seed-{seed}", values, settings, provenance(seed)).save(paths[chapter])


def sweep_times(experiments: Sequence[ModularExperiment], root: Path, scheduler: str, name: str) -> dict[str, Array]:
    """`GeneralisationTimes` of these, `(n,)` each; a killed sweep goes on."""
    task, folder = GeneralisationTimes(tuple(experiments)), root / "_build" / "sweeps" / "grokking"
    points = np.arange(len(experiments), dtype=float)[:, None]
    return sweep(task, points, Sweep(scheduler, folder / task.key(), 1, name), task.key())


def make_operations_record(root: Path, scheduler: str) -> None:
    """When runs on the other operations generalise, in the order of OTHERS: see `accuracy_course`."""
    experiments = [ModularExperiment(task=task, steps=LIMIT, every=LOOKS) for task in OTHERS]
    path = path_of(root, CURVES, "others")
    settings = {"experiments": [each.digest() for each in experiments], "tasks": list(OTHERS), "limit": LIMIT}
    if not make_missing_records(path, **settings):
        Record("others", sweep_times(experiments, root, scheduler, "operations"), settings, provenance()).save(path)


def make_undecayed_record(root: Path) -> None:
    """The control: `steps` `(m,)`, `train_and_test_losses` and `weight_and_logit_grams` of a run on addition without weight decay."""
    experiment = ModularExperiment(weight_decay=0.0, steps=LIMIT)
    settings, path = {"experiment": experiment.digest()}, path_of(root, BASINS, "undecayed")
    if make_missing_records(path, **settings):
        return
    run = train_or_load(experiment, root)
    with deterministic(cores()):
        values = {
            "steps": run.stack.steps.astype(float),
            **train_and_test_losses(run, run.stack.rows),
            **weight_and_logit_grams(run, "no decay"),
        }
    Record("undecayed", values, settings, provenance()).save(path)


def measure_copying(run: InductionRun) -> dict[str, Array]:
    """Of the losses of predictable tokens at `looks` `(m,)`: their mean `repeated` `(m,)`, their `gram` `(m, m)`."""
    known = np.ascontiguousarray(run.token_losses[:, run.predictable])
    return {"looks": run.looks.astype(float), "repeated": known.mean(1, dtype=float), "gram": gram_matrix(known)}


def make_induction_record(root: Path) -> None:
    """The record of `measure_copying`, the companion of `grokking_basins`."""
    task, path = InductionExperiment(), path_of(root, BASINS, "induction")
    if make_missing_records(path, **asdict(task)):
        return
    with deterministic(cores()):
        run = train_induction(task, progress="induction")
    Record("induction", measure_copying(run), asdict(task), provenance(task.seed)).save(path)


def sweep_decay_grid(root: Path, scheduler: str) -> dict[str, Array]:
    """When runs generalise: `points` (fraction, weight decay, seed) `(n, 3)`, and what the task finds, `(n,)` each.

    Half of the weight decay takes about twice the steps. So a fraction's decays are tried from the largest down, and no
    smaller one is begun where the median seed took more than half of the limit.
    """
    found: list[dict[str, Array]] = []
    fractions = list(FRACTIONS)
    for decay in DECAYS:
        points = list(itertools.product(fractions, [decay], SEEDS))
        experiments = [
            ModularExperiment(fraction=part, weight_decay=decay, seed=seed, steps=LATEST, every=LOOKS)
            for part, _, seed in points
        ]
        values = sweep_times(experiments, root, scheduler, f"weight decay {decay:g}")
        found.append({"points": np.array(points, float), **values})
        median = np.median(values["generalised"].reshape(len(fractions), -1), axis=1)
        fractions = [part for part, steps in zip(fractions, median, strict=True) if 2 * steps <= LATEST]
        if not fractions:
            break
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def make_times_record(root: Path, scheduler: str) -> None:
    """The record of `sweep_decay_grid`."""
    experiment, path = ModularExperiment(steps=LATEST, every=LOOKS), path_of(root, CURVES, "times")
    settings = {"experiment": experiment.digest(), "limit": LATEST}
    settings |= {"fractions": list(FRACTIONS), "decays": list(DECAYS), "seeds": list(SEEDS)}
    if not make_missing_records(path, **settings):
        Record("times", sweep_decay_grid(root, scheduler), settings, provenance()).save(path)


def main(arguments: list[str]) -> None:
    """Make the records that are not there yet; a killed run goes on where it was."""
    parser = argparse.ArgumentParser(prog="python -m descent.experiments.grokking_records", description=main.__doc__)
    parser.add_argument("--scheduler", default="", help='a Dask cluster\'s "tcp://host:port", for the shorter runs')
    given = parser.parse_args(arguments)
    root = project_root()
    for seed in STEPS:
        make_seed_records(seed, root)
    make_operations_record(root, given.scheduler)
    make_undecayed_record(root)
    make_induction_record(root)
    make_times_record(root, given.scheduler)


if __name__ == "__main__":
    main(sys.argv[1:])
