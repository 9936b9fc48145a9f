"""Numbers that other code hands in, as arrays that hold what they held."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def refuse_masks(values: object, name: str) -> None:
    """Raise a ValueError, which begins with `name`, at a masked array, or one in a list: numpy would drop the mask."""
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array: expected the numbers that count, as values.compressed() gives")
    for each in values if isinstance(values, (list, tuple)) else ():
        refuse_masks(each, name)


def as_real(values: object, name: str) -> NDArray[Any]:
    """Real numbers as an array of their own format, copied only if it has to be.

    Args:
        values: numbers, lists of numbers, an array, or a tensor: on any device, sparse, or with a gradient, which is
            left behind; bfloat16, which numpy does not have, becomes float32.
        name: of the argument, for the message.

    Raises:
        ValueError: complex numbers, a mask, text, truth values, or lists of unequal lengths.
    """
    torch: Any = sys.modules.get("torch")  # not imported here: only who has imported it can hand a tensor in
    if torch and isinstance(values, torch.Tensor):
        dense: Any = values.detach().to_dense().cpu()
        values = dense.float() if dense.dtype == torch.bfloat16 else dense.resolve_conj().resolve_neg()
    refuse_masks(values, name)
    try:
        array = np.asarray(values)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name} is no array of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} is of type {array.dtype}: expected real numbers")
    return array


def described(value: object) -> str:
    """Type and shape of an array or a tensor, and the type of anything else, for a message."""
    found: Any = value
    return f"{found.dtype} {tuple(found.shape)}" if hasattr(value, "dtype") else type(value).__name__


def check_whole(least: int = 1, **counts: object) -> None:
    """Refuse by its name a count that is no whole number of at least `least`; truth values are none.

    Raises:
        ValueError: names the first of them.
    """
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value}: expected at least {least}, a whole number")
