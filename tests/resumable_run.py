"""A run for `test_training` to kill: dropout, a schedule, checkpoints and a recorder; then it writes its weights."""

from pathlib import Path

import torch
from torch import nn

from descent.capture import GradientRecorder, Recipe
from descent.records import write_atomic
from descent.seeding import deterministic
from descent.training import MiniBatches, Plan, cross_entropy, fit, newest_checkpoint
from descent.vectors import flatten

STEPS = 600


def run(folder: Path) -> None:
    """Start, or go on from the newest checkpoint in `folder`."""
    with deterministic(1):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 5))
        inputs, targets = torch.randn(400, 20), torch.arange(400) % 5
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        first, _ = newest_checkpoint(folder / "checkpoints")
        plan = Plan(STEPS, schedule, (), folder / "checkpoints", 10, "kill me")
        with GradientRecorder(model, optimizer, Recipe(range(0, STEPS, 3)), folder / "gradients", first):
            fit(model, cross_entropy, MiniBatches((inputs, targets), 32, 0), optimizer, plan)
        write_atomic(folder / "final.bin", flatten(dict(model.named_parameters())).detach().numpy().tobytes())
