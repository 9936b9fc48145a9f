"""A training loop with checkpoints; a killed run goes on from the newest one and ends with the same bits."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from descent.repro.files import exclusive_folder
from descent.repro.numbers import check_whole
from descent.repro.seeding import torch_generator
from descent.training.capture import GradientRecorder
from descent.training.checkpoints import Checkpoints, Losses, digest, gradient_norm, number

Batch = tuple[Tensor, ...]
BatchLoss = Callable[[nn.Module, Batch], Tensor]
Callback = Callable[[int, float], None]


class DivergenceError(RuntimeError):
    """The loss or a weight stopped being finite."""


@dataclass(frozen=True)
class MiniBatches:
    """Shuffled mini-batches as a function of the step, so that a resumed run needs no state of a data loader.

    Step t reads part `t mod per_epoch` of the permutation for epoch `t // per_epoch`. The last batch of an epoch may
    be smaller.

    Attributes:
        tensors: a tuple of tensors with the same first dimension n, such as inputs and targets.
        batch_size: number of examples in a step.
        seed: decides every permutation.

    Raises:
        ValueError: no tuple of dense tensors, which differ in no first dimension; a batch size out of 1..n; a seed or a
            step that is no whole number from 0.

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
    _order: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)  # of one epoch

    def __post_init__(self) -> None:
        rows = [isinstance(each, Tensor) and each.ndim and each.layout == torch.strided for each in self.tensors]
        if type(self.tensors) not in (tuple, list) or not all(rows):
            raise ValueError("tensors: expected a tuple of tensors with a row for each example, as (inputs, targets)")
        check_whole(batch_size=self.batch_size)
        check_whole(0, seed=self.seed)
        if len({len(tensor) for tensor in self.tensors}) != 1:
            raise ValueError(f"tensors of {[len(tensor) for tensor in self.tensors]} rows: expected equal numbers")
        if self.batch_size > len(self.tensors[0]):
            raise ValueError(f"batch_size={self.batch_size}: expected 1 to {len(self.tensors[0])}, the data's size")

    @property
    def per_epoch(self) -> int:
        """The number of steps in one pass over the data."""
        return math.ceil(len(self.tensors[0]) / self.batch_size)

    def _permutation(self, epoch: int) -> Tensor:
        generator = torch_generator(self.seed, f"batches of epoch {epoch}")
        return torch.randperm(len(self.tensors[0]), generator=generator)

    def __call__(self, step: int) -> Batch:
        """The batch of a step: one tensor `(b, ...)` for each of `tensors`."""
        check_whole(0, step=step)
        epoch, part = divmod(step, self.per_epoch)
        if epoch not in self._order:
            order = self._permutation(epoch)
            self._order.clear()
            self._order[epoch] = order
        index = self._order[epoch][part * self.batch_size : (part + 1) * self.batch_size]
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
        scheduler: is stepped after each optimiser step; `ReduceLROnPlateau` is given the loss of the step.
        callbacks: each is called as `callback(step, loss)` after each optimiser step.
        checkpoints: a folder for checkpoints; a run goes on from the newest one in it, if that is of the same run.
        checkpoint_every: number of optimiser steps between checkpoints.
        run: a name of the run that tells its seed and settings; a checkpoint of another run is refused.
        progress: text before a progress bar; None shows none.

    Raises:
        ValueError: a number of steps that is no whole number from 1, or another argument of the wrong kind.
    """

    steps: int
    scheduler: LRScheduler | None = None
    callbacks: Sequence[Callback] = ()
    checkpoints: str | Path | None = None
    checkpoint_every: int = 100
    run: str = ""
    progress: str | None = None

    def __post_init__(self) -> None:
        check_whole(steps=self.steps, checkpoint_every=self.checkpoint_every)
        listed = isinstance(self.callbacks, Sequence) and all(map(callable, self.callbacks))
        path = isinstance(self.checkpoints or "", str | PathLike) and not Path(self.checkpoints or "").is_file()
        for name, right in {
            "scheduler made from an optimizer": self.scheduler is None or hasattr(self.scheduler, "optimizer"),
            "callbacks as a list of functions": listed,
            "checkpoints as a folder": path,
            "progress as a text": isinstance(self.progress or "", str),
        }.items():
            if not right:
                raise ValueError(f"expected {name}, found {getattr(self, name.split()[0])!r}")


def fit(
    model: nn.Module,
    loss: BatchLoss,
    batches: Callable[[int], Batch],
    optimizer: Optimizer,
    plan: TrainingPlan,
    *,
    recorders: Sequence[GradientRecorder] = (),
) -> Losses:
    """Train `model` in place until `plan.steps` steps are made, in this run and in those that it goes on from.

    With `plan.checkpoints`, a run that was killed goes on from its newest checkpoint, and ends with the same bits as
    one that was not. A checkpoint knows its run by the weights that it began with, kind, settings and parameters of the
    optimiser, those of the scheduler, the data of `MiniBatches`, and loss and gradient of the first batch, and refuses
    others. A model that has the checkpoint's own weights goes on, however it got them. A checkpoint has all buffers,
    and the plain values, such as counts, that modules keep as attributes and have changed; not lists, tensors or other
    objects in attributes, for which a module has `get_extra_state`, and not whether a callback changed the mode.

    Args:
        model: any module, left in the mode (training or evaluation) in which it came.
        loss: `loss(model, batch) -> scalar`, mean per example, such as `batch_cross_entropy`.
        batches: the batch of a step, such as `MiniBatches`. It must depend on the step alone, or a resumed run differs.
        optimizer: holds parameters of the model; one that needs a closure, such as LBFGS, is given one.
        plan: length, schedule, callbacks, checkpoints, progress.
        recorders: those of the optimiser, which go on from the same step with `plan.checkpoints`; so do others of the
            optimiser that are not listed.

    Returns:
        `(steps,)` float64, the loss of the batch of each step before the update, mean per example.

    Raises:
        ValueError: `batches` is no function of the step, the optimiser holds no parameter of the model, or others in
            place of some, scheduler or recorder is another optimiser's, a checkpoint cannot hold the state, a recorder
            has rows of another run, the whole call stands in `torch.autocast`, which belongs into the loss, or, at the
            first step, the loss is no real scalar, or the optimiser's step fails without a closure.
        DivergenceError: a loss that is not finite; names the step, whose update is not made. Or a parameter that is not
            finite at the end, or where a checkpoint is due, which is not written; or a buffer that was finite before.
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
    _check(model, batches, optimizer, plan)
    recorders = _attached(optimizer, recorders)
    losses = np.full(plan.steps, np.nan)
    folder = None if plan.checkpoints is None else Path(plan.checkpoints)
    with exclusive_folder(folder):
        kept = None if folder is None else Checkpoints(folder, model, optimizer, plan, _said(batches))
        start = 0 if kept is None else kept.begin(lambda: loss(model, batches(0)), losses, recorders)
        norms = [math.nan] if kept is None else kept.norms
        by_closure = _needs_closure(optimizer)
        finite = [name for name, buffer in model.named_buffers() if buffer.isfinite().all()]
        steps = tqdm(range(start, plan.steps), desc=plan.progress, disable=plan.progress is None, initial=start,
                     total=plan.steps, unit="step", mininterval=0.5)  # fmt: skip
        for step in steps:
            if (batch := batches(step)) is None:
                raise ValueError(f"batches({step}) is None: expected the batch of the step")
            try:
                losses[step] = _update(partial(loss, model, batch), optimizer, by_closure, norms)
            except DivergenceError as error:
                raise DivergenceError(f"{error} at step {step}: not finite; try a smaller learning rate") from None
            if isinstance(plan.scheduler, ReduceLROnPlateau):
                plan.scheduler.step(losses[step])
            elif plan.scheduler is not None:
                plan.scheduler.step()
            for callback in plan.callbacks:
                callback(step, float(losses[step]))
            last = step + 1 == plan.steps
            if last or (kept is not None and (step + 1) % plan.checkpoint_every == 0):
                _check_weights(model, finite, step)
                if kept is not None:
                    kept.save(losses[: step + 1])
    return losses


