"""Record gradients or weights at chosen steps of any training loop, in memory or in a folder."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from descent.models.flat_weights import Layout
from descent.training.gradient_store import MemoryRows, Rows, StoredRows, read_layout, read_rows, row_sums

FLOAT32 = torch.finfo(torch.float32)


def random_steps(total: int, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`count` of the steps 0..total - 1, drawn without repetition and sorted: int64 `(count,)`.

    Raises:
        ValueError: `count` is not a whole number in 1..total.
    """
    _check_count(total, count)
    return np.sort(generator.choice(total, count, replace=False)).astype(np.int64)


def even_steps(total: int, count: int) -> NDArray[np.int64]:
    """`count` of the steps 0..total - 1, evenly spaced, from the first to the last: int64 `(count,)`.

    Steps that would be fractions are rounded; they stay different.

    Raises:
        ValueError: `count` is not a whole number in 1..total.

    Example:
        >>> even_steps(total=101, count=5)
        array([  0,  25,  50,  75, 100])
    """
    _check_count(total, count)
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def _check_count(total: int, count: int) -> None:
    if not all(isinstance(number, int | np.integer) for number in (total, count)) or not 1 <= count <= total:
        raise ValueError(f"count={count}: expected 1 to {total}, the number of steps, and no fraction")


def _whole_steps(steps: object) -> range | frozenset[int]:
    """The steps of a plan, if each is a whole number from 0 and comes once."""
    if isinstance(steps, range):
        listed: Any = [*steps[:1], *steps[1:][-1:]]  # the ends will do
    else:
        listed = list(steps) if isinstance(steps, Iterable) else steps
    values = np.asarray(listed)
    whole = values.ndim == 1 and values.size and values.dtype.kind in "iu"
    if not whole or values.min() < 0 or len(np.unique(values)) < len(values):
        wanted = "whole numbers from 0, each once; np.flatnonzero turns a mask into steps, np.unique removes doubles"
        raise ValueError(f"steps {listed if values.size < 9 else '...'} ({values.dtype}): expected {wanted}")
    return steps if isinstance(steps, range) else frozenset(values.tolist())


