"""The loss at any point of a plane through a network, which is moved as a copy and never changed."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from descent.curvature.checks import check_unchanged, leaves, uncached
from descent.landscape.class_losses import check_classes, class_losses
from descent.landscape.directions import Direction, batch_norm_variances, fit_directions
from descent.models.folding import (
    ELSEWHERE,
    Folded,
    copy_module,
    counters,
    fold_batch_norm,
    held_elsewhere,
    moved_in_place,
    state_of,
)
from descent.repro.machine import Precision, chosen_precision, compute_device
from descent.repro.numbers import as_real

Array = NDArray[np.float64]
Values = dict[str, Array]
Batch = tuple[Tensor, Tensor]
ExampleLoss = Callable[[nn.Module, Batch], Tensor]
CHECKED = 8  # examples, spread over all, on which a copied or rewritten network is compared with the untouched one
# Largest difference over the largest number, by the format in which it is taken: rounding leaves 1e-13, 3e-6 (on a GPU,
# whose convolutions round, 1e-3) and 0.016 of the log-probabilities of trained residual networks.
LIMITS = {"float64": 1e-4, "float32": 5e-3, "bfloat16": 0.05}
FAILURES = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError)


@dataclass(frozen=True)
class _Form:
    """A network as it is computed with: in one number format and layout, its batch normalisation folded or not."""

    model: nn.Module
    kind: str
    inputs: Tensor
    base: Direction
    directions: list[Direction]

    @torch.no_grad()
    def move(self, point: Sequence[float] | Array) -> None:
        """Set the weights to base + sum of coordinates x directions, and a running variance below zero to zero."""
        state = state_of(self.model)
        for name, base in self.base.items():
            state[name].copy_(base + sum(float(c) * d[name] for c, d in zip(point, self.directions, strict=True)))
        for name in batch_norm_variances(self.base):
            state[name].clamp_(min=0)


class Evaluator:
    """Loss of a network at points of a line, plane or space: weights + sum of coordinates x directions.

    The network is a copy in evaluation mode: the model stays as it is, and so do its running statistics. What the copy
    does not read, as results that a forward pass has kept, is told by a warning. A running
    variance that a line leads below zero is taken as zero. An evaluator can be sent to another process.

    For speed the network is rewritten: where the directions move only parameters of more than one dimension, batch
    normalisation is folded into the convolutions before it (folding maps lines to lines); images lie channels-last;
    weights may become bfloat16. Each rewrite is compared with the untouched network on some examples, and dropped
    with a warning where it differs.

    Args:
        model: any module with real weights.
        inputs: `(n, ...)`, floating-point numbers, which take the weights' format, or integers such as tokens.
        targets: `(n, ...)`; for cross-entropy `(n,)` int64 classes.
        directions: name -> tensor of the shape of that parameter or buffer; one or two, or more.
        loss: `loss(model, batch)` to one value for each of the b examples of `batch`, `(b,)`, where `batch` is the
            tuple (inputs, targets); it is called without gradients. None is cross-entropy in nats of `model(inputs)`,
            logits `(b, classes)`.
        metric: of the same form; its mean is measured beside the loss.
        precision: of weights and activations. `auto` is float64 for a network in it, bfloat16 where the machine
            multiplies in it, else float32. Outputs in bfloat16 become float32; losses are summed in float64. On a GPU
            PyTorch's convolutions of float32 are TF32, a thousandth off, unless you set
            `torch.backends.cudnn.allow_tf32 = False`.
        batch: examples at a time.

    Attributes:
        precision: the one in use, `float32`, `float64` or `bfloat16`.
        images: n.

    Raises:
        ValueError: by name, a direction that does not fit the model, parameters that are complex or not built yet;
            unequal numbers of inputs and targets; an unknown precision; a batch below 1; outputs or targets that the
            default loss cannot mean; a network that fails on some examples, or that gives them other losses when
            it is evaluated again, or without the others of their batch; a forward pass that changes weights, buffers
            or numbers of the network; a network whose copy, moved, differs from the network itself, which is moved in
            place for that and put back to the last bit; a loss that is not one value per example.

    Examples:
        The loss (w - 1)^2 of one weight, which starts at 0, along the direction that adds 1 to it:

        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> ones = torch.ones(4, 1)
        >>> squares = lambda model, batch: (model(batch[0]) - batch[1]).square().sum(1)
        >>> task = Evaluator(model, ones, ones, [{"weight": ones[:1]}], loss=squares, precision="float32")
        >>> task([[0], [1], [3]])["loss"]
        array([1., 0., 4.])
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        directions: Sequence[Direction],
        *,
        loss: ExampleLoss | None = None,
        metric: ExampleLoss | None = None,
        precision: Precision = "auto",
        batch: int = 125,
    ) -> None:
        _check(inputs, targets, batch)
        self._directions = fit_directions(model, directions)
        self._device = compute_device()
        wanted = chosen_precision(precision, self._device)
        self.images, self._batch, self._loss, self._metric = len(targets), batch, loss, metric
        self._inputs, self._targets = inputs.detach(), targets.detach().to(self._device)
        numbers: list[Tensor] = [*model.parameters()] or [inputs]
        double = any(part.dtype == torch.float64 for part in numbers)
        self.precision = "float64" if double else "float32"
        network = copy_module(model).eval()  # the caller may train the model further
        self._network = network.double() if double else network.float()
        self._form = self._form_of(None, self.precision)
        plain = self._check_network()
        self._check_copy(model)
        self._rewrite(plain, self.precision if double and precision == "auto" else wanted, asked=precision)

    def _form_of(self, folded: Folded | None, kind: str, layout: Any = torch.contiguous_format) -> _Form:
        folded, exact = folded or Folded(self._network, {}), torch.float64 if kind == "float64" else torch.float32
        model, zero, one = copy_module(folded.model), torch.zeros(()), torch.ones(())
        state, moved = state_of(model), set().union(*self._directions)
        base = {name: state[name].detach().to(self._device, exact, copy=True) for name in moved}
        scaled = [{n: d.get(n, zero) * folded.scales.get(n, one) for n in moved} for d in self._directions]
        directions = [{name: part.to(self._device, exact) for name, part in each.items()} for each in scaled]
        model = {"float32": model.float, "float64": model.double, "bfloat16": model.bfloat16}[kind]()
        model = model.to(self._device, memory_format=layout)  # type: ignore[call-overload]
        if kind == "bfloat16":
            model.register_forward_hook(_in_float32)
        dtype = getattr(torch, kind) if self._inputs.is_floating_point() else self._inputs.dtype
        inputs = self._inputs.to(self._device, dtype).contiguous(memory_format=layout)
        return _Form(model, kind, inputs, base, directions)

    def _check_network(self) -> _Form:
        """The network as it is, in the finest format in which it runs, where rounding hides least.

        It is refused if its forward pass is random, or if the loss of an example depends on the rest of the batch.
        """
        plain, state = self._form, _random_state()
        try:
            first = self._probe(plain, 0.0)
        except FAILURES as error:
            what = "the network" if self._loss is None else "loss(model, (inputs, targets))"
            where = f"on some examples, in {self.precision} and evaluation mode"
            raise ValueError(f"{what} fails {where}: {type(error).__name__}: {error}") from error
        with suppress(*FAILURES):
            finer = self._form_of(None, "float64")
            first, plain = self._probe(finer, 0.0), finer
        counted = counters(plain.model)
        again, drawn = self._probe(plain, 0.0), _random_state() != state
        if drawn or _difference(first, again) > LIMITS[plain.kind]:
            how = "draws random numbers" if drawn else "gives other values when it is evaluated again"
            raise ValueError(
                f"the network, or its loss, {how} in evaluation mode, so that no point has one loss: expected a fixed "
                "forward pass, with functional dropout only where self.training is True"
            )
        fresh = self._form_of(None, plain.kind)
        fresh.move([0.0] * len(fresh.directions))
        check_unchanged(plain.model, fresh.model)
        if moved := [name for name, value in counters(plain.model).items() if counted.get(name, value) != value]:
            raise ValueError(
                f"the loss changes {moved[0]!r} at each call: expected a forward pass that changes nothing"
            )
        self._check_examples(plain)
        return plain

    def _check_examples(self, plain: _Form) -> None:
        """Refuse a loss of an example that is not the same in a whole batch, in a half of it, and alone."""
        norms = [(name, m) for name, m in plain.model.named_modules() if isinstance(m, _BatchNorm)]
        where = "".join(f", as {name!r} has no running statistics" for name, m in norms if m.running_var is None)
        count, values = min(self.images, max(self._batch, 2)), list[list[Tensor]]()
        rows, few = _spread(self.images, count), _spread(count, CHECKED)
        for size in (count, (count + 1) // 2, 1):
            with suppress(*FAILURES, ValueError):  # a batch of a size that fails is refused where it comes
                parts = self._probe(plain, 0.0, rows if size > 1 else rows[few], size)
                values.append([part if size == 1 else part[few.to(part.device)] for part in parts])
        if where or any(_difference(values[0], parts) > LIMITS[plain.kind] for parts in values[1:]):
            raise ValueError(
                f"the loss of an example changes with the others of its batch{where}: expected one value for each "
                "example by itself"
            )

    @torch.no_grad()
    def _check_copy(self, model: nn.Module) -> None:
        """Compare the moved copy with the network itself, which is moved in place and put back to the last bit."""
        form, own = self._form, next((p for p in state_of(model).values() if p.is_floating_point()), None)
        sizes = [sum(float(p.norm()) ** 2 for p in parts.values()) ** 0.5 for parts in (form.base, *form.directions)]
        far = max(1.0, sizes[0] / min(filter(None, sizes[1:]), default=torch.inf))  # a short direction is for long ways
        if unread := self._unread(form, far):
            warnings.warn(
                f"the values on some examples do not change with {unread[0]!r}: right where the forward pass leaves it "
                "out, wrong where it kept what it had computed of it; expected a network that keeps nothing",
                stacklevel=3,
            )
        expected, rows = self._probe(form, far), _spread(self.images, CHECKED)
        if own is None or any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
            return
        inputs = self._inputs.to(own.device, own.dtype if self._inputs.is_floating_point() else None)
        task, state, found = replace(form, model=model, inputs=inputs), state_of(form.model), expected
        with suppress(*FAILURES, ValueError), moved_in_place(model, {name: state[name] for name in form.base}):
            found = self._values(task, rows)
        if own.element_size() < 4:  # whose range float32 exceeds
            found = [part.where(part.isfinite(), other) for part, other in zip(found, expected, strict=True)]
        limit = "bfloat16" if own.element_size() < 4 else "float64" if own.device == self._device else "float32"
        if (gap := _difference(expected, found)) > LIMITS[limit]:
            raise ValueError(
                f"the values of a moved copy differ from those of the network itself, moved alike, by {gap:.2g} of the "
                f"largest{held_elsewhere(model)}: {ELSEWHERE}"
            )

    def _unread(self, form: _Form, far: float) -> list[str]:
        """The parameters that are moved and change nothing on some examples, as those that no forward pass reads."""
        state, before, rows = state_of(form.model), self._probe(form, 0.0), _spread(self.images, CHECKED)
        read, hooks = dict[int, Tensor](), (form.model.register_forward_pre_hook, form.model.register_forward_hook)

        def record(_model: nn.Module, _inputs: Any, *outputs: Any) -> None:
            torch.set_grad_enabled(not outputs)
            for part in tree_leaves(outputs):
                read.update(leaves(part) if isinstance(part, Tensor) else {})

        names = [name for name in form.base if isinstance(state[name], nn.Parameter)]
        for name in names:
            state[name].requires_grad_()
        with suppress(*FAILURES), torch.no_grad():
            handles = [hook(record) for hook in hooks]
            self._values(form, rows)
        for handle in handles:
            handle.remove()
        unread = []
        for name in (name for name in names if id(state[name]) not in read):
            way = far * torch.stack([direction[name] for direction in form.directions]).sum(0)
            form.move([0.0] * len(form.directions))
            state[name].add_(way)
            if way.any() and _difference(before, self._values(form, rows)) == 0:
                unread.append(name)
        return unread

    def _rewrite(self, plain: _Form, wanted: str, asked: str) -> None:
        """Fold, lay out and cast the network as far as its values stay the same at the centre and one unit away."""
        kept, rewrites = dict[str, Any](folded=None, kind=plain.kind), dict[str, dict[str, Any]]()
        matrices = {name for name, parameter in self._network.named_parameters() if parameter.ndim > 1}
        if matrices.issuperset(plain.base) and (folded := fold_batch_norm(self._network)).scales:
            names = ", ".join(name.removesuffix(".weight") for name in folded.scales)
            rewrites[f"batch normalisation folded into {names}"] = {"folded": folded}
        if self._inputs.ndim == 4:
            rewrites["channels-last images"] = {"layout": torch.channels_last}
        if wanted != self.precision:
            rewrites[wanted] = {"kind": wanted}
        expected = {0.0: self._probe(plain, 0.0)}
        with suppress(*FAILURES):
            expected[1.0] = self._probe(plain, 1.0)
        for name, change in rewrites.items():
            places, limit = expected if "folded" in change else [0.0], LIMITS[change.get("kind", plain.kind)]
            try:
                form = self._form_of(**kept | change)
                found = max(_difference(expected[at][:1], self._probe(form, at)[:1]) for at in places)
                fault = f"the values change by {found:.2g} of the largest, above {limit:g}"
            except FAILURES as error:
                found, fault = torch.inf, f"the network fails: {error}" if name == asked else ""
            if found <= limit:
                kept |= change
            elif fault:
                warnings.warn(f"with {name}, {fault}; the network is evaluated without", stacklevel=3)
        self.precision = kept["kind"] if wanted == kept["kind"] else self.precision
        self._form = self._form_of(**kept | {"kind": self.precision})

    @torch.no_grad()
    def _probe(self, form: _Form, coordinate: float, rows: Tensor | None = None, size: int = 0) -> list[Tensor]:
        """The values of some examples, spread over all by default, with every coordinate equal."""
        form.move([coordinate] * len(form.directions))
        return self._values(form, _spread(self.images, CHECKED) if rows is None else rows, size)

    def _values(self, form: _Form, rows: Tensor, size: int = 0) -> list[Tensor]:
        """Losses `(b,)`, by default all log-probabilities, and the metric; of at most `size` examples at a time."""
        parts = []
        with uncached(self._device):
            for some in torch.split(rows, size or min(CHECKED, self._batch)):
                batch = form.inputs[some], self._targets[some].to(form.inputs.device)
                if self._loss is None:
                    outputs: Tensor = form.model(batch[0])
                    check_classes(outputs, self._targets)
                    values = [outputs.double().log_softmax(1)]
                else:
                    values = [_one_each("loss", self._loss, form.model, batch).double()]
                if self._metric is not None:
                    values.append(_one_each("metric", self._metric, form.model, batch).double())
                parts.append(values)
        return [torch.cat(each) for each in zip(*parts, strict=True)]

    def _each(self, model: nn.Module, batch: Batch) -> Tensor:
        """The values of each example, float64, `(names, b)`."""
        if self._loss is None:
            rows = [*class_losses(model(batch[0]), batch[1])]
        else:
            rows = [_one_each("loss", self._loss, model, batch)]
        if self._metric is not None:
            rows.append(_one_each("metric", self._metric, model, batch))
        return torch.stack([row.detach().double() for row in rows])

    def key(self) -> str:
        """SHA-256 of what is behind the values: weights and statistics, directions, examples, and the precision.

        What the network makes of them counts by mean, norm and maximum of its values on the first examples, at the
        centre and one unit away, computed anew: networks of one state with another forward pass, or another loss, have
        another key. They count to five digits in float64, and to three where the network does not run in it.
        """
        digest, examples = hashlib.sha256(), {"inputs": self._inputs, "targets": self._targets}
        for number, named in enumerate((state_of(self._network), examples, *self._directions)):
            for name, part in sorted(named.items(), key=itemgetter(0)):
                digest.update(f"{number} {name} {part.dtype} {tuple(part.shape)} ".encode())
                digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        functions = [getattr(each, "__qualname__", type(each).__qualname__) for each in (self._loss, self._metric)]
        digest.update(f"{functions} {self.precision} {self._fingerprint()}".encode())
        return digest.hexdigest()

    def _fingerprint(self) -> str:
        count = min(CHECKED, self.images)
        for kind, digits in (("float64", 5), ("float32", 3)):
            with suppress(*FAILURES):
                form = self._form_of(None, kind)
                values = [self._probe(form, at, torch.arange(count), self._batch)[0] for at in (0.0, 1.0)]
                return " ".join(
                    f"{number:.{digits}g}" for each in values for number in (each.mean(), each.norm(), each.max())
                )
        return ""

    def in_float32(self) -> Evaluator:
        """The same evaluator in float32, which `recompute_points` compares with."""
        parts = copy_module(self._network), self._inputs, self._targets, self._directions
        about = {"loss": self._loss, "metric": self._metric, "batch": self._batch}
        return Evaluator(*parts, **about, precision="float32")  # type: ignore[arg-type]

    def __call__(self, points: ArrayLike) -> Values:
        """The values at points `(s, k)`, which have one coordinate for each direction.

        Returns:
            `loss` `(s,)`, mean per example, NaN or infinite where the network's is; `standard_error` `(s,)` of that
            mean over the examples; for cross-entropy `error` `(s,)`, the share of misclassified examples, among which
            those with a logit that is NaN count; `metric` `(s,)` where one was given, mean per example.

        Raises:
            ValueError: points of another width, or a loss that does not return one value per example.
        """
        coordinates = np.atleast_2d(as_real(points, "points")).astype(float)
        if coordinates.ndim != 2 or coordinates.shape[1] != len(self._form.directions):
            raise ValueError(f"points of shape {coordinates.shape}: expected (s, {len(self._form.directions)})")
        rows = [self._at(point) for point in coordinates]
        others = {"error": self._loss is None, "metric": self._metric is not None}
        names = ["loss", "standard_error", *(name for name, given in others.items() if given)]
        return {name: np.array([row[column] for row in rows]) for column, name in enumerate(names)}

    @torch.no_grad()  # not inference mode: a loss may enable gradients, as one of differential equations does
    def _at(self, point: Array) -> list[float]:
        form, parts = self._form, [slice(at, at + self._batch) for at in range(0, self.images, self._batch)]
        form.move(point)
        with uncached(self._device):
            each = torch.cat([self._each(form.model, (form.inputs[part], self._targets[part])) for part in parts], 1)
        spread = float(each[0].std()) / self.images**0.5 if self.images > 1 else float("nan")
        loss, *others = (float(mean) for mean in each.mean(1))
        return [loss, spread, *others]


def _check(inputs: Tensor, targets: Tensor, batch: int) -> None:
    for name, part in (("inputs", inputs), ("targets", targets)):
        if not isinstance(part, Tensor) or part.ndim == 0:
            raise ValueError(f"{name} is a {type(part).__name__}: expected a tensor of n examples, (n, ...)")
    if len(inputs) != len(targets) or len(targets) == 0:
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: expected as many, and at least one")
    if not isinstance(batch, int | np.integer) or batch < 1:
        raise ValueError(f"batch={batch}: expected at least 1 example at a time, a whole number")


def _one_each(name: str, function: ExampleLoss, model: nn.Module, batch: Batch) -> Tensor:
    """What the function returns, `(b,)`; refused if it is anything else."""
    values, count = function(model, batch), len(batch[1])
    if not isinstance(values, Tensor) or values.shape != (count,) or values.is_complex():
        shape = f"shape {tuple(values.shape)}, {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} returned {shape}: expected ({count},), one number per example, as reduction='none'")
    return values


def _spread(total: int, count: int) -> Tensor:
    """Places among all, evenly spread, `(min(count, total),)`."""
    return torch.from_numpy(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


def _difference(ones: list[Tensor], others: list[Tensor]) -> float:
    """The largest gap between two tensors of one place."""
    return max(map(_gap, ones, others))


def _gap(one: Tensor, other: Tensor) -> float:
    """Largest difference over the largest number of the first; what is NaN or the same infinity in both agrees."""
    other = other.to(one.device)
    same = (one == other) | (one.isnan() & other.isnan())
    gap = torch.where(same, 0.0, (one - other).abs()).nan_to_num(nan=torch.inf, posinf=torch.inf)
    scale = torch.where(one.isfinite(), one.abs(), 0.0).max()
    return float(gap.max() / scale) if gap.any() else 0.0


def _random_state() -> list[bytes]:
    """Of the generators that a forward pass may draw from."""
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if compute_device().type == "cuda" else [])]
    return [state.numpy().tobytes() for state in states]


def _in_float32(module: nn.Module, given: Any, outputs: Any) -> Any:
    """A hook that turns every floating-point tensor among the outputs into float32."""
    return tree_map_only(Tensor, lambda part: part.float() if part.is_floating_point() else part, outputs)
