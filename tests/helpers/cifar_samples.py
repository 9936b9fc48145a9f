"""A tiny data set in CIFAR-10's binary files, as arrays, as the files' bytes and as an archive."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping

import numpy as np

from descent.data.cifar import CIFAR10, RECORD, CifarArchive, CifarSplit

FOLDER, ARCHIVE = CIFAR10.folder, CIFAR10.archive
TRAIN, TEST = CIFAR10.splits["train"].files, CIFAR10.splits["test"].files
FILES = TRAIN + TEST
EACH = 4  # records in a file of the tiny source
Member = bytes | tuple[bytes, str]  # a file's content, or a link's type and what it points to


def records(seed: int, count: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, 256, (count, RECORD), dtype=np.uint8)
    drawn[:, 0] %= 10
    return drawn


def digest_of(split: np.ndarray) -> str:
    """SHA-256 of the records' sorted SHA-256s, by which a split is known whatever the order of its records."""
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(record).digest() for record in split))).hexdigest()


PARTS = {name: records(seed, EACH) for seed, name in enumerate(FILES)}
CONTENT = {name: part.tobytes() for name, part in PARTS.items()}
GIVEN = {split: np.concatenate([PARTS[name] for name in CIFAR10.splits[split].files]) for split in ("train", "test")}
# as they are returned, whatever the order in the files
WHOLE = {split: np.stack(sorted(part, key=lambda r: hashlib.sha256(r).digest())) for split, part in GIVEN.items()}
SPLITS = {split: CifarSplit(CIFAR10.splits[split].files, digest_of(whole)) for split, whole in WHOLE.items()}
LOCAL = CifarArchive("tiny", FOLDER, ARCHIVE, EACH, SPLITS, mirrors=())


def tar(members: Mapping[str, Member]) -> bytes:
    """An uncompressed tar file of regular files and links."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, member in members.items():
            entry = tarfile.TarInfo(name)
            if isinstance(member, bytes):
                entry.size = len(member)
                archive.addfile(entry, io.BytesIO(member))
            else:
                entry.type, entry.linkname = member
                archive.addfile(entry)
    return packed.getvalue()


def published(prefix: str = f"{FOLDER}/", **changes: Member) -> dict[str, Member]:
    """The members of the tiny source's archive, in the official one's order; `changes` by file name without `.bin`."""
    order = (1, "batches.meta.txt", 3, 4, "test_batch.bin", "readme.html", 5, 2)
    names = [name if isinstance(name, str) else f"data_batch_{name}.bin" for name in order]
    given = {f"{name}.bin": change for name, change in changes.items()}
    return {prefix + name: given.get(name, CONTENT.get(name, b"text")) for name in names}


PACKED = gzip.compress(tar(published()), 6, mtime=0)
