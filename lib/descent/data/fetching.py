"""Files from mirrors, each asked once, in turn, until one gives what passes the check; archives, opened likewise."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from tqdm import tqdm

from descent.data.cifar import CifarArchive, unpack
from descent.repro.files import write_atomic

TIMEOUT_S = (5.0, 20.0)  # to connect; between two packets


class DamagedDataError(ValueError):
    """A file whose content is not the published one."""


class MissingDataError(FileNotFoundError):
    """A file that is neither on the disk nor to be had from a mirror."""


class Mirrored(Protocol):
    """A data set with the base addresses that its files are fetched from."""

    @property
    def name(self) -> str:
        """What `load` knows it by, and what `DESCENT_<NAME>_MIRRORS` is called after."""

    @property
    def mirrors(self) -> tuple[str, ...]:
        """Base addresses, in the order in which they are asked."""


def from_mirrors(source: Mirrored, filename: str, take: Callable[[str], None], lacking: str, remedy: str) -> None:
    """Give `take` the file's address on each mirror in turn, until it does not fail; each is asked once.

    Args:
        source: its mirrors; `DESCENT_<NAME>_MIRRORS` names others, separated by commas.
        filename: the file on the server.
        take: fetches, checks and keeps the file; keeps nothing when it raises OSError or DamagedDataError.
        lacking: what is not where, the first words of the message.
        remedy: how to do without a mirror, its last words.

    Raises:
        MissingDataError: no mirror gave the file; the message says why not, a line each.
    """
    named = os.environ.get(f"DESCENT_{source.name.upper()}_MIRRORS", "").split(",")
    tried = []
    for mirror in [address.strip() for address in named if address.strip()] or source.mirrors:
        try:
            return take(f"{mirror.rstrip('/')}/{filename}")
        except (OSError, DamagedDataError) as error:  # requests' errors are OSErrors
            reason = " ".join(str(error).split("Caused by ")[-1].split())
            tried.append(f"  {mirror}: {type(error).__name__}: {reason[:250]}")
    raise MissingDataError(f"{lacking}, and no mirror gave it:\n" + "\n".join(tried) + f"\nto do without: {remedy}")


def download(url: str, path: Path, timeout: tuple[float, float] = TIMEOUT_S) -> None:
    """Write what `url` gives to `path`, with a progress bar on stderr.

    Args:
        url: http or https.
        path: written as the bytes come, so a temporary one.
        timeout: seconds to connect, and between two packets.

    Raises:
        OSError: refused, broken off or silent for too long.
    """
    from pooch import HTTPDownloader  # here, for in a notebook pooch's import warns that its bars lack widgets

    headers = {"Accept-Encoding": "identity"}  # the file as it is: a server must not unpack it on the way
    # A total from the start: pooch asks whether the bar is true, which tqdm answers by its total.
    with tqdm(total=1, desc=url.rsplit("/", 1)[1], unit="B", unit_scale=True, leave=False) as bar:
        fetch = HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=timeout, headers=headers)
        fetch(url, str(path), None)


def to_mend(name: str, folder: Path, *paths: Path) -> str:
    """The last line of a refusal: the command that replaces the files at `paths` of data set `name` in `folder`."""
    remove = " ".join(["rm", *(shlex.quote(str(path)) for path in paths)])
    again = f"DESCENT_DATA={shlex.quote(str(folder))} {shlex.quote(sys.executable)} -m descent.data.datasets {name}"
    return f"to mend it: {remove} && {again}"


def fetch_batches(source: CifarArchive, folder: Path, timeout: tuple[float, float]) -> None:
    """Write those of the files that are absent in `folder/source.folder`; those that are there stay as they are.

    They come from the archive in `folder` if one is there, which stays too, else from the first mirror whose archive
    is whole; that one is not kept.

    Raises:
        DamagedDataError: the archive in `folder` is not whole, or not the published one by its content.
        MissingDataError: there is none, and no mirror gives it.
    """
    archive = folder / source.archive
    if archive.is_file():
        try:
            return _extract(archive, source, folder)
        except DamagedDataError as error:
            message = f"{archive} is damaged\n{error}\n{to_mend(source.name, folder, archive)}"
            raise DamagedDataError(message) from error

    def take(url: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=f".{source.archive}.") as temporary:
            path = Path(temporary) / source.archive
            download(url, path, timeout)
            _extract(path, source, folder)

    remedy = f"put it there, or {', '.join(source.files)} in {folder / source.folder}"
    from_mirrors(source, source.archive, take, f"{source.archive} is not in {folder}", remedy)


def _extract(archive: Path, source: CifarArchive, folder: Path) -> None:
    """Write the absent files, each whole or not at all, once the content of all of them is proven."""
    try:
        with open(archive, "rb") as stream:
            parts = unpack(stream, source)
    except ValueError as error:
        raise DamagedDataError(str(error)) from error
    for name, records in parts.items():
        path = folder / source.folder / name
        if not path.is_file():
            write_atomic(path, records.tobytes())
