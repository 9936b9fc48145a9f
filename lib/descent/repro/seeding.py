"""Random streams from one integer, and deterministic runs. Global seeds and thread counts are set here only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from threadpoolctl import threadpool_limits


def _seed_of(seed: int, name: str) -> int:
    """A seed of 63 bits for the stream `name`; the streams of one seed, or of neighbouring seeds, are unrelated.

    The seed's words of 32 bits are followed by the name's bytes, so that a highest word which is a letter would read as
    the name's first one.
    """
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed={seed}: expected a non-negative integer")
    seed = int(seed)
    if not name.isprintable():
        raise ValueError(f"stream {name!r}: expected printable letters; with others it could be that of another seed")
    *rest, highest = [seed >> shift & 0xFFFFFFFF for shift in range(0, max(1, seed.bit_length()), 32)]
    if 32 <= highest < 256 and rest and (rest[-1] or len(rest) == 1):
        raise ValueError(
            f"seed={seed}: it has the streams of a smaller one, of names with one letter more; name another"
        )
    entropy = np.random.SeedSequence([seed, *name.encode()])
    return int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))


def torch_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator of torch for the stream `name` of `seed`; streams of other names or seeds are unrelated.

    Raises:
        ValueError: a negative seed; a name with a letter that cannot be printed; or a seed whose streams would be those
            of another: from 2**37 to 2**40, and where a further word of 32 bits is as small as a letter.

    Example:
        >>> draws = [torch.rand(2, generator=torch_generator(0, name)) for name in ("batches", "batches", "noise")]
        >>> torch.equal(draws[0], draws[1]), torch.equal(draws[0], draws[2])
        (True, False)
    """
    return torch.Generator().manual_seed(_seed_of(seed, name))


def numpy_generator(seed: int, name: str) -> np.random.Generator:
    """A generator of NumPy for the stream `name` of `seed`; see `torch_generator`, which says what is refused, too."""
    return np.random.default_rng(_seed_of(seed, name))


@contextmanager
def global_seed(seed: int, name: str) -> Iterator[None]:
    """Seed the global CPU generator of torch inside the block, and restore its state afterwards.

    Layers draw their initial weights from it, in float32: a seed means the same numbers whatever the default format.
    """
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_seed_of(seed, name))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


@contextmanager
def deterministic(threads: int = 1) -> Iterator[None]:
    """Use deterministic kernels and `threads` threads of torch and BLAS inside the block; restore both afterwards.

    A computation then repeats its bits on one machine; with another thread count or processor, last bits may differ.

    Example:
        >>> with deterministic(1):
        ...     torch.get_num_threads()
        1
    """
    old_threads, old_mode = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    old_fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    # deterministic kernels would otherwise fill each new array, at the cost of a pass over memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        with threadpool_limits(threads, user_api="blas"):
            yield
    finally:
        torch.use_deterministic_algorithms(old_mode)
        torch.utils.deterministic.fill_uninitialized_memory = old_fill  # type: ignore[attr-defined]
        torch.set_num_threads(old_threads)
