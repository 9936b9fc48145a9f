import pytest
import torch
from torch import nn

from descent.models.flat_weights import Layout, flatten, unflatten


def test_flatten_and_unflatten_are_inverse() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    named = dict(model.named_parameters())
    layout = Layout.of(named.items())
    vector = flatten(named)
    assert vector.shape == (layout.size,) == (3 * 5 + 5 + 5 * 2 + 2,)
    for name, tensor in unflatten(vector, layout).items():
        assert torch.equal(tensor, named[name])


def test_slices_cover_the_vector_in_order() -> None:
    layout = Layout(("a", "b", "c"), ((2, 3), (), (4,)))
    assert layout.slices() == {"a": slice(0, 6), "b": slice(6, 7), "c": slice(7, 11)}
    assert layout.sizes == (6, 1, 4)


def test_wrong_length_names_both_lengths() -> None:
    with pytest.raises(ValueError, match=r"shape \(4,\): expected \(3,\)"):
        unflatten(torch.zeros(4), Layout(("a",), ((3,),)))
