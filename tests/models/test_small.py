import pytest
import torch

from descent.models.small import mlp, small_convnet


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


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
