import pytest
import torch
from torch import nn

from descent.models.resnet import Residual, Shortcuts, cifar_resnet


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("depth", "count"), [(20, 272_474), (56, 855_770), (110, 1_730_714)])
def test_residual_networks_have_the_sources_size(depth: int, count: int) -> None:
    model = cifar_resnet(depth, 10, 0)
    assert parameters(model) == count
    for shortcuts in ("padding", "none"):
        plain = cifar_resnet(depth, 10, 0, shortcuts=shortcuts)
        assert parameters(plain) == count - 2_752
        assert sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in plain.modules()) == depth


@pytest.mark.parametrize("side", [32, 9])
def test_residual_network_takes_odd_images_and_keeps_the_seeds_weights(side: int) -> None:
    model = cifar_resnet(8, 5, 0).eval()
    assert model(torch.zeros(2, 3, side, side)).shape == (2, 5)
    weights = [torch.nn.utils.parameters_to_vector(cifar_resnet(8, 5, seed).parameters()) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("shortcuts", ["projection", "padding", "none"])
def test_a_block_without_weights_is_its_shortcut(shortcuts: Shortcuts) -> None:
    image = torch.rand(1, 2, 5, 4)
    block = Residual(2, 4, shortcuts).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    expected = torch.zeros(1, 4, 3, 2)
    if shortcuts == "padding":
        expected[:, :2] = image[:, :, ::2, ::2]
    if block.projection is not None:
        weight = block.projection[0].weight[:, :, 0, 0]
        expected = torch.einsum("oc,bchw->bohw", weight, image[:, :, ::2, ::2]).relu() / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(block(image), expected)


def test_an_inner_block_adds_its_input_unless_told_not_to() -> None:
    image = torch.rand(1, 2, 5, 4)
    for shortcuts, share in (("projection", 1), ("padding", 1), ("none", 0)):
        block = Residual(2, 2, shortcuts).eval()
        torch.nn.init.zeros_(block.conv2.weight)
        assert torch.equal(block(image), share * image)


def test_width_and_channels_are_chosen() -> None:
    model = cifar_resnet(8, 10, 0, width=4, channels=1).eval()
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert model[-1].in_features == 16


def test_unknown_shortcuts_and_widths_are_named() -> None:
    with pytest.raises(ValueError, match="shortcuts='skip': expected one of projection, padding, none"):
        cifar_resnet(20, 10, 0, shortcuts="skip")
    with pytest.raises(ValueError, match="width=0: expected at least 1"):
        cifar_resnet(20, 10, 0, width=0)


def test_convolutions_have_hes_scale() -> None:
    convolution = cifar_resnet(20, 10, 0)[-4].conv1  # the last block: 64 channels to 64
    assert convolution.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_wrong_depths_are_named(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth={depth}: expected 6 n \+ 2, such as 20"):
        cifar_resnet(depth, 10, 0)
