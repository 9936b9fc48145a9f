"""What a network holds beside its tensors: functions and views that a deep copy would not move, and plain numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from descent.models.folding import counters, held_elsewhere, state_of

KEPT: list[Any] = []


def reads_a_global(inputs: Tensor) -> Tensor:
    return inputs * KEPT[0]


def reads_it_within(inputs: Tensor) -> Tensor:
    def inner() -> Tensor:
        return inputs * KEPT[0]

    return inner()


def by_closure(thing: Any) -> Callable[[Tensor], Tensor]:
    return lambda inputs: inputs * thing


def by_default(thing: Any) -> Callable[[Tensor], Tensor]:
    return lambda inputs, factor=thing: inputs * factor


def by_keyword(thing: Any) -> Callable[[Tensor], Tensor]:
    def scaled(inputs: Tensor, *, factor: Any = thing) -> Tensor:
        return inputs * factor

    return scaled


def unset() -> Callable[[], Any]:
    def read() -> Any:
        return nothing

    if KEPT is None:
        nothing = 1
    return read


class ByAGlobal(nn.Linear):
    """Its own forward pass reads a global."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * KEPT[0]


READ: dict[str, Callable[[nn.Linear], Any]] = {
    "a closure of the weight": lambda layer: by_closure(layer.weight),
    "a closure of the layer": lambda layer: by_closure(layer),
    "a closure of a list": lambda layer: by_closure([1, {"deep": (layer.bias,)}]),
    "a default": lambda layer: by_default(layer.weight),
    "a keyword's default": lambda layer: by_keyword(layer.weight),
    "a global": lambda layer: KEPT.append(layer.weight) or reads_a_global,
    "a global within": lambda layer: KEPT.append(layer.weight) or reads_it_within,
    "a function in a list": lambda layer: [None, by_closure(layer.weight)],
    "a view": lambda layer: layer.weight.data[:1],
    "a view in a list": lambda layer: [layer.weight.data.T],
    "an array": lambda layer: layer.weight.detach().numpy(),
    "a view in a closure": lambda layer: by_closure(layer.weight.data[0]),
}
APART: dict[str, Callable[[nn.Linear], Any]] = {
    "nothing": lambda _: None,
    "the weight": lambda layer: layer.weight,
    "the weight in a list": lambda layer: [layer.weight, layer],
    "a clone in a closure": lambda layer: by_closure(layer.weight.detach().clone()),
    "an array of its own": lambda layer: layer.weight.detach().clone().numpy(),
    "an array of integers": lambda layer: torch.arange(3).numpy(),
    "a function of torch": lambda _: torch.nn.functional.gelu,
    "a module of torch": lambda _: torch.relu,
    "a closure of nothing yet": lambda _: unset(),
    "a sparse tensor": lambda _: torch.eye(2).to_sparse(),
}


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    KEPT.clear()


@pytest.mark.parametrize("case", READ)
def test_what_no_copy_would_move_is_named_with_its_place(case: str) -> None:
    for place, model in (("", nn.Linear(3, 3)), ("1", nn.Sequential(nn.ReLU(), nn.Linear(3, 3)))):
        KEPT.clear()
        layer: Any = model.get_submodule(place)
        layer.other, layer.act = "a name", READ[case](layer)
        assert held_elsewhere(model) == f", as through 'act' of {place!r}"


@pytest.mark.parametrize("case", APART)
def test_what_a_copy_moves_or_leaves_rightly_is_not_named(case: str) -> None:
    layer: Any = nn.Linear(3, 3)
    layer.act = APART[case](layer)
    assert held_elsewhere(layer) == ""
    assert held_elsewhere(nn.Sequential(layer)) == ""


def test_a_forward_pass_of_ones_own_is_looked_through() -> None:
    layer = ByAGlobal(3, 3)
    KEPT.append(layer.weight)
    assert held_elsewhere(layer) == ", as through 'forward' of ''"
    KEPT[:] = [torch.ones(3)]
    assert held_elsewhere(layer) == ""


def test_a_state_has_every_name_of_a_layer_that_has_two() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model.other = model[0]
    state = state_of(model)
    assert list(state) == ["0.weight", "0.bias", "other.weight", "other.bias"]
    assert state["0.weight"] is state["other.weight"] is model[0].weight


def test_plain_numbers_of_modules_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.25))
    model.seen = 7
    found = counters(model)
    assert (found["seen"], found["0.in_features"], found["0.out_features"], found["1.p"]) == (7, 3, 2, 0.25)
    assert found["training"] is True
    assert all(isinstance(value, int | float) for value in found.values())
    assert "0._parameters" not in found
