"""What this machine offers: cores, a GPU, number formats, the memory allocator, Colab. Torch is imported when asked."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import torch


def cores() -> int:
    """The number of cores that this process may use: `DESCENT_CORES` if set, else what the operating system allots it.

    Raises:
        ValueError: `DESCENT_CORES` is not a positive integer.

    Example:
        >>> cores() >= 1
        True
    """
    setting = os.environ.get("DESCENT_CORES")
    if not setting:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if not setting.isdecimal() or len(setting) > 9 or int(setting) == 0:
        raise ValueError(f"DESCENT_CORES={setting!r}: expected a positive integer of at most nine digits")
    return int(setting)


DEVICE_VARIABLE = "DESCENT_DEVICE"
_DEVICES = ("cpu", "cuda")


def compute_device() -> torch.device:
    """The device named by `DESCENT_DEVICE`; if it is not set, a GPU that PyTorch can use, else the CPU.

    Random numbers are always drawn on the CPU, so that a seed means the same start and the same data on any device. The
    last bits of sums differ on a GPU. What was trained comes back to the CPU, where it is analysed.

    Raises:
        ValueError: `DESCENT_DEVICE` is neither `cpu` nor `cuda`, or asks for a GPU that is not there.
    """
    import torch

    available = torch.cuda.is_available()
    device = os.environ.get(DEVICE_VARIABLE) or ("cuda" if available else "cpu")
    if device not in _DEVICES:
        raise ValueError(f"{DEVICE_VARIABLE}={device!r}: expected one of {', '.join(_DEVICES)}")
    if device == "cuda":
        if not available:
            raise ValueError(f"{DEVICE_VARIABLE}='cuda': PyTorch finds no GPU here; expected cpu")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS does not repeat its bits
    return torch.device(device)


def device_name() -> str:
    """`cpu`, or the name that the GPU gives itself; raises as `compute_device` does."""
    import torch

    return torch.cuda.get_device_name() if compute_device().type == "cuda" else "cpu"


Precision = Literal["auto", "float32", "bfloat16"]


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has matrix instructions for bfloat16; without them bfloat16 is slower than float32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    cpu: Any = torch.cpu  # torch 2.13 has no public name for these, and older versions lack some
    checks = (getattr(cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


def chosen_precision(wanted: str, device: torch.device) -> str:
    """`float32` or `bfloat16`; `auto` means bfloat16 if the device has matrix instructions for it."""
    if wanted not in get_args(Precision):
        raise ValueError(f"precision={wanted!r}: expected one of {', '.join(get_args(Precision))}")
    if wanted == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    return wanted


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """A context in which the device multiplies in `chosen_precision`; weights stay float32."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=chosen_precision(precision, device) == "bfloat16")


# two parameters of malloc.h, and the largest value that glibc accepts for the second
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20


@cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; glibc gives blocks above 128 KiB back, and zeroes them again.

    Returns whether the C library accepted the settings; a library other than glibc is left as it is.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)])


def colab_report() -> str:
    """One line for Colab: the number of cores, what a GPU takes over, and where to read how long a chapter takes."""
    count, name = os.cpu_count() or 1, device_name()
    heavy = "trains transformers, toy models and residual networks and computes loss surfaces, where a chapter has them"
    used = "" if name == "cpu" else f" The GPU, {name}, {heavy}."
    place = f"This chapter computes on the CPU, {count} core{'s' if count > 1 else ''}.{used}"
    return f"{place} How many minutes it takes on two cores stands under its title."
