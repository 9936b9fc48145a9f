"""Residual networks small enough for a test, with batch statistics as after a training, and examples for them."""

import torch
from torch import Tensor, nn

from descent.models.image_networks import Shortcuts, cifar_resnet
from descent.repro.seeding import torch_generator

CLASSES = 4


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """The same module in evaluation mode, every batch normalisation with random statistics and affine parameters."""
    generator = torch_generator(seed, "statistics")
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (norm.running_mean, -0.5, 0.5),
                (norm.running_var, 0.5, 2.0),
                (norm.weight.data, 0.5, 1.5),
                (norm.bias.data, -0.5, 0.5),
            ):
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def small_resnet(seed: int = 0, shortcuts: Shortcuts = "projection") -> nn.Module:
    return settle(cifar_resnet(8, CLASSES, seed, shortcuts=shortcuts, width=2), seed)


def examples(count: int = 20, side: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch_generator(0, "examples")
    inputs = torch.randn(count, 3, side, side, generator=generator)
    return inputs, torch.randint(CLASSES, (count,), generator=generator)
