"""Which arithmetic the machine has."""

from __future__ import annotations

from typing import Any

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has matrix instructions for bfloat16: without them it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    cpu: Any = torch.cpu  # no public name as of torch 2.13; older versions lack some
    known = (getattr(cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(question is not None and question() for question in known)


def autocast(device: torch.device) -> torch.autocast:
    """A context in bfloat16 where the device multiplies in it, in float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))
