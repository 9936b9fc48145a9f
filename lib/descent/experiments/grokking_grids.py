"""Records of controls and of short runs over data, decay, operation and split, beside those of `grokking_records`.

A short run keeps no weights. It is looked at often, on all pairs, and all of its looks are recorded, since each summary
of them chooses: a first crossing is early where the loss comes back, a lasting one late.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from descent.experiments.grokking import (
    GrokkingRun,
    ModularExperiment,
    cross_entropy_in_double,
    prepare_experiment,
)
from descent.experiments.grokking_controls import (
    DRAWS,
    EXCLUDED,
    FRAMES,
    SHUFFLES,
    dissections,
    embedding_film,
    foreseen_sets,
    marked_rows,
    measure_controls,
    memorised_and_generalised,
)
from descent.experiments.grokking_measures import (
    accuracy,
    embedding_frequencies,
    first_lasting_step,
    mean_loss,
    train_and_test_losses,
)
from descent.experiments.grokking_records import key_frequencies_of_run, make_grokking, train_or_load
from descent.repro.machine import keep_freed_memory
from descent.repro.records import Record, find_record, provenance, record_path, relative_difference
from descent.repro.seeding import deterministic, numpy_generator
from descent.repro.sweeps import Sweep, sweep
from descent.training.loop import TrainingPlan, fit

Array = NDArray[np.float64]
CONTROL_SEEDS, CONTROL_STEPS = (0, 1, 2, 3, 4), 15_000
UNDECAYED = "controls-undecayed"
OFTEN, SELDOM, UNTIL = 10, 50, 1000  # steps between looks, up to UNTIL and after
SETTLED, LOW = 6, 0.1  # looks with a test loss (nats) below LOW, after which a run ends that has memorised
RETRAINED = 100  # steps of a recheck
LOOK_COLUMNS = ("step", "train_loss", "test_loss", "train_accuracy", "test_accuracy")
ADDITION, TABLES = ("addition",), ("addition", "subtraction", "division")
GRIDS: dict[str, tuple[int, list[tuple[Any, ...]]]] = {  # limit, and what is varied: all of one row with each other
    "decays": (6_000, [(ADDITION, (0.4, 0.6), (4.0, 2.0, 1.0, 0.5), range(5), (False,))]),
    "mirror": (3_000, [(ADDITION, (0.5,), (1.0,), range(5), (True,))]),
    "operations": (
        5_000,
        [(TABLES, (0.5,), (1.0,), range(5), (False,)), (TABLES[1:], (0.6,), (1.0,), range(2), (False,))],
    ),
    "s5": (
        4_000,
        [(("s5",), (0.7,), (1.0,), range(3), (False,)), (("s5",), (0.6, 0.5), (1.0,), (0,), (False,))],
    ),
}


def grid_points(name: str, base: ModularExperiment) -> list[ModularExperiment]:
    """The experiments of a record in GRIDS, of which `base` gives the rest; their `every` is that of early looks."""
    limit, blocks = GRIDS[name]
    start = replace(base, steps=limit, every=min(OFTEN, limit))
    return [
        replace(start, task=task, fraction=share, weight_decay=decay, seed=seed, mirrors=mirrors)
        for block in blocks
        for task, share, decay, seed, mirrors in itertools.product(*block)
    ]


def look_steps(limit: int, every: int) -> list[int]:
    """The steps after which a run of at most `limit` steps is looked at: each `every`, after UNTIL each SELDOM."""
    return [step for step in range(1, limit + 1) if step % (every if step <= UNTIL else SELDOM) == 0]


@dataclass(frozen=True)
class LookedAtRuns:
    """A task of `descent.repro.sweeps.sweep`: its points are indices of experiments, its values their looks.

    A run ends when its training loss was below 0.01 at a look and its test loss below LOW at the last SETTLED ones, or
    after its `steps`.

    Attributes:
        experiments: their `every` is the number of steps between looks, up to UNTIL.
    """

    experiments: tuple[ModularExperiment, ...]

    def key(self) -> str:
        """Twelve hexadecimal digits that name the experiments, when they are looked at and when they end."""
        digests = " ".join(experiment.digest() for experiment in self.experiments)
        rule = f"{digests} looks {SELDOM} after {UNTIL}, end {SETTLED} below {LOW}"
        return hashlib.sha256(rule.encode()).hexdigest()[:12]

    def __call__(self, points: Array) -> dict[str, Array]:
        """`looks` `(n, m, 5)` for points `(n, 1)`: LOOK_COLUMNS, NaN after the end of a run.

        Losses are in nats, mean per example, of the weights after the step, on all shown pairs and all others.

        Raises:
            ValueError: a fraction that leaves a part empty, or another setting out of range.
        """
        most = max(len(look_steps(each.steps, each.every)) for each in self.experiments)
        looks = np.full((len(points), most, len(LOOK_COLUMNS)), np.nan)
        for number, (index,) in enumerate(points):
            found = looks_of(self.experiments[int(index)])
            looks[number, : len(found)] = found
        return {"looks": looks}


class _SettledError(Exception):
    """Ends a training that has memorised and generalised."""


def looks_of(experiment: ModularExperiment) -> Array:
    """Train one experiment and look at it, see `LookedAtRuns`; `(looks, 5)`."""
    keep_freed_memory()
    start, steps = prepare_experiment(experiment), set(look_steps(experiment.steps, experiment.every))
    device = next(start.model.parameters()).device
    pairs, targets = start.task.pairs.to(device), start.task.targets.to(device)
    looks: list[list[float]] = []

    def look(step: int, _: float) -> None:
        if step + 1 not in steps:
            return
        with torch.no_grad():
            logits = start.model(pairs)
        parts = [(logits[part], targets[part]) for part in (start.train, start.test)]
        looks.append([step + 1, *(mean_loss(*part) for part in parts), *(accuracy(*part) for part in parts)])
        low = [each[2] < LOW for each in looks[-SETTLED:]]
        if len(low) == SETTLED and all(low) and min(each[1] for each in looks) < 0.01:
            raise _SettledError

    with suppress(_SettledError):
        plan = TrainingPlan(experiment.steps, start.scheduler, (look,))
        fit(start.model, cross_entropy_in_double, start.batches, start.optimizer, plan)
    return np.array(looks, float).reshape(-1, len(LOOK_COLUMNS))


def course_of_looks(looks: Array) -> dict[str, float]:
    """Sum up the looks `(m, 5)` of a run; rows that are NaN come after its end.

    Returns:
        `memorised` and `generalised`, the first step after which the training loss is below 0.01 and the test loss
        below 1; `memorised for good` and `generalised for good`, those from which they stay there to the end of the
        run; all NaN where it does not happen. `peak`, the largest test loss; `accuracy`, the last share of right
        answers on test pairs; `end`, the last step.
    """
    steps, train, test, _, right = looks[np.isfinite(looks[:, 0])].T
    found = {}
    for name, values, below in (("memorised", train, 0.01), ("generalised", test, 1.0)):
        (under,) = np.nonzero(values < below)
        lasting = first_lasting_step(values, below)
        found[name] = float(steps[under[0]]) if len(under) else math.nan
        found[f"{name} for good"] = math.nan if lasting is None else float(steps[lasting])
    return {**found, "peak": float(test.max()), "accuracy": float(right[-1]), "end": float(steps[-1])}


def recompute_looks(record: Record, seed: int) -> float:
    """Train the first RETRAINED steps of a recorded run again, the one that its row names, drawn by `seed`.

    Returns:
        The largest relative difference of its losses at the looks.
    """
    index = int(numpy_generator(seed, record.name).integers(len(record.settings["runs"])))
    experiment = ModularExperiment(**record.settings["runs"][index])
    with deterministic(1):
        anew = looks_of(replace(experiment, steps=min(RETRAINED, experiment.steps)))[:, :3]
    return float(relative_difference(record.values["looks"][index, : len(anew), :3], anew).max())


def control_experiments(base: ModularExperiment) -> list[ModularExperiment]:
    """The runs of the records `controls-N`, by seed."""
    return [replace(base, steps=CONTROL_STEPS, seed=seed) for seed in CONTROL_SEEDS]


def undecayed_experiment(base: ModularExperiment) -> ModularExperiment:
    """The run of the record `controls-undecayed`: that of the first seed without weight decay."""
    return replace(control_experiments(base)[0], weight_decay=0.0)


def read_control_record(root: Path, name: str, base: ModularExperiment) -> Record:
    """The record `controls-N`, `controls-undecayed` or one in GRIDS, of the experiments that would be trained today.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of other experiments; the message names the command that makes it again.
    """
    return Record.load(record_path(root, "grokking", name), "make records CHAPTER=grokking", **_made_from(name, base))


def _made_from(name: str, base: ModularExperiment) -> dict[str, Any]:
    if name in GRIDS:
        points = grid_points(name, base)
        return {"key": LookedAtRuns(tuple(points)).key(), "runs": [asdict(each) for each in points]}
    first, second = _run_and_next(name, base)
    sizes = {"draws": DRAWS, "excluded": EXCLUDED, "shuffles": SHUFFLES, "frames": FRAMES}
    return {"experiment": first.digest(), "other": second.digest(), **sizes}


def _run_and_next(name: str, base: ModularExperiment) -> tuple[ModularExperiment, ModularExperiment]:
    """The run of a record, and another: the next seed's, the first for the last; of UNDECAYED that with decay."""
    runs = control_experiments(base)
    if name == UNDECAYED:
        return undecayed_experiment(base), runs[0]
    number = CONTROL_SEEDS.index(int(name.removeprefix("controls-")))
    return runs[number], runs[(number + 1) % len(runs)]


