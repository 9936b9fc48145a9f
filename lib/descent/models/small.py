"""A fully connected and a convolutional network, both small, with weights from a seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from torch import nn

from descent.repro.seeding import global_seed

CONV_CHANNELS = (8, 16)


def mlp(
    image_shape: Sequence[int],
    hidden: Sequence[int],
    classes: int,
    seed: int,
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """A fully connected network that flattens its input: `(n, *image_shape) -> (n, classes)` logits.

    Weights and biases have torch's default: uniform within 1 / sqrt(fan in).

    Args:
        image_shape: shape of one input.
        hidden: widths of the hidden layers.
        classes: number of logits.
        seed: decides the weights.
        activation: makes the layer after each hidden one, such as `nn.Tanh`.

    Raises:
        ValueError: a width that is not positive.

    Example:
        >>> import torch
        >>> model = mlp((1, 8, 8), hidden=(32,), classes=10, seed=0)
        >>> tuple(model(torch.zeros(5, 1, 8, 8)).shape)
        (5, 10)
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

    `(n, channels, height, width) -> (n, classes)` logits. Sides that are no multiples of 4 are padded.

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
