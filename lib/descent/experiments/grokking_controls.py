"""Controls of the progress measures of grokking: other frequencies, and averages that no shown pair enters.

A network restricted to waves of a + b answers by the sum alone, so that it is a table of p sums and p answers: the mean
of the logits over pairs of one sum, less its other waves. The source takes the mean over all pairs. A network that
knows the shown pairs by heart has the right answer in that mean, at every frequency, and one that has learnt that b + a
is a + b knows their mirror images, too; the mean over the pairs of which neither (a, b) nor (b, a) was shown has none
of either, and is called leak-free here. A thousand sets of frequencies are cheap on such tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from descent.data.group_tables import ModularTask
from descent.experiments.grokking import GrokkingRun
from descent.experiments.grokking_measures import (
    accuracy,
    embedding_frequencies,
    first_lasting_step,
    mean_loss,
    train_and_test_losses,
)
from descent.repro.seeding import numpy_generator
from descent.spectra.fourier_modulo_p import (
    answer_share,
    excluded_logits,
    fourier_basis,
    frequency_norms,
    neuron_frequencies,
)

Array = NDArray[np.float64]
DRAWS = 1000  # random sets of frequencies
AT_ONCE = 100  # of these sets, so that their tables stay small
EXCLUDED = 40  # of these sets, the first ones, that are also taken away
SHUFFLES = 100  # of which unseen pairs count as mirrored
FORESEEN = (0, 100, 300)  # steps after which frequencies are told by the embedding
FRAMES = 48  # kept weights that the chapter's figure can show


@cache
def _waves(p: int) -> Tensor:
    """The cosine and the sine of each frequency, `((p - 1) / 2, 2, p)` float64, made once; nobody writes into them."""
    return fourier_basis(p)[1:].view(-1, 2, p)


def mean_by_sum(logits: Tensor, pairs: Tensor | None = None) -> Tensor:
    """The mean of the logits over pairs of one sum, `(p * p, p) -> (p, p)` float64: a row for each sum.

    Args:
        logits: of all pairs (a, b), in the order a p + b.
        pairs: indices `(n,)` of the pairs that count, such as a run's test pairs; None takes all. A sum that has none
            of them gets the mean of the other rows, which is a constant answer.

    Raises:
        ValueError: the number of rows is not the square of the number of columns, or no pair counts.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 4.0], [0.0, 2.0], [3.0, 0.0]])  # of 0 + 0, 0 + 1, 1 + 0, 1 + 1
        >>> mean_by_sum(logits).tolist()
        [[2.0, 0.0], [0.0, 3.0]]
        >>> mean_by_sum(logits, torch.tensor([0, 2])).tolist()
        [[1.0, 0.0], [0.0, 2.0]]
    """
    p = logits.shape[1]
    if logits.shape != (p * p, p):
        raise ValueError(f"logits of shape {tuple(logits.shape)}: expected (p * p, p)")
    if pairs is None:
        a = torch.arange(p)[:, None]
        return logits.double().view(p, p, p)[a, (torch.arange(p) - a) % p].mean(0)
    if not len(pairs):
        raise ValueError("no pair counts: expected at least one")
    sums = (pairs // p + pairs) % p
    counts = torch.bincount(sums, minlength=p)
    totals = torch.zeros(p, p, dtype=torch.float64).index_add_(0, sums, logits[pairs].double())
    table = totals / counts.clamp(min=1)[:, None]
    table[counts == 0] = table[counts > 0].mean(0)
    return table


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
    basis = _waves(p)
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


class _Sets:
    """The sets of frequencies of a run's controls, and what a table or its logits are along each of them."""

    def __init__(self, named: Mapping[str, Sequence[int]], p: int, seed: int, draws: int) -> None:
        self.p, self.named = p, indicator(list(named.values()), p)
        self.names, self.random = list(named), random_sets(list(named["key"]), p, seed, draws)
        self.waves = _waves(p)

    def restricted(self, table: Tensor) -> dict[str, Any]:
        """Loss and accuracy of a restricted table: of each named set, each random set, each single frequency."""
        found: dict[str, Any] = {}
        named, single = (restricted_to_sets(table, each) for each in (self.named, torch.eye(self.p // 2).double()))
        drawn = [restricted_to_sets(table, some) for some in torch.split(self.random, AT_ONCE)]
        for number, kind in enumerate(("loss", "accuracy")):
            found |= {f"{kind} {name}": float(value) for name, value in zip(self.names, named[number], strict=True)}
            found[f"{kind} random"] = torch.cat([pair[number] for pair in drawn]).numpy()
            found[f"{kind} single"] = single[number].numpy()
        return found

    def along(self, table: Tensor, sets: Tensor) -> Tensor:
        """The part of a table along the waves of each set, `(d, p, p)`."""
        parts = torch.einsum("kis,kit,tc->ksc", self.waves, self.waves, table)
        return torch.einsum("dk,ksc->dsc", sets.double(), parts)


def measure_controls(
    run: GrokkingRun,
    sets: Mapping[str, Sequence[int]],
    span: tuple[int, int] | None = None,
    progress: str | None = None,
    draws: int = DRAWS,
) -> dict[str, Array]:
    """The progress measures of one run on addition with their controls, at each of its `m` kept weights.

    Beside the given sets of frequencies are `complement`, all that are not key; `all`; and `foreseen N`, as many as
    there are keys, those with the largest norms in the embedding after N steps, for N in FORESEEN, and
    `foreseen memorised`, when the shown pairs are known. That there are so many is known from the keys; so there is
    `foreseen four`, which takes four at that time, whatever the run.

    Args:
        run: a run on addition modulo an odd p.
        sets: name -> frequencies; those of `key` are the ones whose progress is asked for, its own or another run's.
        span: first and last row over which random sets are summed up; None takes the run's own, memorisation to the
            drop of the test loss.
        progress: text before a progress bar; None shows none.
        draws: number of random sets.

    Returns:
        Arrays over kept steps: `steps`, losses and accuracies as in `train_and_test_losses`, `norms` and `coefficients`
        `(m, (p - 1) / 2)` of the frequencies of W_E and of the logits' waves of a + b - c. For either mean, leak-free
        ("test": of neither order shown) and the source's ("all"), and each set `test loss key` and so on; the same of
        `single` frequencies `(m, (p - 1) / 2)` and as 5th, 50th and 95th percentile over `random` sets `(m, 3)`. Of the
        shown pairs without a set's waves `excluded loss` and `excluded accuracy`, with `random` over EXCLUDED sets,
        `subspace` and `shrunk`, see `excluded_controls`; `memory loss`, `memory accuracy`, of the test pairs without
        the key waves; `share`, of the logits' variance along the key waves of a + b. What `mirror_gaps` gives.
        `marks` `(2,)`, the steps of memorising and of generalising, NaN where it does not happen; `span` `(2,)`.
        Of each random set over the span, NaN where it has no end, `test areas`, `test means`, `all areas` and
        `all means` `(draws,)`: area below ln p and mean accuracy.
    """
    losses, p, rows = train_and_test_losses(run, run.stack.rows), run.experiment.p, run.stack.rows
    own = memorised_and_generalised(losses["train_loss"], losses["test_loss"])
    norms = embedding_frequencies(run, rows)
    keys, every = sets["key"], range(1, p // 2 + 1)
    named = {**sets, "complement": [k for k in every if k not in keys], "all": every}
    named |= foreseen_sets(run.stack.steps, norms, own[0], len(keys))
    of_sets, columns = _Sets(named, p, run.experiment.seed, draws), dict[str, list[Any]]()
    subspace = random_subspace(p, 2 * len(keys), run.experiment.seed)
    mirrored, _ = mirrored_pairs(run.task, run.train)
    unknown = run.test[torch.from_numpy(~mirrored)[run.test]]
    for row in tqdm(rows, desc=progress, disable=progress is None):
        logits = run.logits(row)
        tables = {"test": mean_by_sum(logits, unknown), "all": mean_by_sum(logits)}
        one = {f"{mean} {what}": v for mean, each in tables.items() for what, v in of_sets.restricted(each).items()}
        one |= excluded_controls(run, logits, of_sets, subspace) | mirror_gaps(run, logits, mirrored)
        one["coefficients"] = wave_coefficients(tables["all"])
        for name, value in one.items():
            columns.setdefault(name, []).append(value)
    found = {name: np.array(values) for name, values in columns.items()}
    steps = run.stack.steps.astype(float)
    marks = [math.nan if mark is None else steps[mark] for mark in own]
    ends = own if span is None else span
    summed = _summed_up(found, (math.nan, math.nan) if None in ends else ends, p)
    return {"steps": steps, **losses, "norms": norms, **found, "marks": np.array(marks), **summed}


def _summed_up(found: dict[str, Array], span: Sequence[float | None], p: int) -> dict[str, Array]:
    """Areas and means of random sets over the span; in `found` their draws are replaced by percentiles."""
    bounds = np.array(span, float)
    summed = {"span": bounds}
    for mean in ("test", "all"):
        losses, rights = (found[f"{mean} {kind} random"] for kind in ("loss", "accuracy"))
        areas = means = np.full(losses.shape[1], np.nan)
        if np.isfinite(bounds).all():
            between = slice(int(bounds.min()), int(bounds[1]) + 1)
            areas, means = area_below_constant(losses[between], p), rights[between].mean(0)
        summed |= {f"{mean} areas": areas, f"{mean} means": means}
    for name in [each for each in found if each.endswith(" random")]:
        found[name] = np.percentile(found[name], (5, 50, 95), axis=1).T
    return summed


def memorised_and_generalised(train_loss: Array, test_loss: Array) -> tuple[int | None, int | None]:
    """The rows from which the training loss stays below 0.01 and the test loss below 1; None where one does not."""
    return first_lasting_step(train_loss, 0.01), first_lasting_step(test_loss, 1.0)


def foreseen_sets(steps: NDArray[Any], norms: Array, memorised: int | None, count: int) -> dict[str, list[int]]:
    """The `count` frequencies with the largest norms `(m, (p - 1) / 2)` in kept weights, see `measure_controls`.

    Those told at a step that was not kept, or when the pairs are known where they never are, are the empty set.
    """
    rows: dict[str, int | None] = {f"foreseen {step}": None for step in FORESEEN}
    rows |= {f"foreseen {step}": row for row, step in enumerate(steps.tolist()) if step in FORESEEN}
    sizes = {**dict.fromkeys(rows, count), "foreseen memorised": count, "foreseen four": 4}
    rows |= {"foreseen memorised": memorised, "foreseen four": memorised}
    found = {}
    for name, row in rows.items():
        order = np.array([], int) if row is None else np.argsort(-norms[row], kind="stable")
        found[name] = sorted((order[: sizes[name]] + 1).tolist())
    return found


def wave_coefficients(table: Tensor) -> Array:
    """`answer_coefficients` of every frequency from the mean of the logits by sum `(p, p)`, `((p - 1) / 2,)`."""
    p, waves = len(table), _waves(len(table)).flatten(0, 1)
    along = torch.einsum("is,sc,ic->i", waves, table, waves).view(-1, 2).sum(1) * math.sqrt(p / 2)
    found: Array = along.numpy()
    return found


def random_subspace(p: int, count: int, seed: int) -> Tensor:
    """Orthonormal random functions of a pair with mean zero, `(p * p, count)` float64."""
    drawn = numpy_generator(seed, "subspace").standard_normal((p * p, count))
    return torch.from_numpy(np.linalg.qr(drawn - drawn.mean(0))[0])


def excluded_controls(run: GrokkingRun, logits: Tensor, sets: _Sets, subspace: Tensor) -> dict[str, Any]:
    """Loss and accuracy on shown pairs without the waves of each set, and what is as large and not a set of waves.

    The waves of a + b are taken from all pairs, as in the source. `subspace` takes away the logits' part in a random
    subspace of functions of a pair, scaled until it has the variance of the part along the key waves; `shrunk` makes
    all logits smaller until they have lost that variance, which changes no answer.
    """
    whole, shown, p = logits.double(), run.train, run.experiment.p
    table, sums = mean_by_sum(whole), run.task.targets[shown]
    along = sets.along(table, torch.cat([sets.named.float(), sets.random[:EXCLUDED]]))
    found = {name: whole[shown] - part[sums] for name, part in zip(sets.names, along, strict=False)}
    parts = [whole[shown] - part[sums] for part in along[len(sets.names) :]]
    key, centred = along[sets.names.index("key")], whole - whole.mean(0)
    flat = [each - each.mean(1, keepdim=True) for each in (key, centred)]
    variance = p * float(flat[0].square().sum())
    share = min(1.0, variance / max(float(flat[1].square().sum()), float(np.finfo(float).tiny)))
    drawn = subspace @ (subspace.T @ flat[1])
    scale = math.sqrt(variance / max(float(drawn.square().sum()), float(np.finfo(float).tiny)))
    found |= {"subspace": whole[shown] - scale * drawn[shown], "shrunk": math.sqrt(1 - share) * whole[shown]}
    of_all: dict[str, Any] = {"share": share}
    for kind, measure in (("loss", mean_loss), ("accuracy", accuracy)):
        of_all |= {f"excluded {kind} {name}": measure(each, sums) for name, each in found.items()}
        of_all[f"excluded {kind} random"] = np.array([measure(each, sums) for each in parts])
        of_all[f"memory {kind}"] = measure(
            whole[run.test] - key[run.task.targets[run.test]], run.task.targets[run.test]
        )
    return of_all


def mirror_gaps(run: GrokkingRun, logits: Tensor, mirrored: NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """The share of right answers on test pairs whose mirror image was shown, less that on the others.

    Args:
        run: gives the pairs.
        logits: of all pairs.
        mirrored: what `mirrored_pairs` says of them, where it is known already.

    Returns:
        `mirrored` and `alone`, the two shares; `shuffled gaps` `(SHUFFLES,)`, their difference where as many pairs are
        drawn at random. NaN where one of the two groups is empty.
    """
    test = run.test.numpy()
    own = (mirrored_pairs(run.task, run.train)[0] if mirrored is None else mirrored)[test]
    right = (logits[run.test].argmax(1) == run.task.targets[run.test]).numpy()
    if own.all() or not own.any():
        return {"mirrored": math.nan, "alone": math.nan, "shuffled gaps": np.full(SHUFFLES, np.nan)}
    draw = numpy_generator(run.experiment.seed, "mirror")
    gaps = []
    for _ in range(SHUFFLES):
        mixed = draw.permutation(own)
        gaps.append(right[mixed].mean() - right[~mixed].mean())
    return {"mirrored": float(right[own].mean()), "alone": float(right[~own].mean()), "shuffled gaps": np.array(gaps)}


def dissections(
    run: GrokkingRun, rows: Sequence[NDArray[np.floating] | None], sets: Mapping[str, Sequence[int]]
) -> dict[str, Array]:
    """What weights of a run on addition say of its algorithm (Nanda et al. 2023, section 4), for sets of frequencies.

    Args:
        run: gives task and network.
        rows: weights `(P,)` each, kept or last ones; None gives NaN.
        sets: name -> frequencies.

    Returns:
        `dissected NAME` `(len(rows), 6)`: how many key frequencies the weights have; the share of the logits' variance
        along the waves of a + b - c of the set; the share of neurons of which one frequency explains more than 85 %; of
        the squared norm of the map from neurons to logits the share beyond rank two per frequency of the set, and that
        off the set; the share of the variance of attention to the first number that one frequency explains, mean over
        heads. The first, third and last are of no set.
    """
    found = {f"dissected {name}": np.full((len(rows), 6), np.nan) for name in sets}
    for number, row in enumerate(rows):
        if row is None:
            continue
        model = run.at(row)
        with torch.no_grad():
            passed, table = model.activations(run.task.pairs), model.neuron_logit_map().double()
        frequency, share = neuron_frequencies(passed.neurons)
        own = torch.bincount(frequency[share > 0.85], minlength=1) > len(share) // 100
        clear, heads = float((share > 0.85).double().mean()), neuron_frequencies(passed.attention[:, :, 0])[1]
        norms, values = frequency_norms(table.T).square(), torch.linalg.svdvals(table).square()
        for name, frequencies in sets.items():
            outside = float(1 - norms[[k - 1 for k in frequencies]].sum() / norms.sum())
            beyond = float(values[2 * len(frequencies) :].sum() / values.sum())
            explained = answer_share(passed.logits[:, :-1], frequencies)
            found[f"dissected {name}"][number] = [int(own.sum()), explained, clear, beyond, outside, heads.mean()]
    return found


def marked_rows(run: GrokkingRun, span: Array) -> list[NDArray[np.floating] | None]:
    """The weights `(P,)` at the first row of a span, half-way and at its last row, and the last weights of the run.

    The first three are None where the span has no end.
    """
    begin, end = min(span[0], span[1]), span[1]
    marked = [None if math.isnan(row) else run.stack.rows[int(row)] for row in (begin, (begin + end) // 2, end)]
    return [*marked, run.final()]


def indicator(sets: Sequence[Sequence[int]], p: int) -> Tensor:
    """Sets of frequencies as `restricted_to_sets` takes them, `(len(sets), (p - 1) / 2)` float64."""
    rows = torch.zeros(len(sets), p // 2, dtype=torch.float64)
    for row, frequencies in zip(rows, sets, strict=True):
        row[[k - 1 for k in frequencies]] = 1.0
    return rows


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
    restricted = restricted_to_sets(mean_by_sum(logits), indicator([keys], run.experiment.p))[0][0]
    excluded = excluded_logits(logits, keys)[run.train]
    whole = [mean_loss(logits[part], targets[part]) for part in (run.train, run.test)]
    return [*whole, float(restricted), mean_loss(excluded, targets[run.train])]
