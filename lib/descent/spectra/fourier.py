"""The Fourier transform on the integers modulo p, and a network that adds with it (Nanda et al. 2023, section 4).

Everything is a plain tensor. `logits` and `neurons` have a row for each pair, `(p * p, c)`, in the order of a, then b:
row a p + b. A frequency k stands for the waves cos(2 pi k x / p) and sin(2 pi k x / p), k = 1 to (p - 1) / 2, p odd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def fourier_basis(p: int) -> Tensor:
    """Rows constant, cos 1, sin 1, cos 2, ...: `(p, p)` float64, orthonormal.

    Raises:
        ValueError: p is even or below 3: an even p has a wave without a partner.
    """
    if p < 3 or p % 2 == 0:
        raise ValueError(f"p={p}: expected an odd number of at least 3")
    x = torch.arange(p, dtype=torch.float64)
    waves = [torch.full((p,), math.sqrt(1 / p), dtype=torch.float64)]
    for k in range(1, p // 2 + 1):
        angle = 2 * math.pi * (k * x % p) / p
        waves += [angle.cos() * math.sqrt(2 / p), angle.sin() * math.sqrt(2 / p)]
    return torch.stack(waves)


def frequency_norms(table: Tensor) -> Tensor:
    """Norm of each frequency of a map from the residues, `(p, c) -> ((p - 1) / 2,)`: entry k - 1 is frequency k.

    Such a table is `W_E[:, :p].T`, or `W_L.T`: cosine and sine together, over all columns.
    """
    rows = fourier_basis(len(table)) @ table.double()
    return rows[1:].square().sum(1).view(-1, 2).sum(1).sqrt()


def _side(values: Tensor) -> int:
    p = math.isqrt(len(values))
    if values.ndim != 2 or p * p != len(values):
        raise ValueError(f"values of shape {tuple(values.shape)}: expected (p * p, c), a row for each pair")
    return p


def transform_pairs(values: Tensor) -> Tensor:
    """The two-dimensional transform of functions of a pair, `(p * p, c) -> (p, p, c)`, in the order of `fourier_basis`.

    Raises:
        ValueError: not p * p rows, p odd.
    """
    p = _side(values)
    basis = fourier_basis(p)
    return torch.einsum("ia,jb,abc->ijc", basis, basis, values.double().view(p, p, -1))


def _check_frequencies(frequencies: Sequence[int], p: int) -> list[int]:
    if bad := [k for k in frequencies if not 1 <= k <= p // 2]:
        raise ValueError(f"frequency {bad[0]}: expected 1 to {p // 2} for p={p}")
    return list(frequencies)


def sum_waves(p: int, frequencies: Sequence[int]) -> Tensor:
    """The waves cos, sin of 2 pi k (a + b) / p over all pairs, `(2 len(frequencies), p * p)`, orthonormal.

    Raises:
        ValueError: a frequency out of range, or p is even.
    """
    basis, rows = fourier_basis(p), []
    for k in _check_frequencies(frequencies, p):
        cos, sin = basis[2 * k - 1], basis[2 * k]
        rows.append((torch.outer(cos, cos) - torch.outer(sin, sin)).flatten() / math.sqrt(2))
        rows.append((torch.outer(sin, cos) + torch.outer(cos, sin)).flatten() / math.sqrt(2))
    return torch.stack(rows) if rows else torch.zeros(0, p * p, dtype=torch.float64)


def projected(logits: Tensor, frequencies: Sequence[int]) -> Tensor:
    """The part of the logits that depends on a + b by these frequencies alone, `(p * p, c)` float64."""
    waves = sum_waves(_side(logits), frequencies)
    return waves.T @ (waves @ logits.double())


def restricted_logits(logits: Tensor, frequencies: Sequence[int]) -> Tensor:
    """Only that part, and each class's mean over all pairs: `(p * p, c)`.

    Their cross-entropy is the *restricted loss* (Nanda et al. 2023, section 5.1): that of the algorithm alone.
    """
    return projected(logits, frequencies) + logits.double().mean(0)


def excluded_logits(logits: Tensor, frequencies: Sequence[int]) -> Tensor:
    """All but that part: `(p * p, c)`. On the training pairs their cross-entropy is the *excluded loss*: memory alone.

    The coefficients taken away come from all pairs, the test pairs among them.
    """
    return logits.double() - projected(logits, frequencies)


def answer_coefficients(logits: Tensor, frequencies: Sequence[int]) -> Tensor:
    """Inner products of the logits `(p * p, p)` with the waves of a + b - c: `(len(frequencies),)`.

    A wave is cos(2 pi k (a + b - c) / p) over all pairs and answers c, of unit length (Nanda et al. 2023, section 4).
    None is written out: cos(x - y) = cos x cos y + sin x sin y, with x of a + b and y of c.

    Raises:
        ValueError: logits of another number of classes than p, a frequency out of range, or p is even.
    """
    p = _side(logits)
    if logits.shape[1] != p:
        raise ValueError(f"logits of shape {tuple(logits.shape)}: expected (p * p, p); drop the logit of '='")
    of_answers = fourier_basis(p)[[row for k in _check_frequencies(frequencies, p) for row in (2 * k - 1, 2 * k)]]
    products = (sum_waves(p, frequencies) @ logits.double()) * of_answers
    return products.sum(1).view(len(frequencies), 2).sum(1) / math.sqrt(2)


def answer_share(logits: Tensor, frequencies: Sequence[int]) -> float:
    """Share of the variance of the logits, each pair's mean over answers taken off, along the waves of a + b - c.

    A pair's mean over the answers changes no probability. Logits that do not vary give 0.
    """
    centred = logits.double() - logits.double().mean(1, keepdim=True)
    total, along = float(centred.square().sum()), answer_coefficients(centred, frequencies)
    return float(along.square().sum()) / total if total else 0.0


def neuron_frequencies(neurons: Tensor) -> tuple[Tensor, Tensor]:
    """The frequency that explains most of each neuron, and the share of the neuron's variance over pairs that it does.

    A frequency's part has eight components: its waves of a, of b, and their four products (Nanda et al. 2023,
    appendix C). `(p * p, m) -> (m,)` int64 from 1 and `(m,)` float64; a neuron that does not vary has share 0.
    """
    raw = neurons.double()
    energy = transform_pairs(raw - raw.mean(0)).square()  # (p, p, m)
    half = len(energy) // 2
    waves_of_a = energy[1:, 0].view(half, 2, -1).sum(1)
    waves_of_b = energy[0, 1:].view(half, 2, -1).sum(1)
    blocks = energy[1:, 1:].view(half, 2, half, 2, -1).sum((1, 3))
    products = blocks.diagonal(dim1=0, dim2=1).T  # (half, m)
    total = energy.sum((0, 1))
    varies = total > 1e-24 * raw.square().sum(0)  # and is not rounding
    share = torch.where(varies, (waves_of_a + waves_of_b + products) / torch.where(varies, total, 1), 0)
    best = share.max(0)
    return best.indices + 1, best.values


def key_frequencies(neurons: Tensor, cut: float = 0.85, fewest: int = 1) -> list[int]:
    """The frequencies of neurons of which one explains more than `cut` of the variance, ascending.

    `fewest` is the number of such neurons that makes a frequency one.
    """
    frequency, share = neuron_frequencies(neurons)
    counts = torch.bincount(frequency[share > cut], minlength=1)
    return [k for k, count in enumerate(counts.tolist()) if k and count >= fewest]


def gini(values: Tensor) -> float:
    """Gini coefficient of numbers that are not negative: 0 where all are equal, 1 - 1/n where all but one are zero.

    Raises:
        ValueError: a negative number, or none.
    """
    ordered = values.double().flatten().sort().values
    n = len(ordered)
    if n == 0 or ordered[0] < 0:
        raise ValueError(f"{n} values, smallest {float(ordered[0]) if n else None}: expected some, none below zero")
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    total = float(ordered.sum())
    return float(((2 * ranks - n - 1) * ordered).sum()) / (n * total) if total else 0.0
