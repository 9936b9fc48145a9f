import copy

import numpy as np
import pytest
import torch
from small_networks import CLASSES, small_resnet
from torch import nn

from descent.landscape.directions import (
    Direction,
    batch_norm_variances,
    direction_between,
    network_at,
    random_direction,
    rescale_direction,
    weight_matrices,
)


def equal(one: Direction, other: Direction) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def norms(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten(1).norm(dim=1)


def test_filters_of_a_direction_have_the_weights_norms_and_nothing_else_moves() -> None:
    model = small_resnet().double()
    direction = random_direction(model, 0, "alpha")
    kinds = (nn.Conv2d, nn.Linear)
    weights = {f"{name}.weight": m.weight.detach() for name, m in model.named_modules() if isinstance(m, kinds)}
    assert set(direction) == set(weights)  # no bias, no batch normalisation
    assert list(direction) == list(weight_matrices(model))
    assert len(norms(direction["8.weight"])) == CLASSES  # one for each row of the linear layer
    for name, part in direction.items():
        torch.testing.assert_close(norms(part), norms(weights[name]), rtol=1e-8, atol=0)
        assert not torch.equal(part, weights[name])


def test_layers_and_unscaled_directions_have_their_own_norms() -> None:
    weights = {"w": torch.tensor([[3.0, 4.0], [0.0, 0.0]]).double()}
    drawn = {"w": torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double()}
    expected = {"filter": [[5.0, 0.0], [0.0, 0.0]], "layer": [[5**0.5, 0.0], [0.0, 20**0.5]], "none": [[1, 0], [0, 2]]}
    for scaling, values in expected.items():
        found = rescale_direction(drawn, weights, scaling)["w"]
        np.testing.assert_allclose(found.numpy(), values, rtol=1e-9)
    still = rescale_direction({"w": torch.zeros(2, 2).double()}, weights, "filter")["w"]
    assert not still.any()  # a filter of norm zero has no direction, and is no NaN
    with pytest.raises(ValueError, match="scaling='filters': expected one of filter, layer, none"):
        rescale_direction(drawn, weights, "filters")


def test_seed_and_stream_decide_a_direction_whatever_else_is_drawn() -> None:
    model = small_resnet()
    alpha = random_direction(model, 0, "alpha")
    torch.rand(7)
    assert not equal(random_direction(model, 0, "beta"), alpha)
    assert not equal(random_direction(model, 1, "alpha"), alpha)
    state = torch.get_rng_state()
    assert equal(random_direction(model, 0, "alpha"), alpha)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="seed=-1: expected a non-negative integer"):
        random_direction(model, -1, "alpha")


def test_a_model_without_matrices_has_no_direction() -> None:
    with pytest.raises(ValueError, match="no parameter of more than one dimension"):
        random_direction(nn.BatchNorm1d(3), 0, "alpha")


def test_between_two_networks_lie_their_weights_and_statistics() -> None:
    start, end = small_resnet(0).double(), small_resnet(1).double()
    way = direction_between(start, end)
    counters = {name for name in start.state_dict() if name.endswith("num_batches_tracked")}
    assert set(way) == set(start.state_dict()) - counters
    for share in (0.0, 0.25, 1.0):
        found = network_at(start, [way], [share]).state_dict()
        for name in way:
            expected = (1 - share) * start.state_dict()[name] + share * end.state_dict()[name]
            torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-14)
    assert "1.running_var" in way


def test_networks_of_two_kinds_have_nothing_between_them() -> None:
    one = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"'1.weight' has shapes \(2, 2\) and \(4, 2\): expected two networks of one"):
        direction_between(one, nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)))
    with pytest.raises(ValueError, match=r"'1.weight' has shapes \(2, 2\) and none"):
        direction_between(one, nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ValueError, match=r"'1.weight' has shapes none and \(2, 2\)"):
        direction_between(nn.Sequential(nn.Linear(3, 2)), one)


def test_moving_adds_coordinates_times_directions_to_a_copy() -> None:
    model = nn.Linear(2, 2).double()
    before = copy.deepcopy(model.state_dict())
    directions = [random_direction(model, 0, name) for name in ("alpha", "beta")]
    there = network_at(model, directions, [2.0, -0.5])
    expected = before["weight"] + 2 * directions[0]["weight"] - 0.5 * directions[1]["weight"]
    torch.testing.assert_close(there.weight.detach(), expected, rtol=1e-14, atol=1e-15)
    assert equal(dict(network_at(model, directions, [0, 0]).state_dict()), dict(before))
    assert equal(dict(model.state_dict()), dict(before))
    with pytest.raises(ValueError, match=r"point of shape \(1,\): expected \(2,\), one a direction"):
        network_at(model, directions, [1.0])


def test_moving_refuses_a_direction_that_would_only_broadcast() -> None:
    with pytest.raises(ValueError, match=r"direction 0 has 'weight' of shape \(2, 1\); the model's is \(2, 2\)"):
        network_at(nn.Linear(2, 2), [{"weight": torch.ones(2, 1)}], [1.0])
    with pytest.raises(ValueError, match="direction 0 moves 'wait', which the model lacks"):
        network_at(nn.Linear(2, 2), [{"wait": torch.ones(2, 2)}], [1.0])


def test_running_variances_are_known_by_their_names() -> None:
    model = small_resnet()
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert batch_norm_variances(model.state_dict()) == [f"{name}.running_var" for name in norms]
    assert batch_norm_variances(["running_var", "a.running_variance", "my_running_var", "running_var.weight"]) == [
        "running_var"
    ]


def test_moving_takes_a_variance_below_zero_as_zero_and_nothing_else() -> None:
    model = nn.BatchNorm1d(3).double()  # variances are one
    down = {name: torch.tensor([-1.0, -0.5, 1.0]).double() for name in ("running_var", "running_mean", "weight")}
    state = network_at(model, [down], [1.5]).state_dict()
    assert state["running_var"].tolist() == [0, 0.25, 2.5]
    assert state["running_mean"].tolist() == [-1.5, -0.75, 1.5]
    assert state["weight"].tolist() == [-0.5, 0.25, 2.5]
    twice = network_at(model, [down, down], [3.0, -2.5]).state_dict()  # only the sum counts, not the way to it
    assert twice["running_var"].tolist() == [0.5, 0.75, 1.5]
