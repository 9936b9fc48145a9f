"""What this machine offers: cores, an accelerator, precisions, the memory allocator, Colab."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import torch


def cores() -> int:
    """Cores that this process may use: `DESCENT_CORES` where it is set, else what the operating system allots.

    Raises:
        ValueError: `DESCENT_CORES` is not a positive integer.
    """
    wanted = os.environ.get("DESCENT_CORES")
    if wanted is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if not wanted.isdigit() or int(wanted) == 0:
        raise ValueError(f"DESCENT_CORES={wanted!r}: expected a positive integer")
    return int(wanted)


VARIABLE = "DESCENT_DEVICE"
_CHOICES = ("cpu", "cuda")


def compute_device() -> torch.device:
    """A GPU that PyTorch can use, where there is one, else the CPU; `DESCENT_DEVICE` decides where it is set.

    Random numbers are drawn on the CPU in any case, so that a seed means the same start and the same data everywhere;
    the sums of a GPU have other last bits. What is trained comes back to the CPU, where it is analysed.

    Raises:
        ValueError: `DESCENT_DEVICE` is neither `cpu` nor `cuda`, or asks for a GPU that is not there.
    """
    import torch  # here: whoever counts cores need not wait for it

    there = torch.cuda.is_available()
    wanted = os.environ.get(VARIABLE) or ("cuda" if there else "cpu")
    if wanted not in _CHOICES:
        raise ValueError(f"{VARIABLE}={wanted!r}: expected one of {', '.join(_CHOICES)}")
    if wanted == "cuda":
        if not there:
            raise ValueError(f"{VARIABLE}='cuda': PyTorch finds no GPU here; expected cpu")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its bits with this alone
    return torch.device(wanted)


def device_name() -> str:
    """`cpu`, or the GPU's own name; raises as `compute_device` does."""
    import torch

    return torch.cuda.get_device_name() if compute_device().type == "cuda" else "cpu"


Precision = Literal["auto", "float32", "bfloat16"]


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has matrix instructions for bfloat16: without them it is slower than float32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    cpu: Any = torch.cpu  # no public name as of torch 2.13; older versions lack some
    known = (getattr(cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(question is not None and question() for question in known)


def chosen_precision(wanted: str, device: torch.device) -> str:
    """`float32` or `bfloat16`; `auto` is bfloat16 where the device multiplies in it.

    Raises:
        ValueError: another name.
    """
    if wanted not in get_args(Precision):
        raise ValueError(f"precision={wanted!r}: expected one of {', '.join(get_args(Precision))}")
    if wanted == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    return wanted


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """A context in the chosen precision; weights stay float32.

    Raises:
        ValueError: see `chosen_precision`.
    """
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=chosen_precision(precision, device) == "bfloat16")


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


def colab_report() -> str:
    """One line: the processor's cores, what a GPU takes over, and where the chapter's minutes stand."""
    cores = os.cpu_count() or 1
    name = device_name()
    heavy = "trains transformers, toy models and residual networks and computes loss surfaces, where a chapter has them"
    used = "" if name == "cpu" else f" The GPU, {name}, {heavy}."
    said = f"This chapter computes on the CPU, {cores} core{'s' if cores > 1 else ''}.{used}"
    return f"{said} How many minutes it takes on two cores stands under its title."
