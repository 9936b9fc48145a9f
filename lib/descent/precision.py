"""Which arithmetic the machine has."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has matrix instructions for bfloat16: without them it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    cpu: Any = torch.cpu  # no public name as of torch 2.13; older versions lack some
    known = (getattr(cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(question is not None and question() for question in known)


def chosen(wanted: str, device: torch.device) -> str:
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
        ValueError: see `chosen`.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=chosen(precision, device) == "bfloat16")
