"""Where the heavy parts are computed: training of transformers, toy models and residual networks, and surfaces."""

from __future__ import annotations

import os

import torch

VARIABLE = "DESCENT_DEVICE"
_CHOICES = ("cpu", "cuda")


def compute_device() -> torch.device:
    """A GPU that PyTorch can use, where there is one, else the CPU; `DESCENT_DEVICE` decides where it is set.

    Random numbers are drawn on the CPU in any case, so that a seed means the same start and the same data everywhere;
    the sums of a GPU have other last bits. What is trained comes back to the CPU, where it is analysed.

    Raises:
        ValueError: `DESCENT_DEVICE` is neither `cpu` nor `cuda`, or asks for a GPU that is not there.
    """
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
    return torch.cuda.get_device_name() if compute_device().type == "cuda" else "cpu"
