"""The Fourier transform on the integers modulo p, and a network that adds with it (Nanda et al. 2023, section 4).

`logits` and `neurons` have a row for each pair (a, b) of residues, `(p * p, c)`, which is row a p + b. A frequency k, 1
to (p - 1) / 2 with p odd, stands for the waves cos(2 pi k x / p) and sin(2 pi k x / p).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from descent.repro.numbers import as_real, check_whole

ROUNDING = 1e-24  # a share of the sum of squares below it is nothing but rounding


def fourier_basis(p: int) -> Tensor:
    """The constant, and the cosines and sines over the residues, as orthonormal rows: `(p, p)` float64.

    Their order is constant, cos 1, sin 1, cos 2, sin 2 and so on.

    Raises:
        ValueError: p is below 3, or even: then one wave has no partner.
    """
    check_whole(3, p=p)
    if p % 2 == 0:
        raise ValueError(f"p={p}: expected an odd number of at least 3")
    x = torch.arange(p, dtype=torch.float64)
    waves = [torch.full((p,), math.sqrt(1 / p), dtype=torch.float64)]
    for k in range(1, p // 2 + 1):
        angle = 2 * math.pi * (k * x % p) / p
        waves += [angle.cos() * math.sqrt(2 / p), angle.sin() * math.sqrt(2 / p)]
    return torch.stack(waves)


def _double(values: Tensor) -> Tensor:
    """A matrix of real numbers in float64; a tensor keeps its gradient."""
    matrix = values if isinstance(values, Tensor) else torch.from_numpy(as_real(values, "values").astype(np.float64))
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.is_complex():
        raise ValueError(f"values of shape {tuple(matrix.shape)}, {matrix.dtype}: expected a matrix of real numbers")
    return matrix.to_dense().double()


def _scale(values: Tensor) -> float:
    """A power of two that brings the largest number near one: it changes no digit, and squares stay in range."""
    return float(2.0 ** -max(math.frexp(float(values.detach().abs().max()))[1], -1000))


def frequency_norms(table: Tensor) -> Tensor:
    """The norm of each frequency of a map from the residues, `(p, c) -> ((p - 1) / 2,)`; entry k - 1 is frequency k.

    The norm is over the cosine, the sine and all columns. Such a map is an embedding, with a row for each residue. All
    norms are NaN where a number is.

    Raises:
        ValueError: no matrix of real numbers, or p is below 3, or even.

    Examples:
        >>> residues = torch.arange(7).double()
        >>> frequency_norms(torch.cos(2 * math.pi * 3 * residues / 7)[:, None]).round(decimals=6).tolist()
        [0.0, 0.0, 1.870829]
    """
    raw = _double(table)
    rows = fourier_basis(len(raw)) @ (raw * _scale(raw))
    return rows[1:].square().sum(1).view(-1, 2).sum(1).sqrt() / _scale(raw)


def _side(values: Tensor) -> int:
    p = math.isqrt(len(values))
    if p * p != len(values):
        raise ValueError(f"values of shape {tuple(values.shape)}: expected (p * p, c), a row for each pair")
    return p


def transform_pairs(values: Tensor) -> Tensor:
    """The transform along a and b of functions of a pair, `(p * p, c) -> (p, p, c)`, ordered as `fourier_basis`."""
    raw = _double(values)
    p = _side(raw)
    basis = fourier_basis(p)
    return torch.einsum("ia,jb,abc->ijc", basis, basis, raw.view(p, p, -1))


def sum_waves(p: int, frequencies: Sequence[int]) -> Tensor:
    """The waves cos, sin of 2 pi k (a + b) / p over all pairs, `(2 len(frequencies), p * p)`, orthonormal.

    Raises:
        ValueError: a frequency that is out of range or comes twice, or p is even.
    """
    basis, rows = fourier_basis(p), []
    for number, k in enumerate(frequencies):
        if isinstance(k, float) or k not in range(1, p // 2 + 1) or k in frequencies[:number]:
            raise ValueError(f"frequency {k}: expected 1 to {p // 2} for p={p}, each once")
        cos, sin = basis[2 * k - 1], basis[2 * k]
        rows.append((torch.outer(cos, cos) - torch.outer(sin, sin)).flatten() / math.sqrt(2))
        rows.append((torch.outer(sin, cos) + torch.outer(cos, sin)).flatten() / math.sqrt(2))
    return torch.stack(rows) if rows else torch.zeros(0, p * p, dtype=torch.float64)


def _along_sum(logits: Tensor, frequencies: Sequence[int]) -> Tensor:
    """The projection of the logits on the waves of a + b of these frequencies, `(p * p, c)` float64."""
    raw = _double(logits)
    waves = sum_waves(_side(raw), frequencies)
    return waves.T @ (waves @ raw)


def restricted_logits(logits: Tensor, frequencies: Sequence[int]) -> Tensor:
    """The logits' part along the waves of a + b of these frequencies, and each class's mean over pairs: `(p * p, c)`.

    Their cross-entropy is the *restricted loss*, that of the algorithm alone (Nanda et al. 2023, section 5.1).

    Raises:
        ValueError: the number of rows is not the square of an odd p, or a frequency is out of range or comes twice.
    """
    return _along_sum(logits, frequencies) + _double(logits).mean(0)


def excluded_logits(logits: Tensor, frequencies: Sequence[int]) -> Tensor:
    """The logits without their part along the waves of a + b of these frequencies, `(p * p, c)` float64.

    Their cross-entropy on the training pairs is the *excluded loss*, that of memory alone (Nanda et al. 2023, section
    5.1). The part that is taken away comes from all pairs, the test pairs among them.

    Raises:
        ValueError: as `restricted_logits`.
    """
    return _double(logits) - _along_sum(logits, frequencies)


def answer_coefficients(logits: Tensor, frequencies: Sequence[int]) -> Tensor:
    """Inner products of the logits `(p * p, p)` with the waves of a + b - c, `(len(frequencies),)`.

    A wave is cos(2 pi k (a + b - c) / p) over all pairs and answers c, scaled to length one (Nanda et al. 2023, section
    4). It is never written out, as cos(x - y) = cos x cos y + sin x sin y, with x of a + b and y of c.
    """
    logits = _double(logits)
    p = _side(logits)
    if logits.shape[1] != p:
        raise ValueError(f"logits of shape {tuple(logits.shape)}: expected (p * p, p); drop the logit of '='")
    of_sums = sum_waves(p, frequencies) @ logits
    of_answers = fourier_basis(p)[[row for k in frequencies for row in (2 * k - 1, 2 * k)]]
    return (of_sums * of_answers).sum(1).view(len(frequencies), 2).sum(1) / math.sqrt(2)


def answer_share(logits: Tensor, frequencies: Sequence[int]) -> float:
    """The share of the variance of the logits that lies along the waves of a + b - c, 0 to 1.

    The mean over answers, which changes no probability, is taken off for each pair first. Logits `(p * p, p)` that do
    not vary, to rounding, give 0.

    Raises:
        ValueError: the logits have not p classes, a frequency is out of range or comes twice, or p is even.

    Examples:
        >>> a, b, c = torch.meshgrid(*[torch.arange(7).double()] * 3, indexing="ij")
        >>> logits = torch.cos(2 * math.pi * 2 * (a + b - c) / 7).reshape(49, 7)
        >>> round(answer_share(logits, [2]), 6), round(answer_share(logits, [3]), 6)
        (1.0, 0.0)
    """
    raw = _double(logits) * _scale(_double(logits))
    centred = raw - raw.mean(1, keepdim=True)
    total, along = float(centred.square().sum()), answer_coefficients(centred, frequencies)
    return 0.0 if total <= ROUNDING * float(raw.square().sum()) else float(along.square().sum()) / total


def neuron_frequencies(neurons: Tensor) -> tuple[Tensor, Tensor]:
    """The frequency that explains most of each neuron's variance over pairs, and the share that it explains.

    A frequency has eight components: its two waves of a, its two waves of b, and their four products (Nanda et al.
    2023, appendix C). For neurons `(p * p, m)` the frequencies are `(m,)` int64, from 1, and the shares `(m,)` float64;
    the share of a neuron that does not vary is 0.

    Raises:
        ValueError: the number of rows is not the square of an odd p, or a number is not finite.
    """
    raw = _double(neurons) * _scale(_double(neurons))
    if not raw.isfinite().all():
        raise ValueError(f"neuron {int((~raw.isfinite().all(0)).nonzero()[0])} has a number that is not finite")
    energy = transform_pairs(raw - raw.mean(0)).square()  # (p, p, m)
    half = len(energy) // 2
    waves_of_a = energy[1:, 0].view(half, 2, -1).sum(1)
    waves_of_b = energy[0, 1:].view(half, 2, -1).sum(1)
    blocks = energy[1:, 1:].view(half, 2, half, 2, -1).sum((1, 3))
    products = blocks.diagonal(dim1=0, dim2=1).T  # (half, m)
    total = energy.sum((0, 1))
    varies = total > ROUNDING * raw.square().sum(0)
    share = torch.where(varies, (waves_of_a + waves_of_b + products) / torch.where(varies, total, 1), 0)
    best = share.max(0)
    return best.indices + 1, best.values


def key_frequencies(neurons: Tensor, cut: float = 0.85, fewest: int = 1) -> list[int]:
    """The frequencies that explain more than `cut` of the variance of at least `fewest` neurons, ascending.

    Raises:
        ValueError: as `neuron_frequencies`, or `cut` is not in [0, 1), or `fewest` is below 1.
    """
    check_whole(fewest=fewest)
    if not 0 <= cut < 1:
        raise ValueError(f"cut={cut}: expected 0 <= cut < 1")
    frequency, share = neuron_frequencies(neurons)
    counts = torch.bincount(frequency[share > cut], minlength=1)
    return [k for k, count in enumerate(counts.tolist()) if k and count >= fewest]


def gini(values: Tensor) -> float:
    """Gini coefficient of n numbers that are not negative: 0 where all are equal, 1 - 1/n where all but one are zero.

    It is NaN where one of the numbers is NaN or infinite.

    Raises:
        ValueError: a negative number, or no number at all.

    Examples:
        >>> gini(torch.tensor([1.0, 1.0])), gini(torch.tensor([0.0, 3.0, 0.0, 0.0]))
        (0.0, 0.75)
    """
    ordered = torch.from_numpy(np.sort(as_real(values, "values").astype(float), axis=None))
    n = len(ordered)
    if n == 0 or ordered[0] < 0:
        raise ValueError(f"{n} values, smallest {float(ordered[0]) if n else None}: expected some, none below zero")
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    total = float(ordered.sum())
    return float(((2 * ranks - n - 1) * ordered).sum()) / (n * total) if total else 0.0
