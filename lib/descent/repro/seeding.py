"""From one integer to every random number; the only place that touches global seeds, determinism and thread counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from threadpoolctl import threadpool_limits


def _seed_of(seed: int, name: str) -> int:
    """A 63-bit seed for the stream `name`: streams of one seed, or of neighbouring seeds, are unrelated."""
    if seed < 0:
        raise ValueError(f"seed={seed}: expected a non-negative integer")
    entropy = np.random.SeedSequence([seed, *name.encode()])
    return int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))


def torch_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator for the stream `name` of `seed`, such as `torch_generator(0, "batches")`.

    Raises:
        ValueError: a negative seed.
    """
    return torch.Generator().manual_seed(_seed_of(seed, name))


def numpy_generator(seed: int, name: str) -> np.random.Generator:
    """The NumPy generator for the stream `name` of `seed`.

    Raises:
        ValueError: a negative seed.
    """
    return np.random.default_rng(_seed_of(seed, name))


@contextmanager
def global_seed(seed: int, name: str) -> Iterator[None]:
    """Seed torch's global CPU generator inside the block, as layer initialisers need, and put its state back after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_seed_of(seed, name))
        yield


@contextmanager
def deterministic(threads: int = 1) -> Iterator[None]:
    """Inside the block: torch's deterministic kernels, and `threads` threads for torch and BLAS; restored after.

    One machine at one thread count then gives equal bits; another thread count or processor may differ in the last.
    """
    old_threads, old_mode = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    old_fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # one pass an array less
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        with threadpool_limits(threads, user_api="blas"):
            yield
    finally:
        torch.use_deterministic_algorithms(old_mode)
        torch.utils.deterministic.fill_uninitialized_memory = old_fill  # type: ignore[attr-defined]
        torch.set_num_threads(old_threads)