def _check(model: nn.Module, batches: object, optimizer: Optimizer, plan: TrainingPlan) -> None:
    """Refuse what would fail, or would train nothing."""
    if not callable(batches):
        raise ValueError(f"batches of type {type(batches).__name__}: expected a function of the step, as MiniBatches")
    casts = torch.is_autocast_cache_enabled() and any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
    if context := "torch.autocast" if casts else "parametrize.cached()" * bool(parametrize._cache_enabled):
        raise ValueError(f"fit stands in {context}, which keeps weights from before a step: put that into the loss")
    known = {id(parameter) for parameter in model.parameters()}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not known & held:
        raise ValueError("the optimizer holds no parameter of the model: make it from model.parameters()")
    for name, each in model.named_parameters():
        if held - known and id(each) not in held and each.requires_grad:
            why = "the optimizer does not hold it, but others that the model has not, as of a layer that was replaced"
            raise ValueError(
                f"parameter {name!r}: {why}: make the optimizer anew, or freeze it by requires_grad_(False)"
            )
        if plan.checkpoints is not None and is_lazy(each):
            raise ValueError(f"parameter {name!r} has no shape yet, so no checkpoint: call the model on a batch first")
    if getattr(plan.scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError("the scheduler is that of another optimizer: make it from the one that is passed")


def _attached(optimizer: Optimizer, recorders: Sequence[GradientRecorder]) -> list[GradientRecorder]:
    """The recorders of an optimiser, or of one inside it, which record its steps whether they are listed or not."""
    inside = [each for each in (optimizer, *vars(optimizer).values()) if isinstance(each, Optimizer)]
    hooks = [hook for each in inside for hook in getattr(each, "_optimizer_step_pre_hooks", {}).values()]
    owners = [getattr(hook, "__self__", None) for hook in hooks]
    if any(recorder not in owners for recorder in recorders):
        raise ValueError("recorders: one is closed, or that of another optimizer: make it from the one that is passed")
    return [owner for owner in owners if isinstance(owner, GradientRecorder)]


def _update(evaluate: Callable[[], Tensor], optimizer: Optimizer, by_closure: bool, norms: list[float]) -> float:
    """Make one step; the loss before it. The norm of its gradient goes into `norms` if that is empty."""
    values: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = evaluate()
        values.append(number(value))
        if not math.isfinite(values[-1]):
            raise DivergenceError(f"loss={values[-1]}")
        value.backward()  # type: ignore[no-untyped-call]
        if not norms:
            norms.append(gradient_norm(optimizer))
        return value

    if by_closure:
        optimizer.step(closure)  # type: ignore[arg-type]
        return values[0]
    closure()
    try:
        optimizer.step()
    except (AssertionError, TypeError) as error:
        kind = type(optimizer).__name__
        own = "a subclass with `def step(self, closure): closure(); return super().step(closure)`"
        raise ValueError(f"{kind}.step() fails without a closure ({error}): if it needs one, pass {own}") from error
    return values[0]


def _needs_closure(optimizer: Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def _check_weights(model: nn.Module, finite: list[str], step: int) -> None:
    """Refuse parameters that are trained, and buffers that were finite, where they are not finite."""
    buffers = [(f"buffer {name!r}", each) for name, each in model.named_buffers() if name in finite]
    trained = [(f"parameter {name!r}", each) for name, each in model.named_parameters() if each.requires_grad]
    for name, each in [*trained, *buffers]:
        if not each.isfinite().all():
            raise DivergenceError(f"{name} after step {step}: not finite; try a smaller learning rate")


def _said(batches: object) -> str:
    if not isinstance(batches, MiniBatches):
        return "a function of the step"
    return f"{digest(batches.tensors)} in batches of {batches.batch_size} by seed {batches.seed}"
