import pytest
import torch
from torch import nn

from descent.models.image_networks import Residual, Shortcuts, cifar_resnet, mlp, small_convnet


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_reference_network_has_the_sources_size() -> None:
    assert parameters(mlp((1, 28, 28), [128], 10, 0)) == 101_770
    assert parameters(mlp((1, 28, 28), [32], 10, 0)) == 25_450


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 9, 14)])
def test_convnet_takes_any_image(shape: tuple[int, ...]) -> None:
    assert small_convnet(shape, 7, 0)(torch.zeros(2, *shape)).shape == (2, 7)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    first = torch.nn.utils.parameters_to_vector(mlp((4,), [3], 2, 1).parameters())
    torch.manual_seed(6)
    assert torch.equal(first, torch.nn.utils.parameters_to_vector(mlp((4,), [3], 2, 1).parameters()))
    assert not torch.equal(first, torch.nn.utils.parameters_to_vector(mlp((4,), [3], 2, 2).parameters()))


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"hidden=\[0\].*0 is not a width"):
        mlp((4,), [0], 2, 0)
    with pytest.raises(ValueError, match=r"image_shape=\(28, 28\): expected \(channels, height, width\)"):
        small_convnet((28, 28), 10, 0)


def test_activation_is_chosen_and_the_weights_stay() -> None:
    tanh, relu = mlp((4,), [3], 2, 1, activation=torch.nn.Tanh), mlp((4,), [3], 2, 1)
    assert isinstance(tanh[2], torch.nn.Tanh)
    assert isinstance(relu[2], torch.nn.ReLU)
    assert torch.equal(tanh[1].weight, relu[1].weight)


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
