"""Files: digests, writing that leaves a whole file or none, and folders that only one process may write to."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the runner imports this module before it needs numpy
    from numpy.typing import NDArray


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of named arrays, of any shapes: names, types, shapes and bytes; the order of the names does not count."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`, which is created if needed; a reader of `path` never sees a part.

    When the block ends, the temporary file is flushed to the disk and renamed to `path`; when it raises, removed.
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
        temporary.chmod(0o644)  # mkstemp creates a private file, but others may read results
        os.replace(temporary, target)
    except OSError as error:
        # a failed write does not name the file, nor, in numpy, the cause; the subclasses of other libraries do
        if error.filename is None and type(error) is OSError:
            raise OSError(
                error.errno or errno.ENOSPC, f"{error.strerror or error}; is the disk full?", str(target)
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a file whole, or leave the old one as it is; text is encoded as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def check_writable(name: str, folder: str | Path) -> None:
    """Make `folder`, and for a moment a file in it, so that hours of work do not end where nothing can be kept.

    Raises:
        ValueError: neither can be made; the message begins with `name`, the parameter's.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"{name}={str(folder)!r}: nothing can be written there ({why}); name another") from error


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON with a final newline, atomically.

    Raises:
        ValueError: `value` holds a NaN or an infinity, which JSON cannot say.
    """
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


# what a file system without locks answers, such as some that are mounted over a network, or one that is read-only
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EROFS}


class InUseError(RuntimeError):
    """Another run is writing to the folder."""


@contextmanager
def exclusive_folder(folder: Path | None) -> Iterator[None]:
    """Lock `folder`, creating it if needed, until the block ends; None locks nothing.

    The operating system holds the lock, so it is released even if the process is killed. The lock is on an empty file
    `.lock` in the folder, which is removed at the end; one that a killed process leaves behind locks nobody out. Where
    the file system has no locks, runs are not kept apart.

    Raises:
        InUseError: another run holds the lock; the message names the folder.
        OSError: the folder cannot be made, such as where a file has its name.
    """
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout  # here: a program that only writes files need not wait for it

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"no folder can be made there ({error.strerror or error}); name another"
        raise type(error)(error.errno, why, str(folder)) from error
    lock = FileLock(folder / ".lock", timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        message = f"{folder}: another run is writing there; wait until it has ended, or name another folder"
        raise InUseError(message) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # Windows does not remove a file that is open
                Path(lock.lock_file).unlink()
            lock.release()
