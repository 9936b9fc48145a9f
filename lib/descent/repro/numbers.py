"""Numbers that other code hands in, as arrays that hold what they held."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def as_real(values: object, name: str) -> NDArray[Any]:
    """Real numbers as an array of their own format, copied only if it has to be.

    Args:
        values: numbers, lists of numbers, an array, or a tensor: on any device, sparse, or with a gradient, which is
            left behind; bfloat16, which numpy does not have, becomes float32.
        name: of the argument, for the message.

    Raises:
        ValueError: complex numbers, a mask, text, truth values, or lists of unequal lengths.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().to_dense().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values.resolve_conj().resolve_neg()
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array: expected the numbers that count, as values.compressed() gives")
    try:
        array = np.asarray(values)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name} is no array of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} is of type {array.dtype}: expected real numbers")
    return array


def check_whole(least: int = 1, **counts: object) -> None:
    """Refuse by its name a count that is no whole number of at least `least`; truth values are none.

    Raises:
        ValueError: names the first of them.
    """
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value}: expected at least {least}, a whole number")
