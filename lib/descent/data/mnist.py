"""MNIST and its IDX files, checked before use: the SHA-256 of the decompressed content, then the header."""

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
    """A decompressed IDX file of unsigned bytes: its SHA-256, and the shape that its header must state."""

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
    """The files of a data set by name (without `.gz`), and the base addresses from which they are fetched, in turn."""

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


def decompress(stream: BinaryIO, limit: int) -> tuple[bytearray, str]:
    """The content of a stream, unpacked if it starts as gzip does, and why that broke off ("" if it did not).

    Reading stops once `limit` bytes are exceeded, however large a damaged or hostile file would become.
    """
    compressed = stream.read(len(_GZIP)) == _GZIP
    stream.seek(0)
    content = bytearray()
    with gzip.GzipFile(fileobj=stream) as unpacked:
        try:
            while len(content) <= limit and (chunk := unpacked.read1(_CHUNK) if compressed else stream.read(_CHUNK)):
                content += chunk
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            return content, str(error)
    return content, ""


def check_content(stream: BinaryIO, source: IdxSource, filename: str) -> tuple[bytearray, str]:
    """The content of one file of a source, and what is wrong with it, in one line ("" if nothing is).

    Only the decompressed content counts, so any compression level is accepted, and so is a gzip header with a damaged
    time stamp. A gzip checksum that fails, a missing end and bytes after the end are refused.
    """
    content, fault = decompress(stream, limit=max(file.size for file in source.files.values()))
    expected, digest = source.files[filename].sha256, hashlib.sha256(content).hexdigest()
    if digest == expected and not fault:
        return content, ""
    swapped = [name for name, file in source.files.items() if file.sha256 == digest != expected]
    remark = f", which is {swapped[0]}" if swapped else f" in a broken gzip file: {fault}" if fault else ""
    return content, f"expected SHA-256 {expected}, found {digest}{remark}"


def parse_idx(content: bytes | bytearray, file: IdxFile) -> NDArray[np.uint8]:
    """The array of an IDX file.

    Raises:
        ValueError: the magic number, the dimensions or the length are not those of `file`.
    """
    if not content.startswith(file.header) or len(content) != file.size:
        header = bytes(content[: len(file.header)]).hex(" ", 4)
        raise ValueError(f"header {header}, {len(content)} bytes: expected unsigned bytes of shape {file.shape}")
    return np.frombuffer(content, np.uint8, offset=len(file.header)).reshape(file.shape)
