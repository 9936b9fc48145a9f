"""A tensor is moved once, however many names it has."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks_of_others import Network, plain_loss
from torch import Tensor, nn
from torch.nn import functional as F

from descent.landscape.directions import (
    Direction,
    direction_between,
    network_at,
    random_direction,
    tied_names,
    weight_matrices,
)
from descent.landscape.evaluator import Evaluator

WORDS, NEXT = torch.arange(20) % 9, torch.arange(20) * 2 % 9


def tied(share: str = "parameter") -> nn.Module:
    """Predicts a word from one; both layers have the same weights, by one parameter or by its memory."""
    model = Network(lambda net, x: net.head(net.words(x)), words=nn.Embedding(9, 3), head=nn.Linear(3, 9))
    if share == "parameter":
        model.head.weight = model.words.weight
    else:
        model.head.weight.data = model.words.weight.data
    return model


def functional(weight: Tensor, bias: Tensor) -> float:
    return F.cross_entropy(weight[WORDS] @ weight.T + bias, NEXT).item()


@pytest.mark.parametrize("share", ["parameter", "memory"])
@pytest.mark.parametrize("names", [["words.weight"], ["head.weight"], ["words.weight", "head.weight"]])
def test_a_tied_tensor_is_moved_once_by_any_of_its_names(share: str, names: list[str]) -> None:
    torch.manual_seed(0)
    model, part = tied(share), torch.randn(9, 3)
    directions = [dict.fromkeys(names, part)]
    weight, bias = model.words.weight.detach().clone(), model.head.bias.detach().clone()
    expected = [functional(weight + share * part, bias) for share in (0.0, 0.5, -1.0)]
    for precision in ("float32", "bfloat16"):
        found = Evaluator(model, WORDS, NEXT, directions, precision=precision)([[0.0], [0.5], [-1.0]])["loss"]
        np.testing.assert_allclose(found, expected, rtol=1e-5 if precision == "float32" else 0.03)
    there = network_at(model, directions, [0.5])
    torch.testing.assert_close(there.words.weight, weight + 0.5 * part)
    torch.testing.assert_close(there.head.weight, weight + 0.5 * part)
    assert plain_loss(there, (WORDS, NEXT)) == pytest.approx(expected[1], rel=1e-6)
    assert torch.equal(model.words.weight, weight)


@pytest.mark.parametrize("share", ["parameter", "memory"])
def test_different_parts_for_one_tensor_are_refused(share: str) -> None:
    model = tied(share)
    directions = [{}, {"words.weight": torch.ones(9, 3), "head.weight": torch.zeros(9, 3)}]
    said = "direction 1 moves 'words.weight' and 'head.weight', which are one tensor, by different parts: expected"
    for call in (lambda: network_at(model, directions, [0, 0]), lambda: Evaluator(model, WORDS, NEXT, directions)):
        with pytest.raises(ValueError, match=said):
            call()


@pytest.mark.parametrize("share", ["parameter", "memory"])
def test_a_random_direction_names_a_tied_tensor_once(share: str) -> None:
    model = tied(share)
    direction = random_direction(model, 0, "alpha")
    assert list(direction) == list(weight_matrices(model)) == ["words.weight"]
    torch.testing.assert_close(direction["words.weight"].norm(dim=1), model.words.weight.detach().norm(dim=1))
    point = network_at(model, [direction], [1.0])
    torch.testing.assert_close(point.head.weight, point.words.weight)


@pytest.mark.parametrize("share", ["parameter", "memory"])
def test_the_way_between_two_networks_names_it_once_and_ends_at_the_other(share: str) -> None:
    torch.manual_seed(0)
    start, end = tied(share), tied(share)
    way = direction_between(start, end)
    assert set(way) == {"words.weight", "head.bias"}
    for share_of_way, model in ((0.0, start), (1.0, end)):
        there = network_at(start, [way], [share_of_way])
        for name, part in there.state_dict().items():
            torch.testing.assert_close(part, model.state_dict()[name])
        found = Evaluator(start, WORDS, NEXT, [way], precision="float32")([[share_of_way]])["loss"]
        assert found[0] == pytest.approx(plain_loss(model, (WORDS, NEXT)), rel=1e-5)


def test_a_way_from_a_tied_network_to_one_that_is_not_is_refused() -> None:
    start, end = tied(), tied()
    end.head.weight = nn.Parameter(end.words.weight.detach() + 1)
    with pytest.raises(ValueError, match=r"'head.weight' is 'words.weight' in one network, not in the other"):
        direction_between(start, end)
    back = direction_between(end, start)  # along which both weights are moved, each by its own part
    assert set(back) == {"words.weight", "head.weight", "head.bias"}
    there = network_at(end, [back], [1.0])
    torch.testing.assert_close(there.head.weight, start.head.weight)


def test_a_layer_that_is_used_thrice_is_moved_once() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())
    model = nn.Sequential(layer, layer, layer, nn.Linear(4, 3)).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0][0].weight += 1
        other[0][1].running_mean += 0.5
    way = direction_between(model, other)
    assert {name.split(".")[0] for name in way} == {"0", "3"}
    inputs, targets = torch.randn(20, 4), torch.arange(20) % 3
    found = Evaluator(model, inputs, targets, [way], precision="float32")([[0.0], [1.0]])["loss"]
    np.testing.assert_allclose(found, [plain_loss(each, (inputs, targets)) for each in (model, other)], rtol=1e-5)
    there = network_at(model, [way], [1.0])
    assert there[0] is there[2]
    torch.testing.assert_close(there[0][1].running_mean, other[0][1].running_mean)
    assert list(random_direction(model, 0, "alpha")) == ["0.0.weight", "3.weight"]


def autoencoder() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.T)
    return model


def part_of_another() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    model[1].weight = nn.Parameter(model[0].weight[:2])
    return model


@pytest.mark.parametrize("build", [autoencoder, part_of_another])
def test_weights_that_share_a_part_or_the_transpose_are_refused(build: Callable[[], nn.Module]) -> None:
    model = build()
    direction: Direction = {"0.weight": torch.ones_like(model[0].weight)}
    said = "'0.weight' and '1.weight' share memory and are not one tensor: expected one parameter, of which"
    for call in (
        lambda: random_direction(model, 0, "alpha"),
        lambda: network_at(model, [direction], [1.0]),
        lambda: direction_between(model, build()),
        lambda: Evaluator(model, torch.ones(2, 4), torch.zeros(2, dtype=torch.long), [direction]),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_parts_of_one_block_of_memory_that_do_not_overlap_are_no_ties() -> None:
    model, block = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)), torch.arange(8.0)
    model[0].weight.data, model[1].weight.data = block[:4].view(2, 2), block[4:].view(2, 2)
    assert tied_names(model) == {"0.weight": "0.weight", "1.weight": "1.weight"}
    recurrent = nn.LSTM(3, 4, 2)
    assert all(name == first for name, first in tied_names(recurrent).items())


def test_a_buffer_that_is_a_part_of_a_weight_is_refused_and_one_that_is_a_part_of_a_buffer_is_not() -> None:
    model = nn.Linear(4, 3)
    model.register_buffer("table", torch.arange(6.0))
    model.register_buffer("beginning", model.table[:4])
    assert set(tied_names(model).values()) == {"weight", "bias", "table", "beginning"}
    model.register_buffer("start", model.weight.data)
    with pytest.raises(ValueError, match="'start' and 'weight' share memory and are not one tensor"):
        tied_names(model)


def test_what_memory_ties_stays_tied_in_an_evaluator_made_anew() -> None:
    model, part = tied("memory"), torch.ones(9, 3)
    task = Evaluator(model, WORDS, NEXT, [{"words.weight": part}], precision="bfloat16").in_float32()
    expected = functional(model.words.weight.detach() + 0.5 * part, model.head.bias.detach())
    assert task([[0.5]])["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_empty_tensors_are_no_ties() -> None:
    model = nn.Module()
    model.one, model.other = nn.Parameter(torch.ones(0, 2)), nn.Parameter(torch.ones(0, 2))
    assert tied_names(model) == {"one": "one", "other": "other"}


@pytest.mark.parametrize(("direction", "said"), [
    ([torch.ones(9, 3)], "direction 0 is a list: expected name -> tensor"),
    ({"words.weight": np.ones((9, 3))}, r"direction 0 has 'words.weight' of shape ndarray; the model's is \(9, 3\)"),
    ({"words.weight": torch.ones(9, 3) + 0j}, "direction 0 adds to 'words.weight' a torch.complex64 to a"),
    ({"count": torch.tensor(1)}, "direction 0 adds to 'count' a torch.int64 to a torch.int64: expected floating-point"),
])  # fmt: skip
def test_directions_of_another_kind_are_named(direction: Direction, said: str) -> None:
    model = tied()
    model.register_buffer("count", torch.tensor(0))
    for call in (lambda: network_at(model, [direction], [1.0]), lambda: Evaluator(model, WORDS, NEXT, [direction])):
        with pytest.raises(ValueError, match=said):
            call()


def test_one_direction_in_place_of_a_list_is_named() -> None:
    with pytest.raises(ValueError, match="directions is empty or one alone: expected a list of one for a line"):
        Evaluator(tied(), WORDS, NEXT, {"words.weight": torch.ones(9, 3)})


def test_directions_with_gradients_leave_no_history() -> None:
    model = tied()
    direction = {"words.weight": torch.ones(9, 3, requires_grad=True) * 2}
    there = network_at(model, [direction], [0.5])
    assert there.words.weight.is_leaf
    task = Evaluator(model, WORDS, NEXT, [direction], precision="float32")
    assert not any(part.requires_grad for part in task._form.directions[0].values())
    assert task([[0.5]])["loss"][0] == pytest.approx(plain_loss(there, (WORDS, NEXT)), rel=1e-6)


def test_whole_numbers_are_no_weights_to_move_at_random() -> None:
    model = nn.Linear(3, 2)
    model.codes = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"parameter 'codes' is torch.int8: expected floating-point numbers"):
        random_direction(model, 0, "alpha")
