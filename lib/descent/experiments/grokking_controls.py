"""Controls of the progress measures of grokking, and the records that need whole trainings beside `grokking_records`.

A network restricted to waves of a + b answers by the sum alone, so that it is a table of p sums and p answers: the mean
of the logits over all pairs of one sum, less its other waves. A thousand sets of frequencies are cheap on such tables.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from descent.data.group_tables import ModularTask
from descent.experiments.grokking import GrokkingRun, ModularExperiment
from descent.experiments.grokking_measures import (
    accuracy,
    embedding_frequencies,
    first_lasting_step,
    mean_loss,
    train_and_test_losses,
)
from descent.experiments.grokking_records import key_frequencies_of_run, make_grokking, sweep_times, train_or_load
from descent.experiments.grokking_together import stack_digest
from descent.repro.machine import cores
from descent.repro.records import Record, find_record, provenance, record_path
from descent.repro.seeding import deterministic, numpy_generator
from descent.spectra.fourier_modulo_p import excluded_logits, fourier_basis

Array = NDArray[np.float64]
DRAWS = 1000  # random sets of frequencies
AT_ONCE = 100  # of these sets, so that their tables stay small
FRAMES = 48  # kept weights that the chapter's figure can show
CONTROL_SEEDS, CONTROL_STEPS = (0, 1, 2, 3, 4), 15_000
DECAY_GRID = (0.4, 0.5, 0.6), (4.0, 2.0, 1.0, 0.5), (3, 4)  # data fractions, decays; seeds 0 to 2 are in `times`
TABLES = ("addition", "subtraction", "division", "s5"), (0.5, 0.6, 0.7), (0, 1, 2)  # operations, fractions, seeds
LIMIT = 10_000  # steps of a run of these two
LOOK_EVERY = 50  # steps
GRIDS = ("decays", "operations")


def mean_by_sum(logits: Tensor) -> Tensor:
    """The mean of the logits over all pairs of one sum, `(p * p, p) -> (p, p)` float64: a row for each sum.

    Raises:
        ValueError: the number of rows is not the square of the number of columns.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 4.0], [0.0, 2.0], [3.0, 0.0]])  # of 0 + 0, 0 + 1, 1 + 0, 1 + 1
        >>> mean_by_sum(logits).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    p = logits.shape[1]
    if logits.shape != (p * p, p):
        raise ValueError(f"logits of shape {tuple(logits.shape)}: expected (p * p, p)")
    a = torch.arange(p)[:, None]
    return logits.double().view(p, p, p)[a, (torch.arange(p) - a) % p].mean(0)


