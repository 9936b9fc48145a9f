"""What other code hands in as numbers keeps its values, or is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from descent.repro.numbers import as_real, check_whole

KEPT: dict[str, tuple[Any, Any]] = {
    "number": (3, np.array(3)),
    "list": ([1, 2.5], np.array([1, 2.5])),
    "bfloat16": (torch.tensor([1.5], dtype=torch.bfloat16), np.array([1.5], np.float32)),
    "half": (np.array([1.5], np.float16), np.array([1.5], np.float16)),
    "parameter": (torch.nn.Parameter(torch.ones(2)), np.ones(2, np.float32)),
    "sparse": (torch.eye(2).to_sparse(), np.eye(2, dtype=np.float32)),
    "negative view": (torch.tensor([1 + 2j]).conj().imag, np.array([-2], np.float32)),
    "list of tensors": ([torch.ones(2), torch.zeros(2)], np.array([[1, 1], [0, 0]], np.float32)),
    "not finite": ([np.nan, np.inf], np.array([np.nan, np.inf])),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "complex": ([1j], "x is of type complex128: expected real numbers"),
    "complex tensor": (torch.ones(1) * 1j, "x is of type complex64: expected real numbers"),
    "mask": (np.ma.array([1, 2], mask=[0, 1]), r"x is a masked array: .* as values.compressed\(\) gives"),
    "list of masked arrays": ([np.ma.array([1, 2], mask=[0, 1])], "x is a masked array"),
    "mask in a list": ([1.0, (2.0, np.ma.masked)], "x is a masked array"),
    "text": ("1", "x is of type <U1: expected real numbers"),
    "truth": ([True], "x is of type bool: expected real numbers"),
    "nothing": (None, "x is of type object: expected real numbers"),
    "uneven": ([[1], [2, 3]], "x is no array of numbers: "),
    "list with gradients": ([torch.ones(1, requires_grad=True)], "x is no array of numbers: .*tensor.detach"),
}


@pytest.mark.parametrize("name", KEPT)
def test_numbers_keep_value_and_format(name: str) -> None:
    given, expected = KEPT[name]
    found = as_real(given, "x")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_an_array_is_not_copied() -> None:
    array, tensor = np.ones((3, 4), np.float32)[:, ::2], torch.ones(3)
    assert as_real(array, "x") is array
    assert np.shares_memory(as_real(tensor, "x"), tensor.numpy())


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_real_number_is_refused(name: str) -> None:
    given, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        as_real(given, "x")


def test_counts_are_whole_numbers() -> None:
    check_whole(n=1, m=np.int32(5))
    check_whole(0, n=0)
    for value, least in ((0, 1), (-1, 0), (2.0, 1), (True, 1), ("3", 1), (None, 1), (float("nan"), 1)):
        with pytest.raises(ValueError, match=f"m={value}: expected at least {least}, a whole number"):
            check_whole(least, n=2, m=value)
