"""CIFAR-10 and its binary files, checked before use: sizes, labels, then a digest of all records of a split."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE = (3, 32, 32)  # red, green and blue planes, each row by row
RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the image
Records = NDArray[np.uint8]


@dataclass(frozen=True)
class CifarSplit:
    """The files of one split, and the SHA-256 of the sorted SHA-256s of all their records, whatever their order."""

    files: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class CifarArchive:
    """A data set in files of `records` records each.

    `folder` is where the files are, in the data folder and in the published `archive`; `mirrors` are the base addresses
    from which the archive is fetched, in turn.
    """

    name: str
    folder: str
    archive: str
    records: int
    splits: Mapping[str, CifarSplit]
    mirrors: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The files of all splits."""
        return tuple(name for split in self.splits.values() for name in split.files)

    @property
    def size(self) -> int:
        """Bytes of each file."""
        return self.records * RECORD


# The author publishes the MD5 of the archive, c32a1d4ab5d03f1284b67883e8d87530. It is not checked: it would refuse the
# right images in an archive of another compression level, and shows nothing that the digests of the records do not.
CIFAR10 = CifarArchive(
    "cifar10",
    "cifar-10-batches-bin",
    "cifar-10-binary.tar.gz",
    10_000,
    {
        "train": CifarSplit(
            tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
            "55a61f79a40ece2ceda9fb5f9f7078f6ea2fc4952489cef56682bcf92cfcc260",
        ),
        "test": CifarSplit(("test_batch.bin",), "325704b01eb92e1e2a6215ae6a916bb7db7de054af0c496be1c7be2e0fcfbf5f"),
    },
    ("https://www.cs.toronto.edu/~kriz/",),
)


def read_records(stream: IO[bytes], size: int, source: CifarArchive) -> Records:
    """The `(n, 3073)` records of one file of `size` bytes, each a label, then 1,024 red, green and blue levels.

    Raises:
        ValueError: another size than that of `source`'s files, which is not read, or a label that is no class.
    """
    content = b""
    if size == source.size:
        content = stream.read(size)
        size = len(content)
    if size != source.size:
        raise ValueError(f"expected {source.size:,} bytes ({source.records:,} records of {RECORD:,}), found {size:,}")
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    if (wrong := np.flatnonzero(records[:, 0] >= len(CLASSES))).size:
        label, first = records[wrong[0], 0], wrong[0]
        raise ValueError(f"expected labels from 0 to {len(CLASSES) - 1}, found {label} in record {first:,} (from 0)")
    return records


def join_records(parts: Sequence[Records], split: CifarSplit) -> Records:
    """The records of a split sorted by their SHA-256s, so that the n-th is the same in whatever order the files are.

    Raises:
        ValueError: the records are not those that were published.
    """
    records = np.concatenate(parts)
    hashes = [hashlib.sha256(record).digest() for record in records]
    order = sorted(range(len(records)), key=hashes.__getitem__)
    if (digest := hashlib.sha256(b"".join(hashes[i] for i in order)).hexdigest()) != split.sha256:
        raise ValueError(f"expected SHA-256 {split.sha256}, found {digest} (of the records' sorted SHA-256s)")
    return records[order]


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


_PACKED: dict[bytes, Callable[[BinaryIO], _Readable]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}


class _Limited(io.RawIOBase):
    """A stream that fails once `limit` bytes are exceeded, however large a hostile archive would become."""

    def __init__(self, stream: _Readable, limit: int) -> None:
        self._stream, self._limit, self._read = stream, limit, 0

    def read(self, size: int = -1, /) -> bytes:
        chunk = self._stream.read(size)
        self._read += len(chunk)
        if self._read > self._limit:
            raise ValueError(f"expected an archive of at most {self._limit:,} bytes unpacked, found more")
        return chunk


def read_archive(stream: BinaryIO, source: CifarArchive) -> dict[str, Records]:
    """The `(n, 3073)` records of every file in the archive, by file name, checked as those of single files are.

    The tar file may be compressed by gzip, bzip2, xz or not at all. Only regular files with the expected paths are
    read, into memory, so that no name or link in the archive decides what is written.

    Raises:
        ValueError: not such an archive, a broken one, or one without the published records.
    """
    head = stream.read(max(map(len, _PACKED)))
    stream.seek(0)
    packed = next((unpacked(stream) for magic, unpacked in _PACKED.items() if head.startswith(magic)), stream)
    try:
        parts = _members(packed, source)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
        raise ValueError(f"expected a tar archive, found a broken one: {error}") from error
    for split in source.splits.values():
        join_records([parts[name] for name in split.files], split)
    return parts


def _members(stream: _Readable, source: CifarArchive) -> dict[str, Records]:
    limit = 2 * len(source.files) * source.size + (1 << 20)  # the archive may hold other files as well
    wanted = {f"{source.folder}/{name}": name for name in source.files}
    parts: dict[str, Records] = {}
    with tarfile.open(fileobj=_Limited(stream, limit), mode="r|", bufsize=1 << 20) as archive:
        for member in archive:
            if member.size > limit:  # tarfile would count through blocks that are not there
                raise ValueError(f"expected members of at most {limit:,} bytes, found one of {member.size:,}")
            name = wanted.get(member.name.removeprefix("./"))
            if name is None:
                continue
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise ValueError(f"expected {member.name} to be a regular file, found a link or a folder")
            try:
                parts[name] = read_records(content, member.size, source)
            except ValueError as error:
                raise ValueError(f"{member.name}: {error}") from error
            if len(parts) == len(wanted):
                return parts
    lacking = ", ".join(name for name in source.files if name not in parts)
    raise ValueError(f"expected {', '.join(source.files)} in {source.folder}/, found no {lacking}")
