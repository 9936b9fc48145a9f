import copy

import pytest
import torch
from small_networks import examples, settle, small_resnet
from torch import nn

from descent.landscape.directions import network_at, random_direction
from descent.models.folding import fold_batch_norm, largest_difference
from descent.models.image_networks import Shortcuts


@pytest.mark.parametrize("shortcuts", ["projection", "padding", "none"])
def test_a_folded_network_gives_the_same_outputs_and_the_original_is_left_alone(shortcuts: Shortcuts) -> None:
    model, (inputs, _) = small_resnet(0, shortcuts).train(), examples()
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.model.modules())
    assert not folded.model.training
    assert model.training
    assert largest_difference(model, folded.model, inputs) < 1e-5
    assert largest_difference(model.double(), fold_batch_norm(model).model, inputs.double()) < 1e-12
    model.float()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


def test_the_factor_of_a_filter_is_gamma_over_the_deviation() -> None:
    model = settle(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, eps=0.0))).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([3.0, -1.0]))
        model[1].bias.copy_(torch.tensor([0.5, 0.25]))
        model[1].running_var.copy_(torch.tensor([4.0, 16.0]))
        model[1].running_mean.copy_(torch.tensor([2.0, 8.0]))
    folded = fold_batch_norm(model)
    factor = torch.tensor([1.5, -0.25]).double()
    torch.testing.assert_close(folded.scales["0.weight"], factor.reshape(2, 1, 1, 1))
    torch.testing.assert_close(folded.model[0].weight.detach(), model[0].weight.detach() * factor.reshape(2, 1, 1, 1))
    expected = torch.tensor([0.5, 0.25]) + (model[0].bias.detach() - torch.tensor([2.0, 8.0])) * factor
    torch.testing.assert_close(folded.model[0].bias.detach(), expected)


def test_normalisation_without_affine_parameters_is_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, affine=False)).eval()
    model[1].running_var.fill_(4.0)
    folded = fold_batch_norm(model)
    torch.testing.assert_close(folded.scales["0.weight"].flatten(), torch.full((2,), 0.5), rtol=1e-5, atol=0)
    assert largest_difference(model, folded.model, examples()[0]) < 1e-6


def test_folding_maps_lines_to_lines() -> None:
    model, (inputs, _) = small_resnet().double(), examples()
    direction, folded = random_direction(model, 0, "alpha"), fold_batch_norm(model)
    assert set(folded.scales) == set(direction) - {"8.weight"}  # the linear layer has no normalisation after it
    scaled = {name: part * folded.scales.get(name, 1) for name, part in direction.items()}
    for share in (-1.0, 0.5):
        one = fold_batch_norm(network_at(model, [direction], [share])).model
        other = network_at(folded.model, [scaled], [share])
        for name, weight in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], weight, rtol=1e-12, atol=1e-14)
        assert largest_difference(one, other, inputs.double()) < 1e-12


BAD = {
    "first": (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3)), "'0' follows no convolution: expected one before"),
    "linear": (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "'1' follows no convolution"),
    "relu": (nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.BatchNorm2d(3)), "'2' follows no convolution"),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.BatchNorm2d(3)), "'1' follows no convolution"),
    "statistics": (
        nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))),
        "'0.1' has no running statistics: expected a trained network",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_normalisation_that_cannot_be_folded_is_named(case: str) -> None:
    model, message = BAD[case]
    with pytest.raises(ValueError, match=f"batch normalisation {message}"):
        fold_batch_norm(model)


def test_the_largest_difference_is_relative_and_leaves_the_statistics() -> None:
    one, other = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        one.weight.copy_(torch.tensor([[4.0], [1.0]]))
        other.weight.copy_(torch.tensor([[4.0], [3.0]]))
    assert largest_difference(one, other, torch.ones(3, 1)) == 0.5
    model = small_resnet().train()
    before = copy.deepcopy(model.state_dict())
    assert largest_difference(model, model, examples()[0]) == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
