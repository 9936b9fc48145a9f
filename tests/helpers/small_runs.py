"""Small training runs whose checkpoints or recorded rows tests look at, interrupt and damage."""

from pathlib import Path

import torch
from torch import nn

from descent.training.capture import CapturePlan, GradientRecorder
from descent.training.loop import MiniBatches, TrainingPlan, batch_cross_entropy, fit


def setup() -> tuple[nn.Module, MiniBatches]:
    """A network of 53 weights, and its mini-batches."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(40, 6, generator=generator), torch.arange(40) % 3
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), MiniBatches((inputs, targets), 8, 0)


def record(folder: Path, steps: int, first: int | None = None) -> None:
    """Record every gradient into a store; with `first`, after a call of `resume`. The learning rate is zero."""
    model, batches = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with GradientRecorder(model, optimizer, CapturePlan(range(100)), folder) as recorder:
        if first is not None:
            recorder.resume(first)
        fit(model, batch_cross_entropy, lambda step: batches(step + (first or 0)), optimizer, TrainingPlan(steps))


def newest_checkpoint(folder: Path) -> tuple[int, Path | None]:
    """The step from which a run with this checkpoint folder would go on, and the file; (0, None) without one."""
    paths = sorted(folder.glob("step-*.pt"))
    return (int(paths[-1].stem.removeprefix("step-")), paths[-1]) if paths else (0, None)
