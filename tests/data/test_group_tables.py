from itertools import permutations

import pytest
import torch

from descent.data.group_tables import is_prime, modular_task, split_pairs

BY_HAND = {
    "addition": lambda a, b, p: (a + b) % p,
    "subtraction": lambda a, b, p: (a - b) % p,
    "squares": lambda a, b, p: (a**2 + b**2) % p,
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("p", [2, 7, 12])
def test_tables_are_the_arithmetic(name: str, p: int) -> None:
    task = modular_task(name, p)
    assert (len(task), task.symbols, task.pairs.dtype, task.targets.dtype) == (p * p, p, torch.int64, torch.int64)
    assert task.pairs.tolist() == [[a, b] for a in range(p) for b in range(p)]
    assert task.targets.tolist() == [BY_HAND[name](a, b, p) for a in range(p) for b in range(p)]


def test_division_undoes_multiplication() -> None:
    task = modular_task("division", 13)
    assert len(task) == 13 * 12
    for (a, b), result in zip(task.pairs.tolist(), task.targets.tolist(), strict=True):
        assert b != 0
        assert result * b % 13 == a


def test_s5_is_a_group_of_permutations() -> None:
    task, elements = modular_task("s5"), list(permutations(range(5)))
    assert (len(task), task.symbols) == (14400, 120)
    table = task.targets.view(120, 120)
    for a, b in ((3, 77), (119, 5), (42, 42)):
        assert elements[table[a, b]] == tuple(elements[a][elements[b][i]] for i in range(5))
    assert torch.equal(table[0], torch.arange(120))  # the first is the identity
    for line in (*table, *table.T):
        assert len(set(line.tolist())) == 120
    assert not torch.equal(table, table.T)
    assert torch.equal(table[table[7, 50], 99], table[7, table[50, 99]])


@pytest.mark.parametrize(
    ("name", "p", "message"),
    [
        ("multiply", 7, "operation 'multiply': expected one of addition, subtraction, squares, division, s5"),
        ("addition", 1, "p=1: expected a modulus of at least 2"),
        ("division", 12, "p=12: division needs a prime, such as 13"),
    ],
)
def test_what_does_not_exist_is_refused(name: str, p: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        modular_task(name, p)


def test_primes() -> None:
    assert [n for n in range(30) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]
    assert is_prime(113)


def test_a_split_is_its_seeds_and_the_published_codes() -> None:
    train, test = split_pairs(113 * 113, 0.3, 0)
    assert (len(train), len(test)) == (3830, 8939)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(113 * 113))
    import random

    pairs = [(i, j, 113) for i in range(113) for j in range(113)]
    random.seed(0)
    random.shuffle(pairs)
    assert modular_task("addition").pairs[train[:50]].tolist() == [list(pair[:2]) for pair in pairs[:50]]
    assert not torch.equal(split_pairs(100, 0.5, 1)[0], split_pairs(100, 0.5, 2)[0])


@pytest.mark.parametrize("fraction", [0.0, 0.001, 1.0, -0.2])
def test_a_split_without_a_part_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"fraction={fraction}: expected one that leaves 1 to 99 of 100 for training"):
        split_pairs(100, fraction, 0)
