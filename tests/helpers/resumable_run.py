"""A training that is killed and resumed: dropout, a schedule, checkpoints and a recorder; at its end, its weights."""

import math
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import torch
from small_runs import newest_checkpoint
from torch import nn

from descent.models.flat_weights import flatten
from descent.repro.files import sha256_of, write_atomic
from descent.repro.seeding import deterministic
from descent.training.capture import CapturePlan, GradientRecorder
from descent.training.loop import MiniBatches, TrainingPlan, batch_cross_entropy, fit

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
        plan = TrainingPlan(STEPS, schedule, (Kill(kill_at, delay),), folder / "checkpoints", 10, "kill me")
        batches = MiniBatches((inputs, targets), 32, 0)
        with GradientRecorder(model, optimizer, CapturePlan(range(0, STEPS, 3)), folder / "gradients") as recorder:
            fit(model, batch_cross_entropy, batches, optimizer, plan, recorders=[recorder])
        write_atomic(folder / "final.bin", flatten(dict(model.named_parameters())).detach().numpy().tobytes())


def start(folder: Path, kill_at: float = math.inf, delay: float = 0.0) -> int | None:
    """The run in a process of its own, from a server that has torch loaded; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["descent.training.capture", "descent.training.loop"])
    child = context.Process(target=run, args=(folder, kill_at, delay))
    child.start()
    child.join(120)
    child.kill()
    return child.exitcode


def final_digests(folder: Path) -> tuple[str, str]:
    return sha256_of(folder / "final.bin"), sha256_of(folder / "gradients" / "rows.f32")


def killed_and_resumed(tmp_path: Path, wanted: int, record_property: Callable[[str, object], None]) -> None:
    """Runs are killed and resumed, so many kills in all, until each ends; weights and recorded rows must be equal.

    A kill falls some milliseconds after a random step, so that it may hit a step, a recorded row or a checkpoint.
    """
    assert start(tmp_path / "whole") == 0
    expected, moments = final_digests(tmp_path / "whole"), random.Random(0)
    kills, stopped_at, runs = 0, set(), 0
    while kills < wanted:
        folder, runs, exit_code = tmp_path / f"run-{runs}", runs + 1, None
        while exit_code != 0:
            reached = newest_checkpoint(folder / "checkpoints")[0]
            kill_at = reached + moments.randrange(0, 160) if kills < wanted else math.inf
            exit_code = start(folder, kill_at, moments.uniform(0, 0.01))
            assert exit_code in (0, -signal.SIGKILL)
            kills += exit_code != 0
            stopped_at.add(newest_checkpoint(folder / "checkpoints")[0])
        assert final_digests(folder) == expected
        assert not list(folder.rglob("*.tmp*"))
    record_property("training with recorded gradients: kills", kills)
    record_property(f"training with recorded gradients: runs that ended with equal bytes, of {runs}", runs)
    assert len(stopped_at - {0, STEPS}) >= wanted // 2, f"kills hit too few moments of training: {stopped_at}"