def _held(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _named(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """The parameters of the model that the optimiser holds, by name."""
    held = set(map(id, _held(optimizer)))
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in held}


def _is_trained(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad or parameter.grad is not None  # one frozen with a gradient still moves


@dataclass(frozen=True)
class CapturePlan:
    """What to record, and when.

    Attributes:
        steps: the steps to record: `range(total)` for all, `range(0, total, k)` for every k-th, or an array of steps.
        what: `gradient`, which the optimiser is about to use, or `weight`, which it is about to change.
        parameters: names of the parameters to record; None for all that the optimiser trains. The model decides their
            order; of a tied weight any of its names will do, and rows have the first.

    Raises:
        ValueError: `what` is neither; a step that is no whole number from 0, or comes twice; no step.
    """

    steps: Iterable[int]
    what: Literal["gradient", "weight"] = "gradient"
    parameters: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.what not in ("gradient", "weight"):
            raise ValueError(f"what={self.what!r}: expected one of gradient, weight")
        object.__setattr__(self, "steps", _whole_steps(self.steps))

    def select(self, model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
        """The parameters that the plan names, by name; None names all of the model that the optimiser trains.

        Raises:
            ValueError: a name of none that the optimiser trains, none left, or a complex parameter.
        """
        trained = {name: each for name, each in _named(model, optimizer).items() if _is_trained(each)}
        first = {id(parameter): name for name, parameter in trained.items()}  # of the names of a tied weight
        known = {name: first.get(id(each), name) for name, each in model.named_parameters(remove_duplicate=False)}
        names = list(trained) if self.parameters is None else [known.get(name, name) for name in self.parameters]
        if not trained or not names:
            raise ValueError("no parameter to record: the optimizer trains none of the model's, or the plan names none")
        if bad := [name for name in names if name not in trained]:
            raise ValueError(f"parameter {bad[0]!r}: expected one of {', '.join(trained)}, which the optimizer trains")
        if bad := [name for name in names if trained[name].is_complex()]:
            raise ValueError(f"parameter {bad[0]!r} is complex, and rows are real: name others in plan.parameters")
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

    Steps are counted from 0 by calls of `optimizer.step`; a call in which a `GradScaler` finds an infinity, so that
    nothing is updated, is none. Recorded is what the optimiser uses: gradients after clipping and accumulation, and
    without the scale of a `GradScaler`; the optimiser's other hooks have run, also those registered later. If
    `optimizer.step` is given a closure, as for LBFGS, the gradient is that of the first call of the closure in the
    step. If a subclass has a `step` that calls `super().step()`, the gradient is that which the first such call uses.
    A gradient that is None counts as zero, and a sparse one is made dense.

    Use the recorder as a context manager, or call `close`. With a store, memory is bounded whatever the number of
    steps. If the process is killed, at most the rows that are not on the disk yet are lost (64 rows, or 16 MiB if that
    is less), and never one from before the last call of `optimizer.state_dict`, which waits for the disk. A checkpoint
    therefore never knows of a row that the store lacks.

    Args:
        model: its parameters are recorded, as far as the optimiser trains them; nothing of it is changed.
        optimizer: any `torch.optim.Optimizer`; of a wrapper such as Lookahead, the one inside.
        plan: which steps, gradients or weights, which parameters.
        store: a folder for the rows; None keeps them in memory. A folder that holds rows is refused at the first step,
            unless `resume` was called before.

    Raises:
        ValueError: here, the optimiser is a wrapper that calls no hooks, it trains no such parameter of the model, or
            the store holds other rows. From `optimizer.step`, before it changes anything: a recorded parameter was
            replaced, resized or taken from the optimiser, another one is trained now, an earlier step did not call its
            closure, or float32 cannot hold a float64 row. The message names parameter and step. From `stack` and
            `close`: the last step did not call its closure, or the weights moved without a call of `optimizer.step`.
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

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, plan: CapturePlan, store: str | Path | None = None
    ) -> None:
        kind = type(optimizer)
        if not (getattr(kind.step, "hooked", False) and hasattr(optimizer, "_optimizer_step_pre_hooks")):
            raise ValueError(f"{kind.__name__} calls no hooks of torch.optim.Optimizer: pass the optimizer inside it")
        self._parameters = plan.select(model, optimizer)
        self._model, self._optimizer, self._plan = model, optimizer, plan
        self._steps = cast("range | frozenset[int]", plan.steps)
        self._store = None if store is None else Path(store)
        self._step, self._started = 0, False
        self._waiting: int | None = None  # the step whose closure has not been called yet
        self._nested = _hook_bases(kind)
        self._depth = 1
        self.layout = Layout.of(self._parameters.items())
        self._remember()
        self._versions = self._moved()
        self._sink = MemoryRows(self.layout) if self._store is None else StoredRows(self._store, self.layout, plan.what)
        self._hooks = (
            optimizer.register_step_pre_hook(self._record),
            optimizer.register_state_dict_pre_hook(lambda _: self._sink.flush()),
        )

    def start(self) -> None:
        """Begin at step 0, as the first call of `optimizer.step` does by itself.

        Raises:
            ValueError: the store holds rows.
        """
        if count := len(self._sink.read(self.layout)[1]):
            where = self._store or "a recorder in memory"
            raise ValueError(f"{where} holds {count} rows: choose another folder, or go on by resume(step)")
        self.resume(0)

    def resume(self, step: int, sums: Collection[int] | None = None) -> None:
        """Go on at `step`, the number of steps made so far; rows of later steps are dropped, to be recorded again.

        `fit` calls this for the recorders that it is given. A loop of your own calls it after loading its checkpoint.
        The newest row before the step has one of the checksums `sums`, where these are given (see `last_sum`).

        Raises:
            ValueError: the rows of earlier steps are not those of the plan, or the store is damaged. Nothing is dropped
                then.
        """
        expected = [earlier for earlier in range(step) if earlier in self._steps]
        rows, steps = self._sink.read(self.layout)
        found = steps[steps < step].tolist()
        if found != expected:
            why = f"{len(found)} rows before step {step}, expected {len(expected)}"
            if len(found) == len(expected):
                why = f"rows of steps {found[:9]} ..., expected {expected[:9]} ..."
            raise ValueError(f"{self._store or 'a recorder in memory'}: {why}; record anew elsewhere")
        last = slice(len(found) - 1, len(found))
        if sums is not None and found and int(row_sums(rows[last], steps[last])[0]) not in sums:
            why = f"the row of step {found[-1]} is that of another run"
            raise ValueError(f"{self._store or 'a recorder in memory'}: {why}; record anew elsewhere")
        self._sink.truncate(len(found), self.layout)
        self._step, self._started = step, True

    def last_sum(self) -> int:
        """The checksum of the newest row, by which a checkpoint knows the rows of its run; 0 where there is none."""
        return self._sink.last_sum()

    def _record(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record this step, or have the last of the optimiser's hooks do so after it has run: it may clip, too."""
        hooks = optimizer._optimizer_step_pre_hooks
        last = next(reversed(hooks))
        if last == self._hooks[0].id:
            return self._record_now(optimizer, args, kwargs)
        if getattr(hooks[last], "func", None) != self._record_after:  # else a hook has failed before
            hooks[last] = partial(self._record_after, last, hooks[last])
        return None

    def _record_after(self, last: int, hook: Any, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        optimizer._optimizer_step_pre_hooks[last] = hook
        changed = hook(optimizer, args, kwargs)
        return self._record_now(optimizer, *(changed or (args, kwargs))) or changed

    def _record_now(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record this step, or have the closure that computes its gradient do so; the hook's result replaces both."""
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and found_inf:  # a fused optimiser updates nothing then
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        depth = _calls(optimizer) if self._nested else 1
        if depth > 1:  # the row of the outer step is replaced by what the inner one uses
            if closure is None and depth > self._depth and self._plan.what == "gradient":
                self._waiting, self._depth = None, depth
                if self._step - 1 in self._steps:
                    self._append(self._step - 1)
            return None
        self._depth = 1
        if not self._started:
            self.start()
        step = self._step
        if step not in self._steps:
            self._step += 1
            return None
        self._check(step, kwargs)
        self._step += 1
        if closure is None or self._plan.what == "weight":
            self._append(step)
            return None
        self._waiting = step

        def recorded() -> Any:
            first, self._waiting = self._waiting == step, None
            loss = closure()
            if first:
                self._append(step)
            return loss

        if len(args) > 1:
            return (args[0], recorded, *args[2:]), kwargs
        return args, {**kwargs, "closure": recorded}

    _record._torchdynamo_disable = True  # type: ignore[attr-defined]  # as torch.compiler.disable, which takes a second
    _record_after._torchdynamo_disable = True  # type: ignore[attr-defined]

    def _remember(self) -> None:
        self._places = list(_places(self._model, self._parameters))
        self._known = self._signs()

    def _signs(self) -> list[object]:
        """What tells cheaply whether the recorded parameters are all that the optimiser moves: it stays the same."""
        held = _held(self._optimizer)
        places = [id(place[key]) if key in place else 0 for place, key, _ in self._places]
        shapes = [parameter.shape for parameter in self._parameters.values()]
        return [*map(id, held), *map(_is_trained, held), *places, *shapes]

    def _check(self, step: int, kwargs: dict[str, Any]) -> None:
        """Refuse a step in which a row would not be what the optimiser uses of the parameters of the layout."""
        self._check_seen()
        if kwargs.get("grad_scaler") is not None:
            raise ValueError(f"step {step}: gradients are scaled by a grad_scaler that is passed to optimizer.step")
        if self._signs() == self._known:
            return
        named = _named(self._model, self._optimizer)
        for shape, (name, parameter) in zip(self.layout.shapes, self._parameters.items(), strict=True):
            if named.get(name) is not parameter or parameter.shape != shape:
                why = "was replaced in the model, was resized or left the optimizer"
                raise ValueError(f"parameter {name!r} {why} before step {step}: make a new GradientRecorder")
        for name in named if self._plan.parameters is None else ():
            if name not in self._parameters and _is_trained(named[name]):
                raise ValueError(f"parameter {name!r} is trained from step {step} on: make a new GradientRecorder")
        self._remember()

    def _moved(self) -> int:
        return sum(parameter._version for parameter in self._parameters.values())

    def _check_seen(self) -> None:
        """Refuse to end, or to go on, where a gradient was used and not recorded."""
        name = type(self._optimizer).__name__
        if self._waiting is not None:
            raise ValueError(f"step {self._waiting}: {name} did not call its closure, so no gradient was recorded")
        used = self._optimizer.state or any(each.grad is not None for each in self._parameters.values())
        if not self._started and used and self._moved() != self._versions:
            why = f"the weights changed without a call of {name}.step, so nothing was recorded"
            raise ValueError(f"{why}: call it, with a closure or without, or record one inside that is called")

    def _append(self, step: int) -> None:
        with torch.no_grad():
            parts = self._parts()
            if torch.float64 in {part.dtype for part in parts}:
                sizes = [float(part.abs().max()) for part in parts if part.numel()]
                largest = max(sizes) if all(map(math.isfinite, sizes)) else 1.0  # what is not finite stays so
                if not (largest == 0 or FLOAT32.tiny / FLOAT32.eps < largest <= FLOAT32.max):
                    raise ValueError(f"step {step}: the row's largest number is {largest:.3g}, and rows are float32")
            self._sink.append(step, parts)

    def _parts(self) -> list[Tensor]:
        """The gradients or weights of the recorded parameters."""
        tensors: list[Tensor] = list(self._parameters.values())
        if self._plan.what == "weight":
            return tensors
        grads = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tensors]
        grads = [grad.to_dense() if grad.is_sparse else grad for grad in grads]
        scale = getattr(self._optimizer, "grad_scale", None)  # of a GradScaler: a fused optimiser divides by it
        return grads if scale is None else [grad.double() / float(scale) for grad in grads]

    def stack(self) -> GradientStack:
        """The rows recorded so far, with their steps."""
        self._check_seen()
        rows, steps = self._sink.read(self.layout)
        return GradientStack(rows, steps, self.layout)

    def close(self) -> None:
        """Remove the hook from the optimiser and close the store."""
        self.__exit__(None)

    def __enter__(self) -> GradientRecorder:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._sink.close()
        if error is None:
            self._check_seen()


def _hook_bases(kind: type[Optimizer]) -> bool:
    """Have the steps of all base classes call hooks, as torch has each class do of which an optimiser is made.

    Returns whether there are any: a subclass may call `super().step()`.
    """
    bases = [base for base in kind.__mro__ if issubclass(base, Optimizer) and "step" in vars(base)][:-1]
    for base in bases:
        if not getattr(base.step, "hooked", False):
            base.step = Optimizer.profile_hook_step(base.step)  # type: ignore[method-assign, assignment]
            base.step.hooked = True  # type: ignore[attr-defined]
    return len(bases) > 1


def _calls(optimizer: Optimizer) -> int:
    """How many calls of `optimizer.step` run now, one inside the other, as where a subclass calls `super().step()`."""
    code, frame, calls = type(optimizer).step.__code__, inspect.currentframe(), 0
    while frame is not None:
        calls += frame.f_code is code and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return calls


def _places(model: nn.Module, names: Iterable[str]) -> Iterator[tuple[Any, str, object]]:
    """Where the model keeps what leads to each parameter: a dictionary of children, the key, and what stands there."""
    for name in names:
        *path, last = name.split(".")
        module: Any = model
        for key in path:
            yield module._modules, key, module._modules[key]
            module = module._modules[key]
        yield module._parameters, last, module._parameters[last]


def open_stack(store: str | Path) -> GradientStack:
    """The rows in a store, memory-mapped read-only; a row that a kill has torn is left out.

    Raises:
        FileNotFoundError: the folder is not a store.
        ValueError: the store is damaged.
    """
    layout = read_layout(Path(store))
    rows, steps = read_rows(Path(store), layout)
    return GradientStack(rows, steps, layout)
