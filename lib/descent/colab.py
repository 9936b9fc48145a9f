"""What a reader in Colab is told once the library is there: where the chapter computes, and how long it takes."""

from __future__ import annotations

import os


def report() -> str:
    """One line: the processor's cores, a GPU that is there but not used, and where the chapter's minutes stand."""
    import torch

    cores = os.cpu_count() or 1
    unused = f" The GPU, {torch.cuda.get_device_name()}, is not used." if torch.cuda.is_available() else ""
    said = f"This chapter computes on the CPU, {cores} core{'s' if cores > 1 else ''}.{unused}"
    return f"{said} How many minutes it takes on two cores stands under its title."
