import copy
from collections.abc import Callable
from threading import Lock

import pytest
import torch
from small_networks import examples, settle, small_resnet
from torch import Tensor, nn
from torch.nn.utils import prune

from descent.landscape.directions import network_at, random_direction
from descent.models.folding import copy_module, fold_batch_norm
from descent.models.image_networks import Shortcuts


def largest_difference(one: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    """Largest difference of the two networks' outputs, both in evaluation mode, over the largest output."""
    with torch.no_grad():
        first, second = (copy_module(network).eval()(inputs) for network in (one, other))
    return ((first - second).abs().max() / first.abs().max()).item()


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


def shared() -> nn.Module:
    convolutions = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    convolutions[1].weight = convolutions[0].weight
    return nn.Sequential(convolutions[0], nn.BatchNorm2d(3), convolutions[1], nn.BatchNorm2d(3))


def under(function: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(function(nn.Conv2d(3, 3, 3)), nn.BatchNorm2d(3))


def twice(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.BatchNorm2d(3), layer, nn.BatchNorm2d(3))


class Branches(nn.Module):
    """As a forward pass of its own: the tracer cannot follow a question about values, nor does it need to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(self.conv(inputs)) if inputs.abs().sum() > 0 else inputs


class ReadTwice(Branches):
    """The output of the convolution goes elsewhere, too."""

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.conv(inputs)
        return self.norm(found) + found


class ByItsWeight(Branches):
    """The weight of the convolution is used by itself, too."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(self.conv(inputs)) + nn.functional.conv2d(inputs, self.conv.weight)


class Doubling(nn.BatchNorm2d):
    """A normalisation that does more."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


KEPT: dict[str, Callable[[], nn.Module]] = {
    "first": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.BatchNorm1d(2)),
    "relu": lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.BatchNorm2d(3)),
    "pooling": lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.MaxPool2d(2), nn.BatchNorm2d(3)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.BatchNorm2d(3)),
    "statistics": lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)),
    "a normalisation of one's own": lambda: nn.Sequential(nn.Conv2d(3, 3, 3), Doubling(3)),
    "shared weights": shared,
    "one convolution twice": lambda: twice(nn.Conv2d(3, 3, 3)),
    "weight norm": lambda: under(nn.utils.parametrizations.weight_norm),
    "spectral norm": lambda: under(nn.utils.parametrizations.spectral_norm),
    "orthogonal": lambda: under(nn.utils.parametrizations.orthogonal),
    "pruned": lambda: under(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "not traced": Branches,
    "read twice": ReadTwice,
    "by its weight": ByItsWeight,
}


@pytest.mark.parametrize("case", KEPT)
def test_normalisation_that_cannot_be_folded_stays(case: str) -> None:
    model = KEPT[case]().eval()
    norms = {name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)}
    folded = fold_batch_norm(model)
    assert folded.scales == {}
    assert {name for name, layer in folded.model.named_modules() if type(layer) is nn.Identity} == set()
    assert norms <= {name for name, _ in folded.model.named_modules()}
    assert largest_difference(model, folded.model, examples()[0]) == 0


def test_only_what_can_be_folded_is() -> None:
    model = settle(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
        )
    )
    folded = fold_batch_norm(model)
    assert set(folded.scales) == {"0.weight", "4.weight"}
    assert [type(layer) is nn.Identity for layer in folded.model] == [False, True, False, False, False, True]
    assert largest_difference(model, folded.model, examples()[0]) < 1e-6


def test_volumes_and_sequences_are_folded_too() -> None:
    for convolution, norm, shape in ((nn.Conv1d, nn.BatchNorm1d, (5,)), (nn.Conv3d, nn.BatchNorm3d, (5, 5, 5))):
        model = nn.Sequential(convolution(3, 4, 3), norm(4)).eval()
        model[1].running_var.fill_(4.0)
        folded = fold_batch_norm(model)
        assert set(folded.scales) == {"0.weight"}
        assert largest_difference(model, folded.model, torch.randn(2, 3, *shape)) < 1e-6


def test_a_module_with_tensors_that_have_a_history_is_copied() -> None:
    model = nn.Linear(3, 2)
    model.seen = model(torch.ones(1, 3))  # as a network that keeps its activations
    other = copy_module(model)
    assert torch.equal(other.seen, model.seen)
    assert other.weight is not model.weight
    assert model.seen.grad_fn is not None
    weight = nn.Parameter(torch.ones(2))
    alike = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    alike[0].bias, alike[1].bias.data = weight, weight.data
    twin = copy_module(alike)
    assert twin[0].bias is twin[1].bias is not weight
    assert twin[0].weight is not twin[1].weight
    model.lock = Lock()
    with pytest.raises(
        ValueError, match=r"the network cannot be copied: cannot pickle .* expected one that copy.deepcopy"
    ):
        copy_module(model)
