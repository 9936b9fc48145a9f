"""Files that are whole or absent: digests, atomic writing, and folders that one process has for itself."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        FileNotFoundError: no such file.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; it takes that name when the block ends, and vanishes when the block raises.

    A reader therefore sees the old file or the new one, never a part: the data is flushed to the disk before
    the rename. The folder is made when it is missing.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=f".tmp{target.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes a private file; results are for others to read
        os.replace(temporary, target)
    except OSError as error:
        # a failing write says neither where nor, in numpy's words, why; other libraries' own kinds of OSError do
        if error.filename is None and type(error) is OSError:
            raise OSError(
                error.errno or errno.ENOSPC, f"{error.strerror or error}; is the disk full?", str(target)
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a whole file or leave the old one; text is encoded as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON with a final newline, atomically.

    Raises:
        ValueError: `value` holds a NaN or an infinity, which JSON cannot say.
    """
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


try:
    import fcntl
except ImportError:  # Windows, where runs are not kept apart
    fcntl = None  # type: ignore[assignment]


# what a file system without locks answers, such as some that are mounted over a network
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class InUseError(RuntimeError):
    """Another run is writing to the folder."""


@contextmanager
def exclusive_folder(folder: Path | None) -> Iterator[None]:
    """Hold a folder, which is made, until the block ends or the process dies, however it dies; None holds nothing.

    The lock is the operating system's, on the folder itself: no file is left that would have to be removed. A file
    system without locks keeps no runs apart.

    Raises:
        InUseError: another run holds it.
    """
    if folder is None or fcntl is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{folder}: another run is writing there; wait until it has ended, or name another folder"
            raise InUseError(message) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)
