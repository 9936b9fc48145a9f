"""IDX files proven before use: the SHA-256 of the decompressed content, then the header; streams only, no disk."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 20
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class IdxFile:
    """SHA-256 of a decompressed IDX file of unsigned bytes, and the shape that its header must state."""

    sha256: str
    shape: tuple[int, ...]

    @property
    def header(self) -> bytes:
        """Two zero bytes, 8 for "unsigned byte", the number of dimensions, then each size as four bytes."""
        return b"".join(part.to_bytes(4, "big") for part in (0x0800 + len(self.shape), *self.shape))

    @property
    def size(self) -> int:
        """Bytes of the whole decompressed file."""
        return len(self.header) + math.prod(self.shape)


@dataclass(frozen=True)
class IdxSource:
    """A data set's files by name (without `.gz`) and the base addresses they are fetched from, in turn."""

    name: str
    files: Mapping[str, IdxFile]
    mirrors: tuple[str, ...]


MNIST = IdxSource(
    "mnist",
    {
        "train-images-idx3-ubyte": IdxFile(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db", (60_000, 28, 28)
        ),
        "train-labels-idx1-ubyte": IdxFile(
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5", (60_000,)
        ),
        "t10k-images-idx3-ubyte": IdxFile(
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", (10_000, 28, 28)
        ),
        "t10k-labels-idx1-ubyte": IdxFile(
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2", (10_000,)
        ),
    },
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
)


def unpack(stream: BinaryIO, limit: int) -> tuple[bytearray, str]:
    """Content of a stream, gzip or plain by its first bytes, and why a gzip stream broke off ("" if it did not).

    Stops once `limit` bytes are exceeded, whatever a damaged or hostile file would swell to.
    """
    packed = stream.read(len(_GZIP)) == _GZIP
    stream.seek(0)
    content = bytearray()
    with gzip.GzipFile(fileobj=stream) as unpacked:
        try:
            while len(content) <= limit and (chunk := unpacked.read1(_CHUNK) if packed else stream.read(_CHUNK)):
                content += chunk
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            return content, str(error)
    return content, ""


def examine(stream: BinaryIO, source: IdxSource, filename: str) -> tuple[bytearray, str]:
    """Content of one file of a source, and what is wrong with it in one line ("" when nothing is).

    What counts is the content, so every compression level will do, and so will a gzip header whose time stamp was
    damaged; a checksum that fails, a lost end or bytes after the end are refused.
    """
    content, fault = unpack(stream, limit=max(file.size for file in source.files.values()))
    expected, found = source.files[filename].sha256, hashlib.sha256(content).hexdigest()
    if found == expected and not fault:
        return content, ""
    swapped = [name for name, file in source.files.items() if file.sha256 == found != expected]
    remark = f", which is {swapped[0]}" if swapped else f" in a broken gzip file: {fault}" if fault else ""
    return content, f"expected SHA-256 {expected}, found {found}{remark}"


def parse(content: bytes | bytearray, file: IdxFile) -> NDArray[np.uint8]:
    """The array of an IDX file.

    Raises:
        ValueError: magic number, dimensions or length are not those of `file`.
    """
    if not content.startswith(file.header) or len(content) != file.size:
        found = bytes(content[: len(file.header)]).hex(" ", 4)
        raise ValueError(f"header {found}, {len(content)} bytes: expected unsigned bytes of shape {file.shape}")
    return np.frombuffer(content, np.uint8, offset=len(file.header)).reshape(file.shape)