def controls_of_seed(
    run: GrokkingRun, other: Sequence[int], progress: str | None = None, draws: int = DRAWS
) -> dict[str, Array]:
    """All that a record `controls-N` holds of a run; `other` are the key frequencies of another seed.

    Returns:
        What `measure_controls`, `embedding_film` and, for the key frequencies and those foreseen when the pairs are
        known, `dissections` give at `marked_rows`.
    """
    keys = key_frequencies_of_run(run)
    values = measure_controls(run, {"key": keys, "other seed": sorted(set(other) - set(keys))}, None, progress, draws)
    memorised = np.flatnonzero(values["steps"] == values["marks"][0])
    foreseen = foreseen_sets(run.stack.steps, values["norms"], int(memorised[0]) if len(memorised) else None, len(keys))
    sets = {"key": keys, "foreseen": foreseen["foreseen memorised"]}
    return values | embedding_film(run, keys) | dissections(run, marked_rows(run, values["span"]), sets)


def controls_without_decay(
    run: GrokkingRun, decayed: GrokkingRun, progress: str | None = None, draws: int = DRAWS
) -> dict[str, Array]:
    """The same measures of a run without weight decay, over the span of the run with it, from the same weights.

    Returns:
        What `measure_controls` gives for the key frequencies of the decayed run, with its `foreseen decayed`, those
        foreseen when it knew the pairs; and `dissections` at the rows of its span.
    """
    losses, rows = train_and_test_losses(decayed, decayed.stack.rows), decayed.stack.rows
    begin, end = memorised_and_generalised(losses["train_loss"], losses["test_loss"])
    keys, norms = key_frequencies_of_run(decayed), embedding_frequencies(decayed, rows)
    foreseen = foreseen_sets(decayed.stack.steps, norms, begin, len(keys))["foreseen memorised"]
    span = None if begin is None or end is None else (begin, end)
    sets = {"key": keys, "foreseen decayed": foreseen}
    values = measure_controls(run, sets, span, progress, draws)
    return values | dissections(run, marked_rows(run, values["span"]), sets)


