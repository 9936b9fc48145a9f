"""Gradients or weights at chosen steps, by an optimiser hook, in memory or in a store on disk."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from descent.records import write_json
from descent.vectors import Layout

Rows = NDArray[np.float32]
_ROWS, _STEPS, _LAYOUT = "rows.f32", "steps.i64", "layout.json"


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
class Recipe:
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
class Stack:
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

    Steps are counted from 0. Use as a context manager, or call `close`. With a store, memory stays that of the model
    whatever the number of steps, and what was recorded before a kill is readable after it.

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
        recipe: Recipe,
        store: Path | None = None,
        first_step: int | None = None,
    ) -> None:
        self._parameters = recipe.select(model)
        self._recipe = recipe
        self._step = first_step or 0
        self.layout = Layout.of(self._parameters.items())
        self._sink = _Memory() if store is None else _Store(store, self.layout, first_step)
        self._hook = optimizer.register_step_pre_hook(self._record)

    def _record(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._step in self._recipe.steps:
            self._sink.append(self._step, [self._part(parameter) for parameter in self._parameters.values()])
        self._step += 1

    def _part(self, parameter: nn.Parameter) -> Rows:
        """One parameter's gradient or weight as float32 on the CPU; a gradient that is None counts as zero."""
        tensor: Tensor | None = parameter.grad if self._recipe.what == "gradient" else parameter.data
        if tensor is None:
            return np.zeros(parameter.numel(), np.float32)
        if tensor.is_sparse:
            raise ValueError("a sparse gradient cannot be recorded as a row; expected dense gradients")
        flat: Rows = tensor.detach().to("cpu", torch.float32).contiguous().view(-1).numpy()
        return flat

    def stack(self) -> Stack:
        """The rows recorded so far."""
        rows, steps = self._sink.read(self.layout)
        return Stack(rows, steps, self.layout)

    def close(self) -> None:
        """Take the hook off the optimiser and close the store."""
        self._hook.remove()
        self._sink.close()

    def __enter__(self) -> GradientRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_stack(store: Path) -> Stack:
    """The rows in a store, memory-mapped read-only; a row torn by a kill is left out.

    Raises:
        FileNotFoundError: the folder is not a store.
    """
    layout = _read_layout(store)
    rows, steps = _read_store(store, layout)
    return Stack(rows, steps, layout)


class _Memory:
    """Rows in a list."""

    def __init__(self) -> None:
        self._rows: list[Rows] = []
        self._steps: list[int] = []

    def append(self, step: int, parts: list[Rows]) -> None:
        self._rows.append(np.concatenate(parts))
        self._steps.append(step)

    def read(self, layout: Layout) -> tuple[Rows, NDArray[np.int64]]:
        rows = np.stack(self._rows) if self._rows else np.zeros((0, layout.size), np.float32)
        return rows, np.array(self._steps, np.int64)

    def close(self) -> None:
        pass


class _Store:
    """Rows appended to one file, then their step to another: the shorter of the two says how many rows are whole.

    Unbuffered writes land in the operating system's cache, which outlives the process.
    """

    def __init__(self, folder: Path, layout: Layout, first_step: int | None) -> None:
        self._folder = folder
        if (folder / _LAYOUT).exists():
            self._rewind(layout, first_step)
        else:
            write_json(folder / _LAYOUT, {"names": layout.names, "shapes": layout.shapes})
        self._rows = open(folder / _ROWS, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._steps = open(folder / _STEPS, "ab", buffering=0)  # noqa: SIM115

    def _rewind(self, layout: Layout, first_step: int | None) -> None:
        """Cut the store back to the steps before `first_step`."""
        if _read_layout(self._folder) != layout:
            raise ValueError(f"{self._folder} holds rows of another layout; choose another folder")
        _, steps = _read_store(self._folder, layout)
        if first_step is None and len(steps):
            raise ValueError(
                f"{self._folder} holds {len(steps)} rows; choose another folder, or pass first_step to go on"
            )
        kept = int((steps < (first_step or 0)).sum())
        for name, width in ((_ROWS, 4 * layout.size), (_STEPS, 8)):
            with open(self._folder / name, "ab") as file:
                file.truncate(kept * width)

    def append(self, step: int, parts: list[Rows]) -> None:
        for part in parts:
            _write_all(self._rows, part.data)
        _write_all(self._steps, np.int64(step).tobytes())

    def read(self, layout: Layout) -> tuple[Rows, NDArray[np.int64]]:
        return _read_store(self._folder, layout)

    def close(self) -> None:
        self._rows.close()
        self._steps.close()


def _write_all(file: Any, data: Any) -> None:
    written = file.write(data)
    if written != memoryview(data).nbytes:
        raise OSError(f"{file.name}: wrote {written} of {memoryview(data).nbytes} bytes; is the disk full?")


def _read_layout(folder: Path) -> Layout:
    stored = json.loads((folder / _LAYOUT).read_text())
    return Layout(tuple(stored["names"]), tuple(tuple(shape) for shape in stored["shapes"]))


def _read_store(folder: Path, layout: Layout) -> tuple[Rows, NDArray[np.int64]]:
    width = 4 * layout.size
    sizes = [(folder / name).stat().st_size if (folder / name).exists() else 0 for name in (_ROWS, _STEPS)]
    count = min(sizes[0] // width, sizes[1] // 8)
    if count == 0:
        return np.zeros((0, layout.size), np.float32), np.zeros(0, np.int64)
    steps = np.fromfile(folder / _STEPS, np.int64, count)
    return np.memmap(folder / _ROWS, np.float32, "r", shape=(count, layout.size)), steps
