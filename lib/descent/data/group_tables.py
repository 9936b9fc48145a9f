"""Binary operations on finite sets as classification tasks: given a and b, name the result.

The set-up is that of Power et al. 2022 (Grokking, section 2): every pair is an example, the elements are tokens without
any structure, and a fraction of the table is shown in training.
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

_Elements = NDArray[np.int64]


def _quotient(a: _Elements, b: _Elements, p: int) -> _Elements:
    return a * np.array([pow(int(value), -1, p) for value in b], dtype=np.int64) % p


def _composition(a: _Elements, b: _Elements, p: int) -> _Elements:
    elements = np.array(list(itertools.permutations(range(5))))
    number = {tuple(element): index for index, element in enumerate(elements.tolist())}
    composed = np.take_along_axis(elements[a], elements[b], axis=1)
    return np.array([number[tuple(row)] for row in composed.tolist()], dtype=np.int64)


# name -> (a, b, p) -> result; `division` is by residues other than zero, which have inverses if p is prime
_OPERATIONS: dict[str, Callable[[_Elements, _Elements, int], _Elements]] = {
    "addition": lambda a, b, p: (a + b) % p,
    "subtraction": lambda a, b, p: (a - b) % p,
    "squares": lambda a, b, p: (a * a + b * b) % p,
    "division": _quotient,
    "s5": _composition,
}


@dataclass(frozen=True)
class ModularTask:
    """The table of an operation.

    Attributes:
        name: of the operation, as `modular_task` has it.
        symbols: number of elements of the set, which are the tokens 0 to symbols - 1.
        pairs: `(n, 2)` int64, every a and b, sorted by a, then by b.
        targets: `(n,)` int64, the result for each pair.
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

    It is `addition`, `subtraction`, `squares` (a^2 + b^2) or `division` modulo p; or `s5`, for which p is not used: the
    composition "b, then a" of the 120 permutations of five things, which are numbered in lexicographic order.

    Raises:
        ValueError: the name is unknown, the modulus is below 2 or, for `division`, not prime.

    Example:
        >>> task = modular_task("addition", p=5)
        >>> task.pairs[:3].tolist(), task.targets[-3:].tolist()
        ([[0, 0], [0, 1], [0, 2]], [1, 2, 3])
    """
    if name not in _OPERATIONS:
        raise ValueError(f"operation {name!r}: expected one of {', '.join(_OPERATIONS)}")
    if name == "s5":
        p = 120
    elif p < 2:
        raise ValueError(f"p={p}: expected a modulus of at least 2")
    elif name == "division" and not is_prime(p):
        near = next(number for number in itertools.count(p) if is_prime(number))
        raise ValueError(f"p={p}: division needs a prime, such as {near}")
    elements, first = np.arange(p, dtype=np.int64), 1 if name == "division" else 0
    a, b = (part.ravel() for part in np.meshgrid(elements, elements[first:], indexing="ij"))
    pairs, results = np.stack([a, b], axis=1), _OPERATIONS[name](a, b, p)
    return ModularTask(name, p, torch.from_numpy(pairs), torch.from_numpy(results))


def split_pairs(count: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the examples for training and of the others, `(n,)` and `(count - n,)` int64.

    As in the published code of Nanda et al. 2023, the examples are shuffled by Python's generator, and the first
    n = int(fraction * count) are for training. A seed therefore gives the same split as there.

    Raises:
        ValueError: the fraction leaves one of the parts empty.

    Example:
        >>> train, test = split_pairs(count=10, fraction=0.3, seed=0)
        >>> len(train), sorted([*train.tolist(), *test.tolist()]) == list(range(10))
        (3, True)
    """
    shown = int(fraction * count)
    if not 0 < shown < count:
        raise ValueError(f"fraction={fraction}: expected one that leaves 1 to {count - 1} of {count} for training")
    order = list(range(count))
    random.Random(seed).shuffle(order)
    indices = torch.tensor(order)
    return indices[:shown], indices[shown:]


def split_mirrors(task: ModularTask, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """As `split_pairs`, but (a, b) and (b, a) stay together, so that no mirror image of an unseen pair is shown.

    Groups of one or two examples are shuffled, and taken in turn as long as they fit.

    Raises:
        ValueError: the fraction leaves one of the parts empty.

    Example:
        >>> train, test = split_mirrors(modular_task("addition", p=3), fraction=0.5, seed=0)
        >>> len(train), len(test), {1, 3} <= set(train.tolist()) or {1, 3} <= set(test.tolist())
        (4, 5, True)
    """
    shown = len(split_pairs(len(task), fraction, seed)[0])
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(task.pairs.tolist()):
        groups.setdefault(tuple(sorted(pair)), []).append(index)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    train: list[int] = []
    test: list[int] = []
    for group in order:
        (train if len(train) + len(group) <= shown else test).extend(group)
    return torch.tensor(train), torch.tensor(test)
