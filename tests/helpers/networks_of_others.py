"""Networks as other people write them, and a plain loop that says what their loss is."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from small_networks import CLASSES, settle
from torch import Tensor, nn
from torch.nn import functional as F

from descent.models.folding import copy_module

Batch = tuple[Tensor, ...]
Loss = Callable[[nn.Module, Batch], Tensor]


class Network(nn.Module):
    """A network of named layers and a forward pass, `forward(self, inputs)`."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, inputs: Tensor) -> Any:
        return self.run(self, inputs)


def head(channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def convolutional(convolution: nn.Module | None = None) -> nn.Module:
    return settle(nn.Sequential(convolution or nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), head(6)))


def flat(outputs: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, outputs))


def moved(model: nn.Module, directions: Sequence[dict[str, Tensor]], point: Sequence[float]) -> nn.Module:
    """A copy in evaluation mode, every tensor set by hand."""
    other = copy_module(model).eval()
    with torch.no_grad():
        for name, part in other.state_dict().items():
            for coordinate, direction in zip(point, directions, strict=True):
                if name in direction:
                    part += coordinate * direction[name]
    return other


def plain_loss(model: nn.Module, batch: Batch, loss: Loss | None = None) -> float:
    with torch.no_grad():
        each = F.cross_entropy(model(batch[0]), batch[1], reduction="none") if loss is None else loss(model, batch)
    return each.double().mean().item()
