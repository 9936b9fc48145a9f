"""A training loop with checkpoints; a killed run goes on from the newest one and ends with the same bits."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from descent.repro.files import exclusive_folder, sha256_of, write_atomic
from descent.repro.seeding import torch_generator
from descent.training.capture import GradientRecorder

Batch = tuple[Tensor, ...]
BatchLoss = Callable[[nn.Module, Batch], Tensor]
Callback = Callable[[int, float], None]


class DivergenceError(RuntimeError):
    """The loss stopped being finite."""


class DamagedCheckpointError(RuntimeError):
    """A checkpoint is damaged, or belongs to another run."""


@dataclass(frozen=True)
class MiniBatches:
    """Shuffled mini-batches as a function of the step, so that a resumed run needs no state of a data loader.

    Step t reads part `t mod per_epoch` of the permutation for epoch `t // per_epoch`. The last batch of an epoch may
    be smaller.

    Attributes:
        tensors: tensors with the same first dimension n, such as inputs and targets.
        batch_size: number of examples in a step.
        seed: decides every permutation.

    Raises:
        ValueError: the batch size is not in 1..n, or the tensors differ in their first dimension.

    Example:
        >>> batches = MiniBatches((torch.arange(5), torch.arange(5) ** 2), batch_size=2, seed=0)
        >>> [len(batches(step)[0]) for step in range(batches.per_epoch)]
        [2, 2, 1]
        >>> numbers, squares = batches(7)
        >>> torch.equal(numbers**2, squares)
        True
    """

    tensors: Batch
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= len(self.tensors[0]):
            raise ValueError(f"batch_size={self.batch_size}: expected 1 to {len(self.tensors[0])}, the data's size")
        if len({len(tensor) for tensor in self.tensors}) != 1:
            raise ValueError(f"tensors of {[len(tensor) for tensor in self.tensors]} rows: expected equal numbers")
        object.__setattr__(self, "_order", lru_cache(maxsize=1)(self._permutation))

    @property
    def per_epoch(self) -> int:
        """The number of steps in one pass over the data."""
        return math.ceil(len(self.tensors[0]) / self.batch_size)

    def _permutation(self, epoch: int) -> Tensor:
        generator = torch_generator(self.seed, f"batches of epoch {epoch}")
        return torch.randperm(len(self.tensors[0]), generator=generator)

    def __call__(self, step: int) -> Batch:
        """The batch of a step: one tensor `(b, ...)` for each of `tensors`."""
        epoch, part = divmod(step, self.per_epoch)
        index = self._order(epoch)[part * self.batch_size : (part + 1) * self.batch_size]  # type: ignore[attr-defined]
        return tuple(tensor[index] for tensor in self.tensors)


def batch_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the logits `model(inputs)` for the classes `targets`, in nats, mean per example; `()`."""
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs), targets)


@dataclass(frozen=True)
class TrainingPlan:
    """How long to train, and what happens along the way.

    Attributes:
        steps: number of optimiser steps in all, including those that were made before a run was resumed.
        scheduler: is stepped after each optimiser step.
        callbacks: each is called as `callback(step, loss)` after each optimiser step.
        checkpoints: a folder for checkpoints; a run with the same plan goes on from the newest one in it.
        checkpoint_every: number of optimiser steps between checkpoints.
        run: a name of the run that tells its seed and settings; a checkpoint of another run is refused.
        progress: text before a progress bar; None shows none.
    """

    steps: int
    scheduler: LRScheduler | None = None
    callbacks: Sequence[Callback] = ()
    checkpoints: Path | None = None
    checkpoint_every: int = 100
    run: str = ""
    progress: str | None = None


