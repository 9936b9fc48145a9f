"""A folder that one run at a time may write to."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where runs are not kept apart
    fcntl = None  # type: ignore[assignment]


# what a file system without locks answers, such as some that are mounted over a network
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class InUseError(RuntimeError):
    """Another run is writing to the folder."""


@contextmanager
def alone(folder: Path | None) -> Iterator[None]:
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
