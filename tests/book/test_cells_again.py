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


@pytest.mark.parametrize(("lowest", "values"), [(1.1, [[1.1] * 3] * 2), (0.1, [[0.7] * 3] * 2), (9.0, [[1.3] * 3] * 2)])
def test_a_scan_without_a_lowest_point_inside_gives_its_end(lowest: float, values: list[list[float]]) -> None:
    (source,) = cells("superposition", "best_c = ")
    judged: dict[str, Any] = {}
    card = SimpleNamespace(judge=lambda name, each: judged.update({name: each}), only=lambda *names: names)
    weights = torch.ones(8, 2)
    toys = SimpleNamespace(part=lambda chosen: chosen)
    here: dict[str, Any] = {
        "np": np, "card": card, "settings": SimpleNamespace(runs=2), "seeds": [0, 1], "cores": lambda: 1,
        "first": {"small": SimpleNamespace(toys=toys, W=weights, b=weights)},
        "deterministic": contextlib.nullcontext,
        "fresh_losses": lambda part, W, b, batches: (W[:, 0] - lowest) ** 2,
    }  # fmt: skip
    exec(source, here)
    np.testing.assert_allclose(judged["scale_reply"], values, atol=1e-5)