def fit(
    model: nn.Module,
    loss: BatchLoss,
    batches: Callable[[int], Batch],
    optimizer: Optimizer,
    plan: TrainingPlan,
    *,
    recorders: Sequence[GradientRecorder] = (),
) -> NDArray[np.float64]:
    """Train `model` in place until `plan.steps` steps are made, in this run and in those that it goes on from.

    With `plan.checkpoints`, a run that was killed goes on from its newest checkpoint, and ends with the same bits as
    one that was not.

    Args:
        model: any module, left in the mode (training or evaluation) in which it came.
        loss: `loss(model, batch) -> scalar`, mean per example, such as `batch_cross_entropy`.
        batches: the batch of a step, such as `MiniBatches`. It must depend on the step alone, or a resumed run differs.
        optimizer: holds the model's parameters.
        plan: length, schedule, callbacks, checkpoints, progress.
        recorders: those with a store, so that they go on from the same step; only with `plan.checkpoints`.

    Returns:
        `(steps,)` float64, the loss of the batch of each step before the update, mean per example.

    Raises:
        ValueError: `plan` asks for no step, or a recorder lacks rows of steps before the checkpoint.
        DivergenceError: a loss that is not finite; names the step. The update of that step is not made.
        DamagedCheckpointError: the newest checkpoint is damaged or another run's.
        InUseError: another run is writing to `plan.checkpoints`.

    Example:
        >>> import torch
        >>> inputs, targets = torch.eye(3), torch.arange(3)
        >>> model = torch.nn.Linear(3, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> batches = MiniBatches((inputs, targets), batch_size=3, seed=0)
        >>> losses = fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(steps=20))
        >>> losses.shape, bool(losses[-1] < losses[0])
        ((20,), True)
    """
    if plan.steps < 1 or plan.checkpoint_every < 1:
        raise ValueError(f"steps={plan.steps}, checkpoint_every={plan.checkpoint_every}: expected at least 1 each")
    losses = np.full(plan.steps, np.nan)
    with exclusive_folder(plan.checkpoints):
        start = _resume(model, optimizer, plan, losses)
        if plan.checkpoints is not None:
            for recorder in recorders:
                recorder.resume(start)
        steps = tqdm(range(start, plan.steps), desc=plan.progress, disable=plan.progress is None, initial=start,
                     total=plan.steps, unit="step", mininterval=0.5)  # fmt: skip
        for step in steps:
            optimizer.zero_grad()
            value = loss(model, batches(step))
            losses[step] = value.item()
            if not math.isfinite(losses[step]):
                raise DivergenceError(f"loss={losses[step]} at step {step}: not finite; try a smaller learning rate")
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if plan.scheduler is not None:
                plan.scheduler.step()
            for callback in plan.callbacks:
                callback(step, float(losses[step]))
            if plan.checkpoints is not None and ((step + 1) % plan.checkpoint_every == 0 or step + 1 == plan.steps):
                _save(model, optimizer, plan, losses[: step + 1])
    return losses


def _save(model: nn.Module, optimizer: Optimizer, plan: TrainingPlan, losses: NDArray[np.float64]) -> None:
    """Write step-N.pt and its SHA-256 beside it; the digest is written first, so that no checkpoint lacks one."""
    assert plan.checkpoints is not None
    state = {
        "run": plan.run,
        "step": len(losses),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": plan.scheduler.state_dict() if plan.scheduler is not None else None,
        "rng": torch.get_rng_state(),
        "losses": torch.from_numpy(losses.copy()),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    path = plan.checkpoints / f"step-{len(losses):09d}.pt"
    write_atomic(_digest_path(path), hashlib.sha256(data).hexdigest() + "\n")
    write_atomic(path, data)
    for old in sorted(plan.checkpoints.glob("step-*.pt"))[:-1]:
        old.unlink()
        _digest_path(old).unlink(missing_ok=True)


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".pt.sha256")


def _resume(model: nn.Module, optimizer: Optimizer, plan: TrainingPlan, losses: NDArray[np.float64]) -> int:
    """Restore all that `_save` kept from the newest checkpoint, if there is one; returns its step."""
    if plan.checkpoints is None:
        return 0
    for unfinished in plan.checkpoints.glob(".step-*.tmp*"):  # left half written by a kill
        unfinished.unlink()
    path = max(plan.checkpoints.glob("step-*.pt"), default=None)  # names have leading zeros
    if path is None:
        return 0
    state, step = _load(path), int(path.stem.removeprefix("step-"))
    if state["run"] != plan.run or step > plan.steps:
        raise DamagedCheckpointError(
            f"{path}: a checkpoint of run {state['run']!r} at step {step}\n"
            f"expected run {plan.run!r} and at most {plan.steps} steps\n"
            f"start in another folder, or: rm -r '{path.parent}'"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if plan.scheduler is not None:
        plan.scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["rng"])
    losses[:step] = state["losses"].numpy()
    return step


def _load(path: Path) -> dict[str, Any]:
    digest = _digest_path(path)
    expected = digest.read_bytes().decode(errors="replace").strip() if digest.exists() else "a digest file beside it"
    if (actual := sha256_of(path)) != expected:
        raise DamagedCheckpointError(
            f"{path} is damaged: SHA-256 {actual}\nexpected {expected}\nto start again from step 0: rm '{path}'"
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that holds more than weights, or no pickle
        raise DamagedCheckpointError(f"{path}: no training state\nto start again from step 0: rm '{path}'") from error
    return state
