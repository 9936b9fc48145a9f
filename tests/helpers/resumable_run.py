"""A run for `test_training` to kill: dropout, a schedule, checkpoints and a recorder; then it writes its weights."""

import math
import os
import signal
import time
from pathlib import Path
from threading import Thread

import torch
from torch import nn

from descent.models.vectors import flatten
from descent.repro.files import write_atomic
from descent.repro.seeding import deterministic
from descent.training.capture import CapturePlan, GradientRecorder
from descent.training.loop import MiniBatches, TrainingPlan, cross_entropy, fit, newest_checkpoint

STEPS = 600


class Kill:
    """A callback: `delay` seconds after `step`, SIGKILL from another thread, whatever the loop is then doing."""

    def __init__(self, step: float, delay: float) -> None:
        self.step, self.delay = step, delay

    def __call__(self, step: int, loss: float) -> None:
        if step == self.step:
            Thread(target=self._strike, daemon=True).start()

    def _strike(self) -> None:
        time.sleep(self.delay)
        os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, kill_at: float = math.inf, delay: float = 0.0) -> None:
    """Start, or go on from the newest checkpoint in `folder`; die `delay` seconds after step `kill_at`."""
    with deterministic(1):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 5))
        inputs, targets = torch.randn(400, 20), torch.arange(400) % 5
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        first, _ = newest_checkpoint(folder / "checkpoints")
        plan = TrainingPlan(STEPS, schedule, (Kill(kill_at, delay),), folder / "checkpoints", 10, "kill me")
        with GradientRecorder(model, optimizer, CapturePlan(range(0, STEPS, 3)), folder / "gradients", first):
            fit(model, cross_entropy, MiniBatches((inputs, targets), 32, 0), optimizer, plan)
        write_atomic(folder / "final.bin", flatten(dict(model.named_parameters())).detach().numpy().tobytes())
