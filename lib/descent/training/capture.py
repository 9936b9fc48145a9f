"""Record gradients or weights at chosen steps of any training loop, in memory or in a folder."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from descent.models.flat_weights import Layout
from descent.training.gradient_store import MemoryRows, Rows, StoredRows, read_layout, read_rows


def random_steps(total: int, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`count` of the steps 0..total - 1, drawn without repetition and sorted: int64 `(count,)`.

    Raises:
        ValueError: `count` is not in 1..total.
    """
    _check_count(total, count)
    return np.sort(generator.choice(total, count, replace=False)).astype(np.int64)


def even_steps(total: int, count: int) -> NDArray[np.int64]:
    """`count` of the steps 0..total - 1, evenly spaced, from the first to the last: int64 `(count,)`.

    Raises:
        ValueError: `count` is not in 1..total.

    Example:
        >>> even_steps(total=101, count=5)
        array([  0,  25,  50,  75, 100])
    """
    _check_count(total, count)
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def _check_count(total: int, count: int) -> None:
    if not 1 <= count <= total:
        raise ValueError(f"count={count}: expected 1 to {total}, the number of steps")


@dataclass(frozen=True)
class CapturePlan:
    """What to record, and when.

    Attributes:
        steps: the steps to record: `range(total)` for all, `range(0, total, k)` for every k-th, or an array of steps.
        what: `gradient`, which the optimiser is about to use, or `weight`, which it is about to change.
        parameters: names of the parameters to record; None for all that are trained. The model decides their order.

    Raises:
        ValueError: `what` is neither.
    """

    steps: Container[int] | NDArray[np.int64]
    what: Literal["gradient", "weight"] = "gradient"
    parameters: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.what not in ("gradient", "weight"):
            raise ValueError(f"what={self.what!r}: expected one of gradient, weight")
        if not isinstance(self.steps, range):
            object.__setattr__(self, "steps", frozenset(int(step) for step in self.steps))  # type: ignore[attr-defined]

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The trained parameters that the plan names, by name.

        Raises:
            ValueError: a name that the model's trained parameters lack, or none left.
        """
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        names = list(trained) if self.parameters is None else list(self.parameters)
        if bad := [name for name in names if name not in trained]:
            raise ValueError(f"parameter {bad[0]!r}: expected one of {', '.join(trained)}")
        if not names:
            raise ValueError("no parameter to record: the model trains none, or the plan names none")
        return {name: parameter for name, parameter in trained.items() if name in names}


@dataclass(frozen=True)
class GradientStack:
    """Recorded rows, and the steps that they belong to.

    Attributes:
        rows: `(n, P)` float32, one flat gradient or weight vector for each recorded step; from a store, a memory map.
        steps: `(n,)` int64, counted from 0 by calls of `optimizer.step`.
        layout: which part of a row belongs to which parameter; see `descent.models.unflatten`.
    """

    rows: Rows
    steps: NDArray[np.int64]
    layout: Layout


class GradientRecorder:
    """Records rows by a hook that `optimizer.step` calls first, so it works in any training loop.

    Steps are counted from 0. If `optimizer.step` is given a closure, as for LBFGS, the gradient is that of the first
    call of the closure in the step. A gradient that is None counts as zero.

    Use the recorder as a context manager, or call `close`. With a store, memory is bounded whatever the number of
    steps. If the process is killed, at most the rows that are not on the disk yet are lost (64 rows, or 16 MiB if that
    is less), and never one from before the last call of `optimizer.state_dict`, which waits for the disk. A checkpoint
    therefore never knows of a row that the store lacks.

    Args:
        model: its parameters are recorded; nothing of it is changed.
        optimizer: any `torch.optim.Optimizer`.
        plan: which steps, gradients or weights, which parameters.
        store: a folder for the rows; None keeps them in memory. A folder that holds rows is refused at the first step,
            unless `resume` was called before.

    Raises:
        ValueError: the model has no such parameter, or the store holds rows of another layout.
        InUseError: another recorder writes to the store.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with GradientRecorder(model, optimizer, CapturePlan(range(0, 4, 2))) as recorder:
        ...     for step in range(4):
        ...         optimizer.zero_grad()
        ...         model(torch.tensor([[1.0, step]])).sum().backward()
        ...         optimizer.step()
        >>> recorder.stack().steps
        array([0, 2])
        >>> recorder.stack().rows
        array([[1., 0.],
               [1., 2.]], dtype=float32)
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, plan: CapturePlan, store: Path | None = None) -> None:
        self._parameters = plan.select(model)
        self._plan, self._store = plan, store
        self._step, self._started = 0, False
        self.layout = Layout.of(self._parameters.items())
        self._sink = MemoryRows() if store is None else StoredRows(store, self.layout)
        self._hooks = (
            optimizer.register_step_pre_hook(self._record),
            optimizer.register_state_dict_pre_hook(lambda _: self._sink.flush()),
        )

    def resume(self, step: int) -> None:
        """Go on at `step`, the number of steps made so far; rows of later steps are dropped, to be recorded again.

        `fit` calls this for the recorders that it is given. A loop of your own calls it after loading its checkpoint.

        Raises:
            ValueError: rows of earlier steps are missing, or the store is damaged. Nothing is dropped then.
        """
        expected = sum(earlier in self._plan.steps for earlier in range(step))
        kept = int((self._sink.read(self.layout)[1] < step).sum())
        if kept != expected:
            place = self._store or "a recorder in memory"
            raise ValueError(f"{place}: {kept} rows before step {step}, expected {expected}; record anew elsewhere")
        self._sink.truncate(kept, self.layout)
        self._step, self._started = step, True

    def _record(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record this step, or have the closure that computes its gradient do so; the hook's result replaces both."""
        if not self._started:
            if count := len(self._sink.read(self.layout)[1]):
                raise ValueError(f"{self._store} holds {count} rows: choose another folder, or go on by resume(step)")
            self.resume(0)
        step, self._step = self._step, self._step + 1
        if step not in self._plan.steps:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None or self._plan.what == "weight":
            self._append(step)
            return None
        waiting = [step]

        def recorded() -> Any:
            loss = closure()
            if waiting:
                self._append(waiting.pop())
            return loss

        if len(args) > 1:
            return (args[0], recorded, *args[2:]), kwargs
        return args, {**kwargs, "closure": recorded}

    def _append(self, step: int) -> None:
        with torch.no_grad():
            self._sink.append(step, self._parts())

    def _parts(self) -> list[Tensor]:
        """The gradients or weights of the recorded parameters."""
        tensors: list[Tensor] = list(self._parameters.values())
        if self._plan.what == "weight":
            return tensors
        grads = [tensor.grad for tensor in tensors]
        if any(grad is not None and grad.is_sparse for grad in grads):
            raise ValueError("a sparse gradient cannot be recorded as a row; expected dense gradients")
        return [torch.zeros_like(t) if grad is None else grad for t, grad in zip(tensors, grads, strict=True)]

    def stack(self) -> GradientStack:
        """The rows recorded so far, with their steps."""
        rows, steps = self._sink.read(self.layout)
        return GradientStack(rows, steps, self.layout)

    def close(self) -> None:
        """Remove the hook from the optimiser and close the store."""
        for hook in self._hooks:
            hook.remove()
        self._sink.close()

    def __enter__(self) -> GradientRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_stack(store: Path) -> GradientStack:
    """The rows in a store, memory-mapped read-only; a row that a kill has torn is left out.

    Raises:
        FileNotFoundError: the folder is not a store.
        ValueError: the store is damaged.
    """
    layout = read_layout(store)
    rows, steps = read_rows(store, layout)
    return GradientStack(rows, steps, layout)
