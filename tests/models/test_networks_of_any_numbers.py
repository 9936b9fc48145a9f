"""Sizes, tokens and formats of the library's networks: the right value, or a sentence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from descent.models import OneLayerTransformer, TransformerSizes, cifar_resnet, mlp, small_convnet
from descent.models.transformer import every_position

SIZES = TransformerSizes(symbols=7, width=8, heads=2, hidden=16)
MAKERS: list[Callable[[], nn.Module]] = [
    lambda: OneLayerTransformer(SIZES, seed=0),
    lambda: mlp((1, 4, 4), (5,), 3, seed=0, activation=nn.PReLU),
    lambda: small_convnet((1, 8, 8), 3, seed=0),
    lambda: cifar_resnet(8, 3, seed=0, width=2),
]


@pytest.mark.parametrize("make", MAKERS)
def test_a_seed_means_the_same_numbers_under_another_default_format(make: Callable[[], nn.Module]) -> None:
    plain = make().state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        other = make().state_dict()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    for name, part in plain.items():
        assert other[name].dtype == part.dtype
        assert torch.equal(other[name], part)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[7, 2]], "pairs of 2 to 7: expected symbols from 0 to 6"),
        ([[2, 7]], "pairs of 2 to 7"),
        ([[2, -1]], "pairs of -1 to 2"),
        ([[8, 0]], "pairs of 0 to 8"),
        ([[1]], r"pairs of shape \(1, 1\), torch.int64: expected \(n, 2\)"),
        ([1, 2], r"pairs of shape \(2,\), torch.int64"),
        ([[1, 2, 3]], r"pairs of shape \(1, 3\), torch.int64"),
        ([[1.0, 2.0]], r"pairs of shape \(1, 2\), torch.float32"),
    ],
)
def test_other_tokens_than_the_symbols_are_refused(pairs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneLayerTransformer(SIZES, seed=0)(torch.tensor(pairs))
    with pytest.raises(ValueError, match=r"pairs of shape \(0, 2\)"):
        OneLayerTransformer(SIZES, seed=0)(torch.zeros(0, 2, dtype=torch.int64))


def test_every_pair_of_symbols_is_read_as_in_the_textbook() -> None:
    model = OneLayerTransformer(SIZES, seed=0)
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    torch.testing.assert_close(model(pairs), every_position(model, pairs))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mlp((4,), (32.0,), 3, 0), "32.0 is not a width; expected at least 1"),
        (lambda: mlp((4,), (3,), 3, 0, activation=nn.ReLU()), r"activation=ReLU\(\): expected what makes a layer"),
        (lambda: mlp((4,), (3,), 3, 0, activation=torch.relu), "activation=.*: expected what makes a layer"),
        (lambda: mlp((4,), (3,), 3, 0.5), "seed=0.5: expected a non-negative integer"),
        (lambda: cifar_resnet(20.0, 10, 0), r"depth=20.0: expected 6 n \+ 2"),
        (lambda: cifar_resnet(20, 0, 0), "classes=0: expected at least 1"),
        (lambda: cifar_resnet(20, 10, 0, channels=0), "channels=0: expected at least 1"),
        (lambda: small_convnet((1, 8, 8), 0, 0), "classes=0: expected at least 1"),
        (lambda: small_convnet((0, 8, 8), 3, 0), "channels=0: expected at least 1"),
        (lambda: TransformerSizes(7.0), "expected sizes of at least 1, whole numbers"),
    ],
)
def test_other_sizes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
