"""The data sets of the book: `digits` comes with scikit-learn; `mnist` and `cifar10` are read from disk or fetched."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from descent.checkout import data_folder
from descent.data.cifar import CIFAR10, IMAGE
from descent.data.fetching import read_cifar, read_idx
from descent.data.mnist import MNIST


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of one data set, in memory.

    Attributes:
        name: `digits`, `mnist` or `cifar10`.
        split: `train` or `test`.
        inputs: `(n, channels, height, width)` float32 in [0, 1].
        targets: `(n,)` int64, the class of each input.
        classes: number of classes.
    """

    name: str
    split: str
    inputs: Tensor
    targets: Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.targets)


def load_dataset(name: str, split: str = "train") -> Dataset:
    """One split (`train` or `test`) of a data set; the content of its files is checked on each call.

    `digits`: 1,437 / 360 images of (1, 8, 8), levels 0..16 over 16; the split is stratified and always the same
    (seed 0). `mnist`: 60,000 / 10,000 images of (1, 28, 28), levels 0..255 over 255; LeCun, Cortes & Burges.
    `cifar10`: 50,000 / 10,000 images of (3, 32, 32), levels 0..255 over 255; Krizhevsky 2009.

    Raises:
        ValueError: unknown name or split.
        DamagedDataError: the content of a file is not the published one; the message says how to mend it.
        MissingDataError: a file is absent and no mirror gives it; the message says what to put where.

    Example:
        >>> digits = load_dataset("digits")
        >>> tuple(digits.inputs.shape), tuple(digits.targets.shape), digits.classes
        ((1437, 1, 8, 8), (1437,), 10)
    """
    _check_choice("name", name, _LOADERS)
    _check_choice("split", split, ("train", "test"))
    images, labels = _LOADERS[name](split)
    return Dataset(name, split, torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), classes=10)


def standardise(dataset: Dataset, reference: Dataset | None = None) -> Tensor:
    """The inputs, less the mean of all pixels of a channel, over their standard deviation, in the train split.

    Args:
        dataset: the split to scale.
        reference: the split in which mean and deviation are measured. None means the train split: `dataset` itself
            if it is one, otherwise it is loaded.

    Returns:
        `dataset.inputs` scaled, of the same shape, float32. Each channel of a train split comes out with mean 0 and
        (population) deviation 1. For MNIST that is the customary (x - 0.1307) / 0.3081; for CIFAR-10 the means are
        0.4914, 0.4822, 0.4465 and the deviations 0.2470, 0.2435, 0.2616.

    Raises:
        ValueError: all pixels of a channel are equal.

    Example:
        >>> scaled = standardise(load_dataset("digits"))
        >>> round(scaled.mean().item(), 3) + 0, round(scaled.std().item(), 3)
        (0.0, 1.0)
    """
    if reference is None:
        reference = dataset if dataset.split == "train" else load_dataset(dataset.name)
    scaled, channels = dataset.inputs.clone(), dataset.inputs.shape[1]
    for channel in range(channels):
        pixels = reference.inputs[:, channel].flatten(1)
        mean, square = (rows.mean(dim=1).double().mean().item() for rows in (pixels, pixels.square()))
        if pixels.min() == pixels.max():
            where = f" of channel {channel}" if channels > 1 else ""
            equal = f"all {pixels.numel()} pixels{where} are equal"
            raise ValueError(f"{reference.name}: {equal}; expected some that differ")
        scaled[:, channel].sub_(mean).div_(math.sqrt(square - mean**2))
    return scaled


def _check_choice(label: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        near = get_close_matches(str(value), choices, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{label}={value!r}: expected one of {', '.join(choices)}{hint}")


def _digits(split: str) -> tuple[NDArray[np.float32], NDArray[Any]]:
    images, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    rows = np.sort(train if split == "train" else test)
    return (images[rows] / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels[rows]


def _mnist(split: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    stem = "train" if split == "train" else "t10k"
    labels, images = (read_idx(MNIST, f"{stem}-{kind}-ubyte") for kind in ("labels-idx1", "images-idx3"))
    return images[:, None].astype(np.float32) / np.float32(255), labels


def _cifar10(split: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    records = read_cifar(CIFAR10, split)
    images = records[:, 1:].astype(np.float32)
    images /= np.float32(255)  # in place: the train split takes 614 MB
    return images.reshape(-1, *IMAGE), records[:, 0]


_LOADERS: dict[str, Callable[[str], tuple[NDArray[np.float32], NDArray[Any]]]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
}


def main(names: list[str]) -> None:
    """`python -m descent.data.datasets mnist cifar10`: fetch what is absent, check all of it, say where it is."""
    try:
        for name in names:
            sizes = [f"{len(load_dataset(name, split)):,} {split}" for split in ("train", "test")]
            print(f"{name}: {', '.join(sizes)}; data folder {data_folder()}")
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
