"""The data of the book, checked before use: `digits` comes with scikit-learn, the rest is read from disk or fetched."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from descent.checkout import data_folder
from descent.data.cifar import CIFAR10, IMAGE, CifarArchive, Records, joined, read_archive
from descent.data.fetching import (
    TIMEOUT_S,
    DamagedDataError,
    download,
    fetch_batches,
    from_mirrors,
    to_mend,
)
from descent.data.mnist import MNIST, IdxSource, examine, parse
from descent.repro.files import atomic_path


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of one data set, in memory.

    Attributes:
        name: `digits`, `mnist` or `cifar10`.
        split: `train` or `test`.
        inputs: (n, channels, height, width) float32 in [0, 1].
        targets: (n,) int64, class of each input.
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
    """One split of a data set, its content checked on each call.

    `digits`: 1,437 / 360 images of (1, 8, 8), levels 0..16 over 16; the split is stratified and always
    the same (seed 0). `mnist`: 60,000 / 10,000 images of (1, 28, 28), levels 0..255 over 255; LeCun, Cortes & Burges.
    `cifar10`: 50,000 / 10,000 images of (3, 32, 32), levels 0..255 over 255; Krizhevsky 2009.

    Raises:
        ValueError: unknown name or split.
        DamagedDataError: a file's content is not the published one; the message says how to mend it.
        MissingDataError: a file is absent and no mirror gives it; the message says what to put where.
    """
    _expect("name", name, LOADERS)
    _expect("split", split, ("train", "test"))
    images, labels = LOADERS[name](split)
    inputs = torch.from_numpy(images)
    inputs = inputs if inputs.ndim == 4 else inputs.unsqueeze(1)
    return Dataset(name, split, inputs, torch.from_numpy(labels.astype(np.int64)), classes=10)


def standardise(dataset: Dataset, reference: Dataset | None = None) -> Tensor:
    """Inputs less one scalar mean per channel, over one scalar standard deviation: those of the train split's pixels.

    Args:
        dataset: the split to scale.
        reference: where mean and deviation are measured. None means the train split: `dataset` itself if it is
            one, otherwise it is loaded.

    Returns:
        Same shape as `dataset.inputs`, float32. Each channel of a train split comes out with mean 0 and (population)
        deviation 1. For MNIST that is the customary (x - 0.1307) / 0.3081; for CIFAR-10 the means are 0.4914, 0.4822,
        0.4465 and the deviations 0.2470, 0.2435, 0.2616.

    Raises:
        ValueError: all pixels of a channel are equal.
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


def read_idx(source: IdxSource, filename: str) -> NDArray[np.uint8]:
    """The array in one file of `data_folder()/source.name`, compressed or not; fetched when it is not there.

    A damaged file is refused and left as it is: it is the user's. A damaged download is not kept.

    Raises:
        DamagedDataError: see `load_dataset`.
        MissingDataError: see `load_dataset`.
    """
    folder = data_folder() / source.name
    present = [path for path in (folder / f"{filename}.gz", folder / filename) if path.is_file()]
    path = present[0] if present else _download(source, filename, folder)
    content, problem = _examine(path, source, filename)
    if problem:
        raise DamagedDataError(f"{path} is damaged\n{problem}\n{to_mend(source.name, folder.parent, path)}")
    return parse(content, source.files[filename])


def read_batches(source: CifarArchive, split: str) -> Records:
    """The `(n, 3073)` records of one split, from the files in `data_folder()/source.folder`; fetched if one is absent.

    A damaged file is refused and left as it is: it is the user's. A damaged download is not kept.

    Raises:
        DamagedDataError: see `load_dataset`.
        MissingDataError: see `load_dataset`.
    """
    root = data_folder()
    paths = [root / source.folder / name for name in source.splits[split].files]
    if not all(path.is_file() for path in paths):
        fetch_batches(source, root, TIMEOUT_S)
    parts, blamed = [], paths
    try:
        for path in paths:
            blamed = [path]
            with open(path, "rb") as stream:
                parts.append(read_archive(stream, path.stat().st_size, source))
        blamed = paths
        return joined(parts, source.splits[split])
    except ValueError as error:
        what = blamed[0] if len(blamed) == 1 else f"the {split} split of {source.name} in {root / source.folder}"
        raise DamagedDataError(f"{what} is damaged\n{error}\n{to_mend(source.name, root, *blamed)}") from error


def _expect(label: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        near = get_close_matches(str(value), choices, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{label}={value!r}: expected one of {', '.join(choices)}{hint}")


def _digits(split: str) -> tuple[NDArray[np.float32], NDArray[Any]]:
    images, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    rows = np.sort(train if split == "train" else test)
    return (images[rows] / 16).astype(np.float32).reshape(-1, 8, 8), labels[rows]


def _mnist(split: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    stem = "train" if split == "train" else "t10k"
    labels = read_idx(MNIST, f"{stem}-labels-idx1-ubyte")
    return read_idx(MNIST, f"{stem}-images-idx3-ubyte").astype(np.float32) / np.float32(255), labels


def _cifar10(split: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    records = read_batches(CIFAR10, split)
    images = records[:, 1:].astype(np.float32)
    images /= np.float32(255)  # in place: the train split is 614 MB
    return images.reshape(-1, *IMAGE), records[:, 0]


LOADERS: dict[str, Callable[[str], tuple[NDArray[np.float32], NDArray[Any]]]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
}


def _examine(path: Path, source: IdxSource, filename: str) -> tuple[bytearray, str]:
    with open(path, "rb") as stream:
        return examine(stream, source, filename)


def _download(source: IdxSource, filename: str, folder: Path) -> Path:
    """Fetch `folder/filename.gz` from the first mirror that gives it undamaged."""

    def take(url: str) -> None:
        with atomic_path(folder / f"{filename}.gz") as temporary:
            download(url, temporary, TIMEOUT_S)
            if problem := _examine(temporary, source, filename)[1]:
                raise DamagedDataError(problem)

    files = ", ".join(f"{name}.gz" for name in source.files)
    remedy = f"put {files} (or them unpacked) in {folder}"
    from_mirrors(source, f"{filename}.gz", take, f"{filename} is not in {folder}", remedy)
    return folder / f"{filename}.gz"


def main(names: list[str]) -> None:
    """`python -m descent.data.datasets mnist cifar10`: fetch what is absent, check all, say where it is."""
    try:
        for name in names:
            sizes = [f"{len(load_dataset(name, split)):,} {split}" for split in ("train", "test")]
            print(f"{name}: {', '.join(sizes)}; data folder {data_folder()}")
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
