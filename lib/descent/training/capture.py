"""Gradients or weights at chosen steps, by an optimiser hook, in memory or in a store on disk."""

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

from descent.models.vectors import Layout
from descent.training.stores import MemoryRows, Rows, StoredRows, read_layout, read_rows


def random_steps(total: int, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`count` steps of `total` without repetition, sorted: int64 `(count,)`.

    Raises:
        ValueError: `count` is not in 1..total.
    """
    _check_count(total, count)
    return np.sort(generator.choice(total, count, replace=False)).astype(np.int64)


def even_steps(total: int, count: int) -> NDArray[np.int64]:
    """`count` evenly spaced steps of `total`, the first and the last included: int64 `(count,)`.

    Raises:
        ValueError: `count` is not in 1..total.
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
        steps: the steps to record: `range(total)` for all, `range(0, total, k)` for every k-th, an array of steps.
        what: the gradient that the optimiser is about to use, or the weights that it is about to change.
        parameters: names of the parameters to record, in the model's order; None for all that are trained.
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
        """The trained parameters that the recipe names.

        Raises:
            ValueError: a name that the model's trained parameters lack, or none left.
        """
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        names = list(trained) if self.parameters is None else list(self.parameters)
        if bad := [name for name in names if name not in trained]:
            raise ValueError(f"parameter {bad[0]!r}: expected one of {', '.join(trained)}")
        if not names:
            raise ValueError("no parameter to record: the model trains none, or the recipe names none")
        return {name: parameter for name, parameter in trained.items() if name in names}


@dataclass(frozen=True)
class GradientStack:
    """Recorded rows with the steps that they belong to.

    Attributes:
        rows: `(n, P)` float32, one flat gradient or weight vector per recorded step; a memory map when from a store.
        steps: `(n,)` int64, counted from 0 by calls of `optimizer.step`.
        layout: which part of a row belongs to which parameter.
    """

    rows: Rows
    steps: NDArray[np.int64]
    layout: Layout


class GradientRecorder:
    """Records rows through `optimizer.register_step_pre_hook`; works on any loop that calls `optimizer.step`.

    Steps are counted from 0. Use as a context manager, or call `close`. With a store, memory is bounded whatever the
    number of steps. A kill loses at most the rows on their way to the disk (64, or 16 MiB if that is less), and none
    from before the last call of `optimizer.state_dict`, which waits for them: a checkpoint never knows more than the
    store.

    Args:
        model: its parameters are recorded; nothing of it is changed.
        optimizer: any `torch.optim.Optimizer`.
        recipe: which steps, what, which parameters.
        store: a folder for the rows; None keeps them in memory.
        first_step: the step at which this process takes over; rows of the store from there on are dropped, to be
            recorded again. None (a new run) refuses a store that holds rows.

    Raises:
        ValueError: the store holds rows of a new run, or rows of another layout, or lacks steps before `first_step`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        recipe: CapturePlan,
        store: Path | None = None,
        first_step: int | None = None,
    ) -> None:
        self._parameters = recipe.select(model)
        self._recipe = recipe
        self._step = first_step or 0
        self.layout = Layout.of(self._parameters.items())
        self._sink = MemoryRows() if store is None else StoredRows(store, self.layout, first_step)
        self._check_resumed(store)
        self._hooks = (
            optimizer.register_step_pre_hook(self._record),
            optimizer.register_state_dict_pre_hook(lambda _: self._sink.flush()),
        )

    def _check_resumed(self, store: Path | None) -> None:
        expected = sum(step in self._recipe.steps for step in range(self._step))
        found = len(self._sink.read(self.layout)[1])
        if found != expected:
            self._sink.close()
            raise ValueError(
                f"{store}: {found} rows before step {self._step}, expected {expected}; record anew elsewhere"
            )

    def _record(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._step in self._recipe.steps:
            with torch.no_grad():
                self._sink.append(self._step, self._parts())
        self._step += 1

    def _parts(self) -> list[Tensor]:
        """The gradients or weights of the recorded parameters; a gradient that is None counts as zero."""
        tensors: list[Tensor] = list(self._parameters.values())
        if self._recipe.what == "weight":
            return tensors
        grads = [tensor.grad for tensor in tensors]
        if any(grad is not None and grad.is_sparse for grad in grads):
            raise ValueError("a sparse gradient cannot be recorded as a row; expected dense gradients")
        return [torch.zeros_like(t) if grad is None else grad for t, grad in zip(tensors, grads, strict=True)]

    def stack(self) -> GradientStack:
        """The rows recorded so far."""
        rows, steps = self._sink.read(self.layout)
        return GradientStack(rows, steps, self.layout)

    def close(self) -> None:
        """Take the hook off the optimiser and close the store."""
        for hook in self._hooks:
            hook.remove()
        self._sink.close()

    def __enter__(self) -> GradientRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_stack(store: Path) -> GradientStack:
    """The rows in a store, memory-mapped read-only; a row torn by a kill is left out.

    Raises:
        FileNotFoundError: the folder is not a store.
    """
    layout = read_layout(store)
    rows, steps = read_rows(store, layout)
    return GradientStack(rows, steps, layout)
