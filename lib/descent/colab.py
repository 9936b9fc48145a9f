"""What a reader in Colab is told once the library is there: where the chapter computes, and how long it takes."""

from __future__ import annotations

import os


def report() -> str:
    """One line: the processor's cores, what a GPU takes over, and where the chapter's minutes stand."""
    from descent.devices import device_name

    cores = os.cpu_count() or 1
    name = device_name()
    heavy = "trains transformers, toy models and residual networks and computes loss surfaces, where a chapter has them"
    used = "" if name == "cpu" else f" The GPU, {name}, {heavy}."
    said = f"This chapter computes on the CPU, {cores} core{'s' if cores > 1 else ''}.{used}"
    return f"{said} How many minutes it takes on two cores stands under its title."
