"""Networks of one architecture, trained side by side by plain gradient steps, each on data of its own.

One product of stacked matrices takes the place of many small ones (`torch.func.vmap` over the networks of a stack), so
that hundreds of small trainings take a fraction of the time that they take one by one, and give the same to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import RLock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from descent.repro.numbers import check_whole
from descent.training.loop import DivergenceError

OutputLoss = Callable[[Tensor, Tensor], Tensor]
StackBatches = Callable[[int], tuple[Tensor, Tensor]]
DRAWS = (nn.modules.dropout._DropoutNd, nn.RReLU)
ROWS = (torch.float32, torch.float64)
TRACING = RLock()  # torch traces functions, and exchanges a module's parameters, for one thread at a time


class ModelStack:
    """k networks of one architecture, whose weights are the rows of one matrix `(k, P)` in the order of `names`.

    The models are not changed, and not needed again: `weights` are copies, and so is the network that they go through.
    `loss` `(outputs, targets) -> ()` is a function of these two alone. The operations of each shape of batch are
    recorded at the first one: a number that network or loss read elsewhere stays what it was then.

    Attributes:
        weights: `(k, P)`, those of the models.
        names: of the parameters, in the order in which they stand in a row.

    Raises:
        ValueError: no model; models that differ in more than the values of their parameters; one without parameters, or
            with others than float32 and float64, or with both; or one that a stack cannot train alike: with buffers, as
            those of batch normalisation, with dropout in training mode, recurrent layers, hooks on a parameter, or
            with a parameter that is not trained.

    Example:
        >>> from descent.models import mlp
        >>> stack = ModelStack([mlp((1, 8, 8), [4], 10, seed) for seed in range(3)])
        >>> tuple(stack.weights.shape), tuple(stack.outputs(stack.weights, torch.zeros(3, 5, 1, 8, 8)).shape)
        ((3, 310), (3, 5, 10))
    """

    def __init__(self, models: Sequence[nn.Module], loss: OutputLoss = cross_entropy) -> None:
        models = list(models)
        kinds = [[(name, each.shape, each.dtype) for name, each in model.named_parameters()] for model in models]
        if not kinds or not kinds[0]:
            raise ValueError(f"{len(models)} models: expected at least one, with parameters")
        for number, kind in enumerate(kinds):
            if kind != kinds[0]:
                other = next((a for a, b in zip(kind, kinds[0], strict=False) if a != b), kind[-1])
                raise ValueError(f"model {number} differs from the first in {other[0]} {tuple(other[1])}, {other[2]}")
            _refuse_what_vmap_cannot_train(models[number], number)
            if difference := _difference(models[0], models[number]):
                raise ValueError(f"model {number} differs from the first in {difference}; expected one architecture")
        self._template, self._loss = copy.deepcopy(models[0]), loss
        self._recorded: dict[object, Callable[..., Tensor]] = {}
        self.names = [name for name, _, _ in kinds[0]]
        self._shapes = [shape for _, shape, _ in kinds[0]]
        rows = [torch.cat([each.detach().reshape(-1) for each in model.parameters()]) for model in models]
        self.weights = torch.stack(rows)

    def parameters(self, weights: Tensor) -> dict[str, Tensor]:
        """Rows `(k, P)` as views `(k, *shape)`, by name."""
        parts = torch.split(weights, [shape.numel() for shape in self._shapes], -1)
        named = zip(self.names, parts, self._shapes, strict=True)
        return {name: part.reshape(len(weights), *shape) for name, part, shape in named}

    def outputs(self, weights: Tensor, inputs: Tensor) -> Tensor:
        """What each network makes of its own inputs: `(k, P)`, `(k, b, ...)` -> `(k, b, ...)`."""
        with TRACING:
            return vmap(self._apply)(self.parameters(weights), inputs)

    def gradients(self, weights: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Gradients `(k, P)` of each loss on its own batch: inputs `(k, b, ...)` and targets `(k, b, ...)`.

        The operations of a shape of batch are recorded once, in a tenth of a second, and then repeated. That halves the
        time of one small network, saves little where many are stacked, and changes no bit.
        """
        given = weights.contiguous(), inputs.contiguous(), targets.contiguous()
        key = tuple((each.shape, each.dtype, each.device) for each in given)
        with TRACING:
            if key not in self._recorded:
                self._recorded[key] = make_fx(lambda *each: self._gradients(*each))(*given)
        return self._recorded[key](*given)

    def _gradients(self, weights: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        found = vmap(grad(self._loss_of))(self.parameters(weights), inputs, targets)
        return torch.cat([found[name].flatten(1) for name in self.names], 1)

    def _apply(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return functional_call(self._template, parameters, (inputs,))  # type: ignore[no-any-return]

    def _loss_of(self, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(self._apply(parameters, inputs), targets)


def _refuse_what_vmap_cannot_train(model: nn.Module, number: int) -> None:
    for name, module in model.named_modules():
        if isinstance(module, DRAWS) and module.training and getattr(module, "p", True):
            raise ValueError(f"model {number}: {name} draws random numbers; call eval() on it, or take it out")
        if any(True for _ in module.buffers(recurse=False)):
            kind = type(module).__name__
            raise ValueError(f"model {number}: {name} ({kind}) has buffers, which a stack does not update; take it out")
        if isinstance(module, nn.RNNBase):
            raise ValueError(f"model {number}: {name} ({type(module).__name__}) cannot be stacked; write its steps out")
    types = {parameter.dtype for parameter in model.parameters()}
    if len(types) != 1 or not types <= set(ROWS):
        raise ValueError(f"model {number} has parameters of {sorted(map(str, types))}: expected float32 or float64")
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise ValueError(f"model {number}: {name} is not trained (requires_grad is False); expected that all are")
        if parameter._backward_hooks:
            raise ValueError(
                f"model {number}: {name} has a hook on its gradient, which a stack does not call; remove it"
            )


def _difference(first: nn.Module, other: nn.Module) -> str:
    """What the networks differ in besides the values of their parameters: the name of a module, or of its attribute."""
    if str(first) != str(other):
        pairs = zip(str(first).splitlines(), str(other).splitlines(), strict=False)
        return next((f"{b.strip()}, not {a.strip()}" for a, b in pairs if a != b), "its modules")
    for (name, a), (_, b) in zip(first.named_modules(), other.named_modules(), strict=True):
        for key, (x, y) in _paired(vars(a), vars(b)):
            same = torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y
            if not same:
                return f"{name}.{key}".lstrip(".")
    return ""


def _paired(first: dict[str, object], other: dict[str, object]) -> Iterator[tuple[str, tuple[object, object]]]:
    """Attributes that can be compared, of both modules: numbers, text, and tensors that are no parameters."""
    plain = (int, float, complex, str, tuple, Tensor, type(None))
    for key in first.keys() & other.keys() - {"training"}:
        if not key.startswith("_") and isinstance(first[key], plain) and isinstance(other[key], plain):
            yield key, (first[key], other[key])


@dataclass(frozen=True)
class StackPlan:
    """How a stack is trained.

    Attributes:
        steps: number of steps.
        learning_rate: of all networks, or `(k,)`, one for each; 0 trains nothing.
        momentum: as of `torch.optim.SGD`, without dampening: a number, or `(k,)`.
        sampled: steps, from 0, whose gradients are kept, in rising order.
        project: what becomes of the gradients `(k, P)` before they move the weights; the kept ones are those before it.
        first: the number that the first step has for `batches` and `project`; `sampled` counts from it, too.
        progress: text before a progress bar; None shows none.

    Raises:
        ValueError: no step; a rate or momentum that is negative or not finite; sampled steps that are not among them.
    """

    steps: int
    learning_rate: float | Sequence[float]
    momentum: float | Sequence[float] = 0.0
    sampled: Sequence[int] | NDArray[np.int64] = ()
    project: Callable[[Tensor, int], Tensor] | None = None
    first: int = 0
    progress: str | None = None

    def __post_init__(self) -> None:
        check_whole(steps=self.steps)
        check_whole(0, first=self.first)
        for name in ("learning_rate", "momentum"):
            values = np.asarray(getattr(self, name), float)
            if values.ndim > 1 or not (np.isfinite(values) & (values >= 0)).all():
                raise ValueError(
                    f"{name}={getattr(self, name)}: expected a number of at least 0, or one for each model"
                )
        if self.project is not None and not callable(self.project):
            raise ValueError(f"project={self.project!r:.80}: expected a function of gradients and step")
        steps, first, last = np.asarray(self.sampled), int(self.first), int(self.first) + int(self.steps)
        wanted = range(first, last)
        if steps.size and (steps.dtype.kind not in "iu" or steps.ndim != 1 or not set(steps.tolist()) <= set(wanted)):
            raise ValueError(f"sampled={steps}: expected steps from {first} to {last - 1}")
        if (np.diff(steps.astype(np.int64)) <= 0).any():
            raise ValueError(f"sampled={steps}: expected each to be larger than the one before")


@dataclass(frozen=True)
class TrainedStack:
    """Attributes: `weights` `(k, P)` after the last step, and `gradients` `(k, m, P)` float32 at the sampled ones."""

    weights: Tensor
    gradients: NDArray[np.float32]


def train_stack(
    stack: ModelStack, batches: StackBatches, plan: StackPlan, weights: Tensor | None = None
) -> TrainedStack:
    """Take steps of stochastic gradient descent with each network of a stack.

    Args:
        stack: the networks; it is not changed.
        batches: `batches(step)` gives inputs `(k, b, ...)` and targets `(k, b, ...)`, one batch for each network.
        plan: how long, how fast, and what is kept.
        weights: `(k, P)` to begin with; None for those of the stack.

    Raises:
        ValueError: rates, momenta or weights for another number of networks, weights that are not finite numbers of the
            stack's format, the whole call in `torch.autocast`; at a step, batches of another number or of no example, a
            projection that gives another shape, or a gradient that float32 cannot hold.
        DivergenceError: weights that are not finite at the end; names the networks.

    Example:
        >>> from descent.models import mlp
        >>> stack = ModelStack([mlp((1, 1, 2), [3], 2, seed) for seed in range(4)])
        >>> batch = torch.ones(4, 5, 1, 1, 2), torch.zeros(4, 5, dtype=torch.int64)
        >>> trained = train_stack(stack, lambda step: batch, StackPlan(20, 0.5, sampled=[0, 19]))
        >>> sizes = np.linalg.norm(trained.gradients, axis=2)
        >>> sizes.shape, bool((sizes[:, 1] < sizes[:, 0]).all())
        ((4, 2), True)
    """
    theta, k = _checked_weights(stack, weights), len(stack.weights)
    rate, momentum = (_per_model(getattr(plan, name), k, name) for name in ("learning_rate", "momentum"))
    kept = np.empty((k, len(plan.sampled), theta.shape[1]), np.float32)
    places = {int(step): place for place, step in enumerate(plan.sampled)}
    velocity = torch.zeros_like(theta) if momentum.any() else None
    rate, momentum = rate.to(theta), momentum.to(theta)
    steps = range(int(plan.first), int(plan.first) + int(plan.steps))
    for step in tqdm(steps, desc=plan.progress, disable=plan.progress is None, mininterval=0.5):
        inputs, targets = batches(step)
        if not len(inputs) == len(targets) == k:
            raise ValueError(f"batches({step}) of {len(inputs)} inputs, {len(targets)} targets: expected {k} networks")
        if not inputs.numel():
            raise ValueError(
                f"batches({step}) has inputs of shape {tuple(inputs.shape)}: expected at least one example"
            )
        gradients = stack.gradients(theta, inputs, targets)
        if step in places:
            kept[:, places[step]] = _as_rows(gradients, step)
        if plan.project is not None:
            gradients = _projected(plan.project(gradients, step), theta.shape, step)
        velocity = gradients if velocity is None else velocity.mul_(momentum).add_(gradients)
        theta.addcmul_(velocity, rate, value=-1)
        velocity = velocity if momentum.any() else None
    if lost := torch.nonzero(~theta.isfinite().all(1)).flatten().tolist():
        raise DivergenceError(f"networks {lost[:9]} of the stack: weights are not finite; try a smaller learning rate")
    return TrainedStack(theta, kept)


def _checked_weights(stack: ModelStack, weights: Tensor | None) -> Tensor:
    """A copy of the weights to begin with."""
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        raise ValueError("train_stack stands in torch.autocast, which would be recorded; take the call out of it")
    given, own = stack.weights if weights is None else weights, stack.weights
    if not isinstance(given, Tensor) or given.shape != own.shape or given.dtype not in ROWS:
        kind = (tuple(given.shape), given.dtype) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"weights of shape and type {kind}: expected {tuple(own.shape)}, float32 or float64")
    if wrong := torch.nonzero(~given.isfinite().all(1)).flatten().tolist():
        raise ValueError(f"weights of networks {wrong[:9]} are not finite before the first step")
    return given.detach().clone()


def _as_rows(gradients: Tensor, step: int) -> NDArray[np.float32]:
    found = gradients.numpy(force=True)
    with np.errstate(over="ignore"):
        rows: NDArray[np.float32] = found.astype(np.float32)
    if (np.isfinite(found) & ~np.isfinite(rows)).any():
        largest = np.abs(found[np.isfinite(found)]).max()
        raise ValueError(f"step {step}: the largest gradient is {largest:.3g}, and rows are float32")
    return rows


def _projected(gradients: object, shape: torch.Size, step: int) -> Tensor:
    if not isinstance(gradients, Tensor) or gradients.shape != shape:
        got = tuple(gradients.shape) if isinstance(gradients, Tensor) else type(gradients).__name__
        raise ValueError(f"project gave {got} at step {step}: expected gradients of shape {tuple(shape)}")
    if not gradients.isfinite().all():
        raise DivergenceError(f"project gave numbers that are not finite at step {step}")
    return gradients


def _per_model(values: float | Sequence[float], k: int, name: str) -> Tensor:
    given = torch.as_tensor(np.asarray(values, float))
    if given.ndim and len(given) != k:
        raise ValueError(f"{name} for {len(given)} networks: expected a number, or {k} of them")
    return given.expand(k)[:, None]


def stack_accuracy(stack: ModelStack, weights: Tensor, inputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """The share of right answers of each network, `(k,)`, on `(k, n, ...)` inputs and `(k, n)` targets.

    Inputs that all networks share are given as `inputs.expand(k, ...)`, which copies nothing. A network that gives
    outputs which are not finite has NaN.

    Raises:
        ValueError: no example, or targets of another shape.
    """
    if inputs.ndim < 2 or targets.shape != inputs.shape[:2] or not targets.numel() or len(inputs) != len(weights):
        shapes = f"weights {tuple(weights.shape)}, inputs {tuple(inputs.shape)}, targets {tuple(targets.shape)}"
        raise ValueError(f"{shapes}: expected (k, P), (k, n, ...), (k, n), with an example for each network")
    right = torch.zeros(len(weights), dtype=torch.float64, device="cpu")
    with torch.no_grad():
        for start in range(0, inputs.shape[1], 1000):
            part = slice(start, start + 1000)
            outputs = stack.outputs(weights, inputs[:, part])
            known = outputs.isfinite().flatten(1).all(1)
            answers = (outputs.argmax(-1) == targets[:, part]).double().sum(1)
            right += torch.where(known, answers, torch.nan).cpu()
    return (right / inputs.shape[1]).numpy()
