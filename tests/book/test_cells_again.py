"""Cells of the chapters that a reader runs again, or with small parameters, find what they need."""

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from descent.checkout import project_root
from descent_book.run.chapter import Chapter


def cells(chapter: str, *parts: str) -> list[str]:
    """The one code cell of a chapter that holds each part."""
    sources = [cell["source"] for cell in Chapter.read(project_root(), chapter).cells if cell["cell_type"] == "code"]
    return [next(source for source in sources if part in source) for part in parts]


@pytest.mark.parametrize("again", [1, 2])
def test_the_steps_of_lbfgs_are_recorded_at_each_run_of_their_cell(again: int) -> None:
    imports, closure, steps = cells("your_own_network", "import torch", "def closure", "optimizer.step(closure)")
    settings, draw = SimpleNamespace(hidden=3), torch.Generator().manual_seed(0)
    here: dict[str, Any] = {
        "settings": settings, "pixels": torch.rand(30, 64, generator=draw), "digits": torch.arange(30) % 10,
        "Network": lambda width: nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10)),
    }  # fmt: skip
    for source in (imports, closure, *[steps] * again):
        exec(source, here)
    assert here["rows"].shape == (10, 64 * 3 + 3 + 3 * 10 + 10)
    assert here["recorded_difference"] < 1e-6


@pytest.mark.parametrize(("lowest", "value"), [(1.05, 1.05), (0.5, 0.88), (9.0, 1.12), (1.0, 1.0)])
def test_a_scan_without_a_lowest_point_inside_gives_its_end(lowest: float, value: float) -> None:
    (source,) = cells("superposition", "best_c = ")
    judged: dict[str, Any] = {}
    weights = torch.ones(2, 3, 2)
    run = SimpleNamespace(toys=SimpleNamespace(part=lambda chosen: chosen), W=weights, b=weights)
    here: dict[str, Any] = {
        "np": np, "judge": lambda name, each: judged.update({name: each}), "cores": lambda: 1, "runs": 2,
        "scanned": {(4, 3): run}, "scores": {(4, 3): np.array([[1.0, 2.0]])}, "lowest": lambda each: [0, 1],
        "deterministic": contextlib.nullcontext, "dimensionality": lambda W: W[..., 0],
        "trained": lambda *given, **what: run,
        "expected_losses": lambda part, W, b: (1 + (W[:, 0, 0] - lowest) ** 2).numpy(),
    }  # fmt: skip
    exec(source, here)
    np.testing.assert_allclose(judged["scale_reply"], [value] * 2, atol=1e-5)