def _make_controls(root: Path, name: str, base: ModularExperiment) -> None:
    run, other = (train_or_load(each, root) for each in _run_and_next(name, base))
    with deterministic(1):
        if name == UNDECAYED:
            values, keys = controls_without_decay(run, other, name), key_frequencies_of_run(other)
        else:
            values, keys = controls_of_seed(run, key_frequencies_of_run(other), name), key_frequencies_of_run(run)
        origin = provenance(run.experiment.seed)
    small = {each: found.astype(np.float32) for each, found in values.items()}
    settings = {**_made_from(name, base), "seed": run.experiment.seed, "keys": keys}
    Record(name, small, settings, origin).save(record_path(root, "grokking", name))


def _make_grid(root: Path, name: str, base: ModularExperiment, scheduler: str) -> None:
    """Each finished run is kept in `_build/sweeps/grokking`, so that a killed recipe goes on from it."""
    task = LookedAtRuns(tuple(grid_points(name, base)))
    points = np.arange(len(task.experiments), dtype=float)[:, None]
    how = Sweep(scheduler, root / "_build" / "sweeps" / "grokking" / task.key(), 1, name, recompute=False)
    values = {"looks": sweep(task, points, how, task.key())["looks"].astype(np.float32)}
    with deterministic(1):
        origin = provenance()
    Record(name, values, _made_from(name, base), origin).save(record_path(root, "grokking", name))


def make_some(root: Path, names: Sequence[str], scheduler: str = "") -> None:
    """Make those of the records `controls-N`, `controls-undecayed` and GRIDS that are named and missing.

    Bits depend neither on the order nor on the number of cores. The runs of the controls are kept in `_build/runs`
    under their digests, where the recipe of `grokking_basins` finds them, too.

    Raises:
        ValueError: a name of no such record.
    """
    base, known = ModularExperiment(), control_and_grid_names()
    for name in names:
        if name not in known:
            raise ValueError(f"record {name!r}: expected one of {', '.join(known)}")
        if find_record(record_path(root, "grokking", name), **_made_from(name, base)):
            continue
        if name in GRIDS:
            _make_grid(root, name, base, scheduler)
        else:
            _make_controls(root, name, base)


def control_and_grid_names() -> list[str]:
    """The names of the records of this module."""
    return [*(f"controls-{seed}" for seed in CONTROL_SEEDS), UNDECAYED, *GRIDS]


def make_all(root: Path, scheduler: str) -> None:
    """Make what is missing of the records of the chapter `grokking`."""
    make_grokking(root, scheduler)
    make_some(root, control_and_grid_names(), scheduler)


CHAPTERS = {"grokking": make_all}
