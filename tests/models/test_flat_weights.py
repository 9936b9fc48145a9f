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


@pytest.mark.parametrize(
    ("names", "shapes", "said"),
    [(("a", "a"), ((2,), (3,)), "2 shapes for a, a"), (("a", "b"), ((2,),), "1 shapes for a, b"), (("a",), (), "0 sh")],
)
def test_a_layout_that_would_lose_a_part_is_refused(
    names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], said: str
) -> None:
    with pytest.raises(ValueError, match=f"{said}.*expected one for each name, once"):
        Layout(names, shapes)


def test_nothing_is_no_vector() -> None:
    with pytest.raises(ValueError, match="no tensor to flatten: expected at least one"):
        flatten({})


@pytest.mark.parametrize(
    "vector", [torch.arange(12.0)[::2], torch.arange(6.0).expand(2, 6)[1], torch.arange(6.0).flip(0)]
)
def test_parts_of_any_vector_are_views(vector: torch.Tensor) -> None:
    layout = Layout(("a", "empty", "b"), ((2, 2), (0, 3), (2,)))
    parts = unflatten(vector, layout)
    assert torch.equal(flatten(parts), vector)
    parts["a"][1, 1] = -7
    assert vector[3] == -7
