"""Binary operations on finite sets as classification tasks: given a and b, name the result.

The set-up of Power et al. 2022 (Grokking, section 2): every pair is an example, the elements are tokens without any
structure, and a fraction of the table is shown in training.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Grid = NDArray[np.int64]
S5 = "s5"


def _inverse(b: Grid, p: int) -> Grid:
    return np.array([pow(int(value), -1, p) for value in b], dtype=np.int64)


# name -> (a, b, p) -> result; `division` is of the residues but zero, and so needs a prime
MODULAR: dict[str, Callable[[Grid, Grid, int], Grid]] = {
    "addition": lambda a, b, p: (a + b) % p,
    "subtraction": lambda a, b, p: (a - b) % p,
    "squares": lambda a, b, p: (a * a + b * b) % p,
    "division": lambda a, b, p: a * _inverse(b, p) % p,
}
OPERATIONS = (*MODULAR, S5)


@dataclass(frozen=True)
class ModularTask:
    """A table of an operation.

    Attributes:
        name: one of OPERATIONS.
        symbols: elements of the set, tokens 0 to symbols - 1.
        pairs: `(n, 2)` int64, in the order of a, then b.
        targets: `(n,)` int64, the result of each.
    """

    name: str
    symbols: int
    pairs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


def is_prime(number: int) -> bool:
    """Whether the number is prime, by trial division."""
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def modular_task(name: str, p: int = 113) -> ModularTask:
    """All examples of an operation.

    Args:
        name: `addition`, `subtraction`, `squares` (a^2 + b^2) or `division` modulo p, or `s5`: b, then a, of the 120
            permutations of five things, in lexicographic order.
        p: the modulus; of no use to `s5`.

    Raises:
        ValueError: an unknown name; a modulus below 2; for `division`, one that is not prime.
    """
    if name not in OPERATIONS:
        raise ValueError(f"operation {name!r}: expected one of {', '.join(OPERATIONS)}")
    if name == S5:
        return _permutations()
    if p < 2:
        raise ValueError(f"p={p}: expected a modulus of at least 2")
    if name == "division" and not is_prime(p):
        near = next(number for number in itertools.count(p) if is_prime(number))
        raise ValueError(f"p={p}: division needs a prime, such as {near}")
    start = 1 if name == "division" else 0
    a, b = (part.ravel() for part in np.meshgrid(np.arange(p), np.arange(start, p), indexing="ij"))
    return _task(name, p, a, b, MODULAR[name](a, b, p))


def _permutations() -> ModularTask:
    elements = np.array(list(itertools.permutations(range(5))))
    number = {tuple(element): index for index, element in enumerate(elements.tolist())}
    a, b = (part.ravel() for part in np.meshgrid(np.arange(120), np.arange(120), indexing="ij"))
    composed = np.take_along_axis(elements[a], elements[b], axis=1)
    return _task(S5, 120, a, b, np.array([number[tuple(row)] for row in composed.tolist()]))


def _task(name: str, symbols: int, a: Grid, b: Grid, results: Grid) -> ModularTask:
    pairs = torch.from_numpy(np.stack([a, b], axis=1).astype(np.int64))
    return ModularTask(name, symbols, pairs, torch.from_numpy(results.astype(np.int64)))


def split_pairs(count: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the other examples, `(n,)` and `(count - n,)` int64.

    As in the published code of Nanda et al. 2023: all examples shuffled by Python's generator, the first
    int(fraction * count) are for training, so that a seed names the same split.

    Raises:
        ValueError: a fraction that leaves either part empty.
    """
    shown = int(fraction * count)
    if not 0 < shown < count:
        raise ValueError(f"fraction={fraction}: expected one that leaves 1 to {count - 1} of {count} for training")
    order = list(range(count))
    random.Random(seed).shuffle(order)
    indices = torch.tensor(order)
    return indices[:shown], indices[shown:]
