"""The data of the book, checked before use: `digits` comes with scikit-learn, `mnist` is read from disk or fetched."""

from __future__ import annotations

import math
import os
import shlex
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
from tqdm import tqdm

from descent.idx import MNIST, Source, examine, parse
from descent.records import atomic_path

TIMEOUT_S = (5.0, 20.0)  # to connect; between two packets


class DamagedDataError(ValueError):
    """A file whose content is not the published one."""


class MissingDataError(FileNotFoundError):
    """A file that is neither on the disk nor to be had from a mirror."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of one data set, in memory.

    Attributes:
        name: `digits` or `mnist`.
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


def data_folder() -> Path:
    """Where data is looked for and kept.

    The folder that `DESCENT_DATA` names; else `data/` of the checkout; else, for an installed package, the user's
    cache folder.
    """
    if named := os.environ.get("DESCENT_DATA"):
        return Path(named).expanduser().absolute()
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        return root / "data"
    from pooch import os_cache  # here, for in a notebook pooch's import warns that its bars lack widgets

    return Path(os_cache("anatomy-of-descent"))


def load(name: str, split: str = "train") -> Dataset:
    """One split of a data set, its content checked on each call.

    `digits`: 1,437 / 360 images of (1, 8, 8), levels 0..16 over 16; the split is stratified and always
    the same (seed 0). `mnist`: 60,000 / 10,000 images of (1, 28, 28), levels 0..255 over 255; LeCun, Cortes & Burges.

    Raises:
        ValueError: unknown name or split.
        DamagedDataError: a file's content has another SHA-256; the message says how to mend it.
        MissingDataError: a file is absent and no mirror gives it; the message says what to put where.
    """
    _expect("name", name, LOADERS)
    _expect("split", split, ("train", "test"))
    images, labels = LOADERS[name](split)
    inputs = torch.from_numpy(images).unsqueeze(1)
    return Dataset(name, split, inputs, torch.from_numpy(labels.astype(np.int64)), classes=10)


def standardised(dataset: Dataset, reference: Dataset | None = None) -> Tensor:
    """Inputs less one scalar mean, over one scalar standard deviation: those of the train split's pixels.

    Args:
        dataset: the split to scale.
        reference: where mean and deviation are measured. None means the train split: `dataset` itself if it is
            one, otherwise it is loaded.

    Returns:
        Same shape as `dataset.inputs`, float32. A train split comes out with mean 0 and (population) deviation 1;
        for MNIST that is the customary (x - 0.1307) / 0.3081.
    """
    if reference is None:
        reference = dataset if dataset.split == "train" else load(dataset.name)
    pixels = reference.inputs.flatten(1)
    mean, square = (rows.mean(dim=1).double().mean().item() for rows in (pixels, pixels.square()))
    if pixels.min() == pixels.max():
        raise ValueError(f"{reference.name}: all {pixels.numel()} pixels are equal; expected some that differ")
    return (dataset.inputs - mean) / math.sqrt(square - mean**2)


def read_idx(source: Source, filename: str) -> NDArray[np.uint8]:
    """The array in one file of `data_folder()/source.name`, compressed or not; fetched when it is not there.

    A damaged file is refused and left as it is: it is the user's. A damaged download is not kept.

    Raises:
        DamagedDataError: see `load`.
        MissingDataError: see `load`.
    """
    folder = data_folder() / source.name
    present = [path for path in (folder / f"{filename}.gz", folder / filename) if path.is_file()]
    path = present[0] if present else _download(source, filename, folder)
    content, problem = _examine(path, source, filename)
    if problem:
        again = f"DESCENT_DATA={shlex.quote(str(folder.parent))} {shlex.quote(sys.executable)} -m descent.datasets"
        mend = f"rm {shlex.quote(str(path))} && {again} {source.name}"
        raise DamagedDataError(f"{path} is damaged\n{problem}\nto mend it: {mend}")
    return parse(content, source.files[filename])


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


LOADERS: dict[str, Callable[[str], tuple[NDArray[np.float32], NDArray[Any]]]] = {"digits": _digits, "mnist": _mnist}


def _examine(path: Path, source: Source, filename: str) -> tuple[bytearray, str]:
    with open(path, "rb") as stream:
        return examine(stream, source, filename)


def _download(source: Source, filename: str, folder: Path) -> Path:
    """Fetch `folder/filename.gz` from the first mirror that gives it undamaged; each is asked once."""
    named = os.environ.get(f"DESCENT_{source.name.upper()}_MIRRORS", "").split(",")
    tried = []
    for mirror in [address.strip() for address in named if address.strip()] or source.mirrors:
        try:
            with atomic_path(folder / f"{filename}.gz") as temporary:
                _fetch(f"{mirror.rstrip('/')}/{filename}.gz", temporary)
                if problem := _examine(temporary, source, filename)[1]:
                    raise DamagedDataError(problem)
            return folder / f"{filename}.gz"
        except (OSError, DamagedDataError) as error:  # requests' errors are OSErrors
            reason = " ".join(str(error).split("Caused by ")[-1].split())
            tried.append(f"  {mirror}: {type(error).__name__}: {reason[:250]}")
    raise MissingDataError(
        f"{filename} is not in {folder}, and no mirror gave it:\n" + "\n".join(tried) + "\n"
        f"to do without: put {', '.join(f'{name}.gz' for name in source.files)} (or them unpacked) in {folder}"
    )


def _fetch(url: str, path: Path) -> None:
    from pooch import HTTPDownloader  # see data_folder

    headers = {"Accept-Encoding": "identity"}  # the file as it is: a server must not unpack it on the way
    # A total from the start: pooch asks whether the bar is true, which tqdm answers by its total.
    with tqdm(total=1, desc=url.rsplit("/", 1)[1], unit="B", unit_scale=True, leave=False) as bar:
        fetch = HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=TIMEOUT_S, headers=headers)
        fetch(url, str(path), None)


def main(names: list[str]) -> None:
    """`python -m descent.datasets mnist`: fetch what is absent, check all, say where it is."""
    try:
        for name in names:
            sizes = [f"{len(load(name, split)):,} {split}" for split in ("train", "test")]
            print(f"{name}: {', '.join(sizes)}; data folder {data_folder()}")
    except (ValueError, MissingDataError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
