"""The networks for images, with weights from a seed: fully connected, convolutional, and residual.

The residual networks are those for CIFAR-10 of He et al. 2016, with and without their shortcuts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, cast, get_args

import numpy as np
from torch import Tensor, nn

from descent.repro.numbers import check_whole
from descent.repro.seeding import global_seed

Shortcuts = Literal["projection", "padding", "none"]


def mlp(
    image_shape: Sequence[int],
    hidden: Sequence[int],
    classes: int,
    seed: int,
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """A fully connected network that flattens its input: `(n, *image_shape) -> (n, classes)` logits.

    Weights and biases have torch's default, uniform within 1 / sqrt(fan in); `hidden` are the widths of the hidden
    layers, and `activation` makes the layer after each, such as `nn.Tanh`.

    Raises:
        ValueError: a width that is no positive whole number, or an activation that makes no layer.

    Example:
        >>> import torch
        >>> model = mlp((1, 8, 8), hidden=(32,), classes=10, seed=0)
        >>> tuple(model(torch.zeros(5, 1, 8, 8)).shape)
        (5, 10)
    """
    sizes = [math.prod(image_shape), *hidden, classes]
    if bad := [size for size in sizes if not isinstance(size, int | np.integer) or size < 1]:
        raise ValueError(f"hidden={list(hidden)}, classes={classes}: {bad[0]} is not a width; expected at least 1")
    layers: list[nn.Module] = [nn.Flatten()]
    with global_seed(seed, "weights"):
        for fan_in, fan_out in itertools.pairwise(sizes):
            try:
                layers += nn.Sequential(nn.Linear(fan_in, fan_out), activation())
            except TypeError as error:
                wanted = "expected what makes a layer, such as nn.Tanh, not nn.Tanh() or torch.tanh"
                raise ValueError(f"activation={activation!r}: {wanted}") from error
    return nn.Sequential(*layers[:-1])


def small_convnet(image_shape: Sequence[int], classes: int, seed: int) -> nn.Sequential:
    """Two 5 x 5 convolutions of stride 2 with 8 and 16 channels, then a linear layer.

    `(n, channels, height, width) -> (n, classes)` logits. Sides that are no multiples of 4 are padded.

    Raises:
        ValueError: `image_shape` is not (channels, height, width), or a number is no positive whole one.
    """
    if len(image_shape) != 3:
        raise ValueError(f"image_shape={tuple(image_shape)}: expected (channels, height, width)")
    channels, height, width = image_shape
    check_whole(channels=channels, height=height, width=width, classes=classes)
    with global_seed(seed, "weights"):
        return nn.Sequential(
            nn.Conv2d(channels, 8, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * math.ceil(height / 4) * math.ceil(width / 4), classes),
        )


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, added to the input (He et al. 2016, figure 2).

    Where the block halves the image and widens it, the shortcut is a strided 1 x 1 convolution with batch
    normalisation (`projection`, option B), or every second pixel, with zeros in the new channels (`padding`, option A,
    without parameters). `none` adds nothing anywhere.

    Attributes:
        gate: factor of what the shortcut adds. It is 1, except in a training that takes the shortcuts away gradually.
    """

    def __init__(self, channels: int, wider: int, shortcuts: Shortcuts) -> None:
        super().__init__()
        self.stride, self.extra, self.shortcuts = 1 if wider == channels else 2, wider - channels, shortcuts
        self.conv1 = nn.Conv2d(channels, wider, 3, self.stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(wider)
        self.gate = 1.0
        self.projection: nn.Module | None = None
        if shortcuts == "projection" and self.extra:
            convolution = nn.Conv2d(channels, wider, 1, self.stride, bias=False)
            self.projection = nn.Sequential(convolution, nn.BatchNorm2d(wider))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, channels, h, w) -> (n, wider, h, w)`; the sides are halved and rounded up if `wider` is larger."""
        out = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu_()))
        if self.shortcuts != "none" and self.gate:
            out = out + (self._shortcut(x) if self.gate == 1 else self.gate * self._shortcut(x))
        return cast(Tensor, out.relu_())

    def _shortcut(self, x: Tensor) -> Tensor:
        if not self.extra:
            return x
        if self.projection is not None:
            return cast(Tensor, self.projection(x))
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


def set_gates(model: nn.Module, gate: float) -> None:
    """Set the `gate` of every residual block of `model`."""
    for module in model.modules():
        if isinstance(module, Residual):
            module.gate = gate


def cifar_resnet(
    depth: int,
    classes: int,
    seed: int,
    *,
    shortcuts: Shortcuts = "projection",
    width: int = 16,
    channels: int = 3,
) -> nn.Sequential:
    """The residual network for CIFAR-10 of He et al. 2016, section 4.2: `(n, channels, h, w) -> (n, classes)` logits.

    It is a 3 x 3 convolution to `width` channels, three stages of (depth - 2) / 6 blocks with one, two and four times
    as many channels, the mean over the image, and a linear layer. Convolutions have He's normal initialisation (fan
    out), the linear layer torch's default. With ten classes ResNet-20, 56 and 110 have 272,474, 855,770 and 1,730,714
    parameters with projection shortcuts, as in the code of Li et al. 2018, and 2,752 fewer with `padding` (He et al.)
    or `none`.

    Raises:
        ValueError: the depth is not 6 n + 2, a number is below 1, or the shortcuts are unknown.

    Example:
        >>> model = cifar_resnet(20, classes=10, seed=0)
        >>> sum(parameter.numel() for parameter in model.parameters())
        272474
    """
    if not isinstance(depth, int | np.integer) or depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth={depth}: expected 6 n + 2, such as 20, 32, 44, 56 or 110")
    if shortcuts not in get_args(Shortcuts):
        raise ValueError(f"shortcuts={shortcuts!r}: expected one of {', '.join(get_args(Shortcuts))}")
    check_whole(classes=classes, width=width, channels=channels)
    with global_seed(seed, "weights"):
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        wide = width
        for wider in (width, 2 * width, 4 * width):
            for _ in range((depth - 2) // 6):
                layers.append(Residual(wide, wider, shortcuts))
                wide = wider
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, classes))
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
