"""The files of data sets: checked each time they are read, and fetched from a mirror where they are absent.

A damaged file is refused and left as it is, for it is the user's; a damaged download is not kept.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from descent.checkout import data_folder
from descent.data.cifar import CifarArchive, Records, join_records, read_archive, read_records
from descent.data.mnist import IdxSource, check_content, parse_idx
from descent.repro.files import atomic_path, write_atomic

TIMEOUT_S = (5.0, 20.0)  # to connect; between two packets


class DamagedDataError(ValueError):
    """A file whose content is not the published one."""


class MissingDataError(FileNotFoundError):
    """A file that is not on this machine, and that no mirror gave."""


def _damaged(what: object, problem: object, name: str, folder: Path, *paths: Path) -> DamagedDataError:
    """A refusal that ends with the command that replaces the files at `paths` of data set `name` in `folder`."""
    remove = " ".join(["rm", *(shlex.quote(str(path)) for path in paths)])
    again = f"DESCENT_DATA={shlex.quote(str(folder))} {shlex.quote(sys.executable)} -m descent.data.datasets {name}"
    return DamagedDataError(f"{what} is damaged\n{problem}\nto mend it: {remove} && {again}")


def read_idx(source: IdxSource, filename: str) -> NDArray[np.uint8]:
    """The array in one IDX file of a source, compressed or not, in its data folder; raises as `load_dataset`."""
    folder = data_folder() / source.name
    packed = folder / f"{filename}.gz"
    path = next((path for path in (packed, folder / filename) if path.is_file()), packed)
    if not path.is_file():
        _fetch_idx(source, filename, folder)
    content, problem = _check_file(path, source, filename)
    if problem:
        raise _damaged(path, problem, source.name, folder.parent, path)
    return parse_idx(content, source.files[filename])


def _check_file(path: Path, source: IdxSource, filename: str) -> tuple[bytearray, str]:
    with open(path, "rb") as stream:
        return check_content(stream, source, filename)


def _fetch_idx(source: IdxSource, filename: str, folder: Path) -> None:
    def take(url: str) -> None:
        with atomic_path(folder / f"{filename}.gz") as temporary:
            download(url, temporary)
            if problem := _check_file(temporary, source, filename)[1]:
                raise DamagedDataError(problem)

    files = ", ".join(f"{name}.gz" for name in source.files)
    remedy = f"put {files} (or them unpacked) in {folder}"
    _try_mirrors(source, f"{filename}.gz", take, f"{filename} is not in {folder}", remedy)


def read_cifar(source: CifarArchive, split: str) -> Records:
    """The `(n, 3073)` records of one split, from `source.folder` in the data folder; raises as `load_dataset`."""
    root = data_folder()
    paths = [root / source.folder / name for name in source.splits[split].files]
    if not all(path.is_file() for path in paths):
        _fetch_cifar(source, root)
    parts, blamed = [], paths
    try:
        for path in paths:
            blamed = [path]
            with open(path, "rb") as stream:
                parts.append(read_records(stream, path.stat().st_size, source))
        blamed = paths
        return join_records(parts, source.splits[split])
    except ValueError as error:
        what = blamed[0] if len(blamed) == 1 else f"the {split} split of {source.name} in {root / source.folder}"
        raise _damaged(what, error, source.name, root, *blamed) from error


def _fetch_cifar(source: CifarArchive, folder: Path) -> None:
    """Write the files that are absent in `folder/source.folder`; those that are present stay as they are.

    They come from the archive in `folder` if there is one, which stays there; else from the first mirror whose archive
    is whole, and that archive is not kept.
    """
    archive = folder / source.archive
    if archive.is_file():
        try:
            return _extract(archive, source, folder)
        except DamagedDataError as error:
            raise _damaged(archive, error, source.name, folder, archive) from error

    def take(url: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=f".{source.archive}.") as temporary:
            path = Path(temporary) / source.archive
            download(url, path)
            _extract(path, source, folder)

    remedy = f"put it there, or {', '.join(source.files)} in {folder / source.folder}"
    _try_mirrors(source, source.archive, take, f"{source.archive} is not in {folder}", remedy)


def _extract(archive: Path, source: CifarArchive, folder: Path) -> None:
    """Write the absent files, each whole or not at all, after the content of all of them has been checked."""
    try:
        with open(archive, "rb") as stream:
            parts = read_archive(stream, source)
    except ValueError as error:
        raise DamagedDataError(str(error)) from error
    for name, records in parts.items():
        path = folder / source.folder / name
        if not path.is_file():
            write_atomic(path, records.tobytes())


def _try_mirrors(
    source: IdxSource | CifarArchive, filename: str, take: Callable[[str], None], lacking: str, remedy: str
) -> None:
    """Give `take` the file's address on each mirror in turn, until one does not fail.

    The mirrors are those of `source`, or those in `DESCENT_<NAME>_MIRRORS`, separated by commas. `take` fetches, checks
    and keeps the file, and keeps nothing when it raises OSError or DamagedDataError. If no mirror gives the file,
    MissingDataError says that it is `lacking`, why, in a line for each mirror, and the `remedy`.
    """
    named = os.environ.get(f"DESCENT_{source.name.upper()}_MIRRORS", "").split(",")
    failures = []
    for mirror in [address.strip() for address in named if address.strip()] or source.mirrors:
        try:
            return take(f"{mirror.rstrip('/')}/{filename}")
        except (OSError, DamagedDataError) as error:  # the errors of requests are OSErrors
            reason = " ".join(str(error).split("Caused by ")[-1].split())
            failures.append(f"  {mirror}: {type(error).__name__}: {reason[:250]}")
    raise MissingDataError(f"{lacking}, and no mirror gave it:\n" + "\n".join(failures) + f"\nto do without: {remedy}")


def download(url: str, path: Path) -> None:
    """Write what `url` (http or https) gives to `path`, as it comes, so `path` should be a temporary file.

    Raises:
        OSError: the server refused, broke off or was silent for longer than `TIMEOUT_S`.
    """
    from pooch import HTTPDownloader  # here, for in a notebook pooch's import warns that its bars lack widgets

    headers = {"Accept-Encoding": "identity"}  # the file as it is: a server must not unpack it on the way
    # The total is given from the start because pooch asks whether the bar is true, which tqdm decides by its total.
    with tqdm(total=1, desc=url.rsplit("/", 1)[1], unit="B", unit_scale=True, leave=False) as bar:
        fetch = HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=TIMEOUT_S, headers=headers)
        fetch(url, str(path), None)