def restricted_to_sets(table: Tensor, sets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and accuracy on all pairs of a network restricted to each of several sets of frequencies.

    Args:
        table: `(p, p)`, see `mean_by_sum`.
        sets: `(d, (p - 1) / 2)`, one where the frequency belongs to the set, zero elsewhere; its type is that of the
            result, so that many sets can be taken in float32.

    Returns:
        `(d,)` each: cross-entropy in nats, mean over all pairs; share of right answers.
    """
    p = len(table)
    basis = fourier_basis(p)[1:].view(-1, 2, p)
    parts = torch.einsum("kis,kic->ksc", basis, torch.einsum("kis,sc->kic", basis, table))
    logits = table.mean(0).to(sets.dtype) + torch.einsum("dk,ksc->dsc", sets, parts.to(sets.dtype))
    right = logits.diagonal(dim1=1, dim2=2)
    return (logits.logsumexp(2) - right).mean(1), (logits.argmax(2) == torch.arange(p)).double().mean(1)


def area_below_constant(losses: Array, p: int) -> Array:
    """The mean over the first axis of what a loss is below ln p, that of a constant answer, over ln p: 0 to 1."""
    area: Array = np.clip(1 - np.asarray(losses) / math.log(p), 0, 1).mean(0)
    return area


def random_sets(keys: Sequence[int], p: int, seed: int, draws: int = DRAWS) -> Tensor:
    """Sets of as many frequencies as there are keys, none of them a key, `(draws, (p - 1) / 2)` of ones and zeros."""
    rest = np.setdiff1d(np.arange(1, p // 2 + 1), keys)
    draw = numpy_generator(seed, "random sets")
    order = np.argsort(draw.random((draws, len(rest))), axis=1)[:, : len(keys)]
    sets = torch.zeros(draws, p // 2)
    return sets.scatter_(1, torch.from_numpy(rest[order] - 1).long(), 1.0) if order.size else sets


def mirrored_pairs(task: ModularTask, train: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of every example (a, b): whether (b, a) is shown in training, and whether that gives its answer away.

    Args:
        task: the table of an operation.
        train: indices of the examples that are shown, `(n,)`.

    Returns:
        `(len(task),)` each; a pair is not its own mirror image.
    """
    shown = {tuple(task.pairs[index].tolist()): int(task.targets[index]) for index in train.tolist()}
    found = [shown.get((b, a)) if a != b else None for a, b in task.pairs.tolist()]
    mirrored = np.array([answer is not None for answer in found])
    return mirrored, mirrored & (np.array([-1 if each is None else each for each in found]) == task.targets.numpy())


def course_to_the_drop(
    run: GrokkingRun, keys: Sequence[int], other: Sequence[int], seed: int, progress: str | None = None
) -> dict[str, Array]:
    """The progress measures of one run on addition with their controls, from its start to the drop of its test loss.

    Args:
        run: a run on addition modulo an odd p.
        keys: its key frequencies.
        other: those of another seed, less the keys.
        seed: decides the random sets and the pairs of the shuffled mirror.
        progress: text before a progress bar; None shows none.

    Returns:
        Arrays `(n,)` over kept steps: `steps`, losses and accuracies as in `train_and_test_losses`;
        `restricted_loss` and `restricted_accuracy` with " key" and " other seed"; `memory_loss` and `memory_accuracy`,
        of the logits without the key frequencies on test pairs; `mirrored`, `alone`, the share of right answers on
        test pairs with and without a shown mirror image, and `shuffled`, `shuffled alone`, the same where as many are
        drawn at random. `random_loss` and `random_accuracy` `(n, 3)`, the 5th, 50th and 95th percentile over random
        sets. From memorisation to the drop: `random_areas`, `random_means` `(DRAWS,)`, area below ln p and mean
        accuracy of each set; `span` `(2,)`, its first and last row.
    """
    losses, p = train_and_test_losses(run, run.stack.rows), run.experiment.p
    begin, end = _span(losses["train_loss"], losses["test_loss"])
    sets = {"key": _indicator([keys], p), "other seed": _indicator([other], p), "random": random_sets(keys, p, seed)}
    groups = _test_groups(run, seed)
    columns: dict[str, list[Any]] = {}
    drawn = []
    for row in tqdm(run.stack.rows[: end + 1], desc=progress, disable=progress is None):
        logits = run.logits(row)
        found = {name: restricted_to_many(logits, each) for name, each in sets.items()}
        drawn.append(found.pop("random"))
        measured = {f"restricted_loss {name}": float(each[0][0]) for name, each in found.items()}
        measured |= {f"restricted_accuracy {name}": float(each[1][0]) for name, each in found.items()}
        memory = excluded_logits(logits, keys)[run.test], run.task.targets[run.test]
        measured |= {"memory_loss": mean_loss(*memory), "memory_accuracy": accuracy(*memory)}
        right = (logits.argmax(1) == run.task.targets).numpy()
        measured |= {name: float(right[part].mean()) if len(part) else 0.0 for name, part in groups.items()}
        for name, value in measured.items():
            columns.setdefault(name, []).append(value)
    each_loss, each_accuracy = (np.stack([pair[kind] for pair in drawn]) for kind in (0, 1))
    quantiles = (np.percentile(each, (5, 50, 95), axis=1).T for each in (each_loss, each_accuracy))
    return {
        "steps": run.stack.steps[: end + 1].astype(float),
        **{name: values[: end + 1] for name, values in losses.items()},
        **{name: np.array(values) for name, values in columns.items()},
        **dict(zip(("random_loss", "random_accuracy"), quantiles, strict=True)),
        "random_areas": area_below_constant(each_loss[begin:], p),
        "random_means": each_accuracy[begin:].mean(0),
        "span": np.array([begin, end], float),
    }


def restricted_to_many(logits: Tensor, sets: Tensor) -> tuple[Array, Array]:
    """`restricted_to_sets` for the logits of all pairs `(p * p, p)`, some sets at a time."""
    table = mean_by_sum(logits)
    parts = [restricted_to_sets(table, some) for some in torch.split(sets, AT_ONCE)]
    return torch.cat([loss for loss, _ in parts]).numpy(), torch.cat([right for _, right in parts]).numpy()


def _indicator(sets: Sequence[Sequence[int]], p: int) -> Tensor:
    rows = torch.zeros(len(sets), p // 2, dtype=torch.float64)
    for row, frequencies in zip(rows, sets, strict=True):
        row[[k - 1 for k in frequencies]] = 1.0
    return rows


def _span(train_loss: Array, test_loss: Array) -> tuple[int, int]:
    """The rows at which a run has memorised and generalised; its last row where it has not, at least one row."""
    last = len(train_loss) - 1
    marks = (first_lasting_step(train_loss, 0.01), first_lasting_step(test_loss, 1.0))
    begin, end = (last if mark is None else mark for mark in marks)
    return min(begin, end), end


def _test_groups(run: GrokkingRun, seed: int) -> dict[str, NDArray[np.int64]]:
    """Test examples by whether their mirror image is shown, and as many drawn at random."""
    test, (mirrored, _) = run.test.numpy(), mirrored_pairs(run.task, run.train)
    own = mirrored[test]
    mixed = numpy_generator(seed, "mirror").permutation(own)
    return {"mirrored": test[own], "alone": test[~own], "shuffled": test[mixed], "shuffled alone": test[~mixed]}


def embedding_film(run: GrokkingRun, keys: Sequence[int], frames: int = FRAMES) -> dict[str, Array]:
    """What the chapter's figure shows of kept weights, evenly spaced over the run.

    The plane of a frequency is spanned by the cosine and the sine of the last embedding, made orthonormal: where it
    closes, the numbers stand on a ring, in the order of k a modulo p.

    Returns:
        `frames` `(f,)`, their steps; `spectrum` `(f, (p - 1) / 2)`, the norms of the frequencies of W_E;
        `rings` `(f, len(keys), p, 2)`, each number's place on the plane of each key frequency; `film` `(f, 4)`, the
        training, test, restricted (all pairs) and excluded loss (training pairs).
    """
    rows = run.stack.rows
    chosen = np.unique(np.linspace(0, len(rows) - 1, frames).round().astype(int))
    part, p = run.stack.layout.slices()["W_E"], run.experiment.p
    tables = np.array(rows[chosen][:, part], float).reshape(len(chosen), -1, p + 1)[:, :, :p]
    waves = fourier_basis(p).numpy()
    last = run.final()[part].astype(float).reshape(-1, p + 1)[:, :p]
    planes = [np.linalg.qr(last @ waves[[2 * k - 1, 2 * k]].T)[0] for k in keys]
    rings = [np.einsum("fwa,wi->fai", tables, plane) for plane in planes]
    places = np.stack(rings, 1) if rings else np.zeros((len(chosen), 0, p, 2))
    losses = np.array([_four_losses(run, keys, row) for row in rows[chosen]])
    spectrum = embedding_frequencies(run, rows[chosen])
    return {"frames": run.stack.steps[chosen].astype(float), "spectrum": spectrum, "rings": places, "film": losses}


def _four_losses(run: GrokkingRun, keys: Sequence[int], row: NDArray[np.floating]) -> list[float]:
    logits, targets = run.logits(row), run.task.targets
    restricted = restricted_to_many(logits, _indicator([keys], run.experiment.p))[0][0]
    excluded = excluded_logits(logits, keys)[run.train]
    whole = [mean_loss(logits[part], targets[part]) for part in (run.train, run.test)]
    return [*whole, float(restricted), mean_loss(excluded, targets[run.train])]


def control_experiments(base: ModularExperiment) -> list[ModularExperiment]:
    """The runs of the records `controls-N`, by seed."""
    return [replace(base, steps=CONTROL_STEPS, seed=seed) for seed in CONTROL_SEEDS]


def grid_points(name: str, base: ModularExperiment) -> list[ModularExperiment]:
    """The experiments of the record `decays` or `operations`, of which `base` gives the rest."""
    start = replace(base, steps=LIMIT, every=LOOK_EVERY)
    if name == "decays":
        each = itertools.product(*DECAY_GRID)
        return [replace(start, fraction=share, weight_decay=decay, seed=seed) for share, decay, seed in each]
    return [replace(start, task=task, fraction=share, seed=seed) for task, share, seed in itertools.product(*TABLES)]


def read_control_record(root: Path, name: str, base: ModularExperiment) -> Record:
    """The record `controls-N`, `decays` or `operations`, made by the experiments that would be trained today.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of other experiments; the message names the command that makes it again.
    """
    return Record.load(record_path(root, "grokking", name), "make records CHAPTER=grokking", **_made_from(name, base))


def _made_from(name: str, base: ModularExperiment) -> dict[str, Any]:
    if name in GRIDS:
        return {"experiments": stack_digest(grid_points(name, base)), "limit": LIMIT}
    first, second = _run_and_next(int(name.removeprefix("controls-")), base)
    return {"experiment": first.digest(), "other": second.digest(), "draws": DRAWS, "frames": FRAMES}


def _run_and_next(seed: int, base: ModularExperiment) -> tuple[ModularExperiment, ModularExperiment]:
    """The run of a seed and that of the next, the first for the last, whose frequencies are a control."""
    runs, number = control_experiments(base), CONTROL_SEEDS.index(seed)
    return runs[number], runs[(number + 1) % len(runs)]


def make_control_records(root: Path) -> None:
    """Make the record of each seed, one after the other; a killed recipe goes on from its last checkpoint.

    The runs are kept in `_build/runs` under their digests, where the recipe of `grokking_basins` finds them, too.
    """
    base = ModularExperiment()
    for seed in CONTROL_SEEDS:
        name = f"controls-{seed}"
        path, settings = record_path(root, "grokking", name), _made_from(name, base)
        if find_record(path, **settings):
            continue
        run, other = (train_or_load(each, root) for each in _run_and_next(seed, base))
        keys = key_frequencies_of_run(run)
        others = sorted(set(key_frequencies_of_run(other)) - set(keys))
        with deterministic(cores()):
            values = course_to_the_drop(run, keys, others, seed, name) | embedding_film(run, keys)
        sets = {"key": keys, "other seed": others}
        Record(name, values, {**settings, "seed": seed, "sets": sets}, provenance(seed)).save(path)


def make_grid_records(root: Path, scheduler: str) -> None:
    """Make the records `decays` and `operations`: `points` and the values of `GeneralisationTimes`, `(n,)` each."""
    base = ModularExperiment()
    for name in GRIDS:
        path, settings = record_path(root, "grokking", name), _made_from(name, base)
        experiments = grid_points(name, base)
        if not find_record(path, **settings):
            points = [[each.fraction, each.weight_decay, each.seed] for each in experiments]
            values = {"points": np.array(points, float), **sweep_times(experiments, root, scheduler, name)}
            Record(name, values, settings, provenance(None)).save(path)


def make_all(root: Path, scheduler: str) -> None:
    """Make what is missing of the records of the chapter `grokking`."""
    make_grokking(root, scheduler)
    make_control_records(root)
    make_grid_records(root, scheduler)


CHAPTERS = {"grokking": make_all}
