"""Along a run that generalises late: losses, progress measures and gradients (Nanda et al. 2023, section 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from descent.experiments.grokking import GrokkingRun, cross_entropy_in_double
from descent.models.vectors import flatten
from descent.spectra.fourier import (
    answer_coefficients,
    answer_share,
    excluded_logits,
    frequency_norms,
    gini,
    restricted_logits,
)
from descent.spectra.singular_values import Spectrum, gram_matrix
from descent.training.loop import MiniBatches

Array = NDArray[np.float64]


def mean_loss(logits: Tensor, targets: Tensor) -> float:
    """Cross-entropy with the softmax in float64, in nats, mean per example; `(n, classes)`, `(n,)`."""
    return float(nn.functional.cross_entropy(logits.double(), targets))


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Share of examples whose largest logit is the target's; shapes as above."""
    return float((logits.argmax(1) == targets).double().mean())


def train_and_test_losses(
    run: GrokkingRun, rows: Iterable[NDArray[np.floating]], progress: str | None = None
) -> dict[str, Array]:
    """Loss (nats, mean per example) and accuracy of the training and of the other examples, for any flat weights.

    Returns:
        `train_loss`, `test_loss`, `train_accuracy`, `test_accuracy`, one `(len(rows),)` each.
    """
    found = []
    for row in tqdm(rows, desc=progress, disable=progress is None):
        logits, targets = run.logits(row), run.task.targets
        parts = [(logits[part], targets[part]) for part in (run.train, run.test)]
        found.append([mean_loss(*part) for part in parts] + [accuracy(*part) for part in parts])
    names = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    return dict(zip(names, np.array(found).reshape(-1, 4).T, strict=True))


def progress_measures(
    run: GrokkingRun,
    sets: Mapping[str, Sequence[int]],
    rows: NDArray[np.floating] | None = None,
    progress: str | None = None,
) -> dict[str, Array]:
    """The measures of Nanda et al. 2023 (section 5.1) along a run on addition, for several sets of frequencies.

    Args:
        run: of addition modulo an odd p.
        sets: name -> frequencies, such as the key ones of the final weights, and controls.
        rows: `(m, P)` flat weights; None takes those of the run.
        progress: text before a progress bar; None shows none.

    Returns:
        Arrays `(m,)`: `squares` (sum of squared weights), `gini_embedding`, `gini_map` (of the norms of the frequencies
        of W_E and of the neuron-logit map); and for each set `restricted_loss`, `restricted_accuracy` (all examples),
        `excluded_loss` (training examples), `explained` (share of the logits' variance), each with " name" behind it;
        and `coefficients name` `(m, len(frequencies))`, the logits' inner products with the waves of a + b - c.
    """
    found: dict[str, list[float | list[float]]] = {}

    def note(name: str, value: float | list[float]) -> None:
        found.setdefault(name, []).append(value)

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
    return {name: np.array(values) for name, values in found.items()}


def path_gradients(
    run: GrokkingRun, rows: NDArray[np.floating], batch_size: int | None = None, progress: str | None = None
) -> NDArray[np.float32]:
    """The gradient of the training loss at each of `rows`, `(m, P)` (loss per unit of weight, mean per example).

    Args:
        run: gives task and split.
        rows: `(m, P)` flat weights.
        batch_size: of a mini-batch of its own for each row; None takes all training examples.
        progress: text before a progress bar; None shows none.
    """
    shown = run.task.pairs[run.train], run.task.targets[run.train]
    batches = MiniBatches(shown, batch_size or len(run.train), run.experiment.seed)
    found = np.empty(rows.shape, np.float32)
    for index, row in enumerate(tqdm(rows, desc=progress, disable=progress is None)):
        model = run.at(row)
        cross_entropy_in_double(model, batches(index)).backward()  # type: ignore[no-untyped-call]
        found[index] = flatten({name: part.grad for name, part in model.named_parameters() if part.grad is not None})
    return found


def logit_gram(run: GrokkingRun, rows: NDArray[np.floating], progress: str | None = None) -> Array:
    """The Gram matrix `(m, m)` of the logits of all examples at each of `rows` `(m, P)`, flattened.

    Of the principal components of the logits over training, it has all but the directions.
    """
    count, classes = len(run.task), run.task.symbols
    logits = np.empty((len(rows), count * classes), np.float32)
    for index, row in enumerate(tqdm(rows, desc=progress, disable=progress is None)):
        logits[index] = run.logits(row).flatten().numpy()
    return gram_matrix(logits)


def losses_without_components(
    run: GrokkingRun, found: Spectrum, count: int, progress: str | None = None
) -> dict[str, Array]:
    """Losses of each kept set of weights less its own part along one singular component, u_tk s_k v_k.

    Args:
        run: the run.
        found: of its kept weights, centred or not; what is subtracted has no mean in it where it is centred.
        count: components.
        progress: text before a progress bar; None shows none.

    Returns:
        As `train_and_test_losses`, but `(m, count)` each.
    """
    rows = run.stack.rows
    vectors = found.right(rows, count)
    parts = found.left[:, :count] * found.values[:count]
    less = (
        row - part * vector
        for row, weights in zip(rows, parts, strict=True)
        for part, vector in zip(weights, vectors.T, strict=True)
    )
    total = tqdm(less, desc=progress, disable=progress is None, total=parts.size)
    return {name: values.reshape(len(rows), count) for name, values in train_and_test_losses(run, total).items()}


def embedding_frequencies(run: GrokkingRun, rows: NDArray[np.floating]) -> Array:
    """Norm of each frequency in the W_E part of flat vectors `(m, P)`, such as weights, gradients, singular vectors.

    `(m, (p - 1) / 2)`, in the vectors' units; the token for "=" and the constant are left out.
    """
    part = run.stack.layout.slices()["W_E"]
    tables = torch.from_numpy(np.array(rows[:, part], np.float64)).view(len(rows), -1, run.task.symbols + 1)
    return np.stack([frequency_norms(table[:, :-1].T).numpy() for table in tables])


def first_lasting_step(values: Array, below: float) -> int | None:
    """The first index from which all values are below a threshold; None where the last one is not."""
    above = np.flatnonzero(~(np.asarray(values) < below))
    first = int(above[-1]) + 1 if len(above) else 0
    return first if first < len(values) else None
