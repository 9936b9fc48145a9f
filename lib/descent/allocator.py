"""What the C library does with memory that is freed, in worker processes that ask for the same again and again."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

# names of malloc.h, and the largest value that glibc takes
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20


@cache
def keep_freed_memory() -> bool:
    """Let this process keep what it frees, where glibc would give blocks above 128 KiB back to the system.

    A forward pass frees what the next one asks for; each page that went back costs a fault and is zeroed anew. The
    process then stays as large as it was at most.

    Returns:
        Whether the C library took the settings; another than glibc is left as it is.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)])
