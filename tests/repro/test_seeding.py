import os

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from descent.repro.machine import cores
from descent.repro.seeding import deterministic, global_seed, numpy_generator, torch_generator


def draws(seed: int, name: str) -> tuple[float, ...]:
    torch_draw = torch.rand(1, generator=torch_generator(seed, name)).item()
    return torch_draw, numpy_generator(seed, name).random()


def test_streams_repeat_and_differ_by_seed_and_name() -> None:
    assert draws(3, "batches") == draws(3, "batches")
    assert len({draws(s, n) for s in (0, 1, 2) for n in ("batches", "weights", "")}) == 9


def test_negative_seed_is_named() -> None:
    with pytest.raises(ValueError, match="seed=-1: expected a non-negative integer"):
        torch_generator(-1, "batches")


@pytest.mark.parametrize("name", ["\0", "a\0", "\0a", "a\nb", "\ud800"])
def test_a_name_that_could_be_another_seeds_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected printable letters; with others it could be that of another seed"):
        torch_generator(0, name)


@pytest.mark.parametrize("seed", [5 + 97 * 2**32, 2**37, 2**40 - 1, 1 + (32 << 64) + (1 << 32), 97 * 2**32])
def test_a_seed_with_the_streams_of_another_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed={seed}: it has the streams of a smaller one, of names with one letter"):
        numpy_generator(seed, "a")


def test_all_other_large_seeds_have_streams_of_their_own() -> None:
    """Chapters are run with such seeds; the first is that of the last word's zeros and a name, which is refused."""
    seeds = [0, 1, 2**32 - 1, 2**32, 2**37 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 97, 97 << 64]
    names = ["", "a", "b", " a", "ä", "aa", "batches", "weights"]
    assert len({numpy_generator(seed, name).random() for seed in seeds for name in names}) == len(seeds) * len(names)


def test_the_streams_are_those_of_every_edition_so_far() -> None:
    """Drawn by `numpy.random.SeedSequence([seed, *name])` itself."""
    for seed, name in ((0, "batches"), (2**63, "classifier 3"), (2**64, ""), (7, "größe")):
        state = np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        assert numpy_generator(seed, name).random() == np.random.default_rng(int(state)).random()


def test_global_seed_restores_the_callers_stream() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with global_seed(0, "weights"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with global_seed(0, "weights"):
        assert torch.equal(torch.rand(3), inside)


def test_deterministic_sets_and_restores_threads_and_mode() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))  # loads BLAS
    before = torch.get_num_threads()
    with deterministic(1):
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        assert {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"} == {1}
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_cores_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESCENT_CORES", "3")
    assert cores() == 3
    monkeypatch.setenv("DESCENT_CORES", "many")
    with pytest.raises(ValueError, match="DESCENT_CORES='many': expected a positive integer"):
        cores()
    monkeypatch.delenv("DESCENT_CORES")
    assert 1 <= cores() <= (os.cpu_count() or 1)
