"""The networks of the book, initialised from a seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from descent.seeding import global_seed

CONV_CHANNELS = (8, 16)
RESNET_CHANNELS = (16, 32, 64)


def mlp(
    image_shape: Sequence[int],
    hidden: Sequence[int],
    classes: int,
    seed: int,
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """A fully connected network, `(n, *image_shape) -> (n, classes)` logits; `activation` such as `nn.Tanh`.

    Weights and biases have torch's default: uniform within 1 / sqrt(fan in).

    Raises:
        ValueError: a width that is not positive.
    """
    sizes = [math.prod(image_shape), *hidden, classes]
    if bad := [size for size in sizes if size < 1]:
        raise ValueError(f"hidden={list(hidden)}, classes={classes}: {bad[0]} is not a width; expected at least 1")
    layers: list[nn.Module] = [nn.Flatten()]
    with global_seed(seed, "weights"):
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def small_convnet(image_shape: Sequence[int], classes: int, seed: int) -> nn.Sequential:
    """Two 5 x 5 convolutions of stride 2 with 8 and 16 channels, then a linear layer.

    `(n, channels, height, width) -> (n, classes)` logits; the sides are rounded up to multiples of 4.

    Raises:
        ValueError: `image_shape` is not (channels, height, width).
    """
    if len(image_shape) != 3:
        raise ValueError(f"image_shape={tuple(image_shape)}: expected (channels, height, width)")
    channels, height, width = image_shape
    first, second = CONV_CHANNELS
    features = second * math.ceil(height / 4) * math.ceil(width / 4)
    with global_seed(seed, "weights"):
        return nn.Sequential(
            nn.Conv2d(channels, first, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(first, second, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(features, classes),
        )


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, added to the input (He et al. 2016, figure 2).

    Where the block halves the image and widens it, the shortcut takes every second pixel and pads with zero channels:
    option A, without parameters.
    """

    def __init__(self, channels: int, wider: int, shortcut: bool) -> None:
        super().__init__()
        self.stride, self.extra, self.shortcut = 1 if wider == channels else 2, wider - channels, shortcut
        self.conv1 = nn.Conv2d(channels, wider, 3, self.stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(wider)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, channels, h, w) -> (n, wider, h, w)`, sides halved and rounded up where wider."""
        out = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        if self.shortcut:
            kept = x[:, :, :: self.stride, :: self.stride]
            out = out + nn.functional.pad(kept, (0, 0, 0, 0, 0, self.extra))
        return cast(Tensor, out.relu())


def cifar_resnet(depth: int, classes: int, seed: int, *, shortcuts: bool = True) -> nn.Sequential:
    """The residual network for CIFAR-10 of He et al. 2016, section 4.2: `(n, 3, h, w) -> (n, classes)` logits.

    A 3 x 3 convolution to 16 channels, three stages of (depth - 2) / 6 blocks with 16, 32 and 64 channels, mean over
    the image, a linear layer. Convolutions have He's normal initialisation of the fan out, the linear layer torch's
    default. ResNet-20 with ten classes has 269,722 parameters; `shortcuts=False` gives the plain network, of as many.

    Raises:
        ValueError: a depth that is not 6 n + 2.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth={depth}: expected 6 n + 2, such as 20, 32, 44, 56 or 110")
    with global_seed(seed, "weights"):
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        channels = 16
        for width in RESNET_CHANNELS:
            for _ in range((depth - 2) // 6):
                layers.append(Residual(channels, width, shortcuts))
                channels = width
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
