"""What a matrix of second derivatives needs of a model, a loss and its batches, checked before the first product."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves, tree_map

Batch = Any  # tensors with one row an example, in a tuple, a list or a dict
Loss = Callable[[nn.Module, Batch], Tensor]
Parts = Sequence[Tensor]  # a vector in weight space, cut into the shapes of the parameters
Product = Callable[[Parts], Parts]
ROWS = 8  # of the first batch, on which products are compared
STEPS = (10.0, 1.0, 0.1, 1e-2, 1e-3)  # of differences of gradients, over precision^(1/3) times the weights' length
ORDINARY = 3.0  # outputs of this size saturate no softmax, and tell examples apart
KNOWN = (
    "known of weight_norm, which parametrize.remove_parametrizations takes off, of detached or straight-through "
    "gradients, of padding tokens with tied weights, of layer_norm in a loss of gradients, and of a kink at a "
    "value that comes often, such as zero behind weights that are all zero"
)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters to differentiate by, each once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def flat(parts: Parts) -> Tensor:
    """The parts as one vector, `(P,)`."""
    return torch.cat([part.reshape(-1) for part in parts])


def split(vector: Tensor, like: Parts) -> Parts:
    """A vector `(P,)` in parts of these shapes."""
    parts = torch.split(vector, [part.numel() for part in like])
    return [part.view_as(shape) for part, shape in zip(parts, like, strict=True)]


def differentiate(values: Parts, sources: Parts, along: Parts) -> Parts:
    """The derivative of values . along by the sources; a value without a graph is a constant."""
    moving = [i for i, value in enumerate(values) if value.requires_grad]
    if not moving:
        return [torch.zeros_like(source) for source in sources]
    chosen = [values[i] for i in moving], sources, [along[i] for i in moving]
    return torch.autograd.grad(*chosen, retain_graph=True, materialize_grads=True)


class BatchHessian:
    """The second derivatives of a loss on one batch by the trained parameters of a model."""

    reads_weights = True  # by the loss itself, beside those that the outputs depend on

    def value(self, model: nn.Module, loss: Loss, batch: Batch) -> Tensor:
        """The loss, as it is differentiated."""
        return loss(model, batch)

    def gradient(self, model: nn.Module, at: nn.Module, loss: Loss, batch: Batch) -> Parts:
        """A function of the weights of `at` whose derivative, where they are those of `model`, is the matrix."""
        return torch.autograd.grad(loss(at, batch), trained(at), materialize_grads=True)

    def product(self, model: nn.Module, loss: Loss, batch: Batch) -> Product:
        """What multiplies vectors by the matrix, with a graph that is kept."""
        weights = trained(model)
        gradient = torch.autograd.grad(loss(model, batch), weights, create_graph=True, materialize_grads=True)
        return lambda vector: differentiate(gradient, weights, vector)


@contextmanager
def uncached(device: torch.device) -> Iterator[None]:
    """Let each forward pass read the weights as they are, in their own precision, whatever the caller has set."""
    if parametrize._cache_enabled:
        raise ValueError("parametrize.cached() is on and keeps weights that have moved: expected a call outside of it")
    kind = "cpu" if device.type == "meta" else device.type  # autocast knows no meta
    with torch.autocast(kind, enabled=False, cache_enabled=False):
        yield


@contextmanager
def outputs_replaced(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace each floating-point tensor that the model returns."""

    def change(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
        return tree_map(lambda o: replace(o) if isinstance(o, Tensor) and o.is_floating_point() else o, outputs)

    handle = model.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def prepare(batch: Batch, device: torch.device, rows: slice = slice(None)) -> Batch:
    """Rows of a batch on a device, as leaves of which a loss may take gradients where the batch allows it."""
    return tree_map(lambda part: part[rows].detach().to(device).requires_grad_(part.requires_grad), batch)


def count_examples(batch: Batch, number: int) -> int:
    """The rows of every tensor of a batch, one an example."""
    if not isinstance(batch, tuple | list | dict):
        raise ValueError(f"batch {number} is a {type(batch).__name__}: expected a tuple, list or dict of tensors")
    parts = tree_leaves(batch)
    if other := [type(part).__name__ for part in parts if not isinstance(part, Tensor)]:
        raise ValueError(f"batch {number} holds a {other[0]}: expected tensors, as torch.as_tensor gives")
    rows = [len(part) if part.ndim else 0 for part in parts]
    if len(set(rows)) != 1 or rows[0] == 0:
        raise ValueError(f"batch {number} has tensors of {rows} rows: expected one row an example, and at least one")
    return rows[0]


def check_batches(
    matrix: BatchHessian, models: tuple[nn.Module, nn.Module], loss: Loss, batches: Iterable[Batch]
) -> int:
    """The number of examples; refuses what would make products wrong, random, or of another scale.

    A batch takes about six forward passes; products are compared on a few rows of the first one.

    Args:
        matrix: whose products are wanted.
        models: the copy that is differentiated, and the model that it was made from.
        loss: `loss(model, batch)`.
        batches: the same at every pass.
    """
    model, examples, digests = models[0], 0, []
    device = next(model.parameters()).device
    ends: dict[str, tuple[Batch, Batch]] = {}  # of each shape, the newest batch's second half and its last row
    for number, given in enumerate(batches):
        rows, batch = count_examples(given, number), prepare(given, device)
        value, again = (_evaluate(matrix, model, loss, batch, number).detach() for _ in range(2))
        check_unchanged(*models)
        if (value - again).abs() > 32 * torch.finfo(value.dtype).eps * value.abs():
            raise ValueError(f"loss of batch {number} is {value.item()}, then {again.item()}: products would be random")
        if number == 0:
            _check_few(matrix, models, loss, prepare(given, device, slice(ROWS)))
            measure = _far_from_trained(matrix, model, loss, batch)
        bounds = (slice((rows + 1) // 2), slice(rows // 2, None), slice(1), slice(rows - 1, None))
        first, second, head, tail = (prepare(batch, device, part) for part in bounds)
        shape = str(tree_map(lambda part: (part.shape[1:], part.dtype), batch))
        before = ends.get(shape, (second, tail))
        for pair in ((first, second), (head, tail), (before[0], first), (before[1], head)):
            _check_mean(measure, pair, number)
        ends[shape], examples = (second, tail), examples + rows
        digests.append(_digest(given))
    for number, (one, other) in enumerate(zip_longest(digests, map(_digest, batches))):
        if one != other:
            raise ValueError(f"batch {number} differs between two passes over batches: expected the same each time")
    if examples == 0:
        raise ValueError("batches is empty: expected at least one, such as (inputs, targets)")
    return examples


@torch.no_grad()
def check_unchanged(model: nn.Module, original: nn.Module) -> None:
    """Refuse a loss that changes parameters or buffers of the model."""
    parts = [[*network.named_parameters(), *network.named_buffers()] for network in (original, model)]
    before, after = ({name: part.to_dense() for name, part in named} for named in parts)
    for name, part in after.items():
        old = before.get(name)
        if old is None or part.shape != old.shape or not ((part == old) | (part != part) & (old != old)).all():
            raise ValueError(f"the loss changes {name!r}: expected model.eval(), and layers that then change nothing")


def _digest(batch: Batch) -> str:
    parts = [part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for part in tree_leaves(batch)]
    return hashlib.sha256(b" ".join(part.tobytes() for part in parts)).hexdigest()


def _evaluate(matrix: BatchHessian, model: nn.Module, loss: Loss, batch: Batch, number: int = 0) -> Tensor:
    """The loss of a batch; one that is no finite scalar, or has no gradient, is refused."""
    value = matrix.value(model, loss, batch)
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
        what = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss returned {what}: expected a scalar tensor, the mean over the batch's examples")
    if not torch.isfinite(value):
        raise ValueError(f"loss of batch {number} is {value.item()}: expected a finite number")
    if not value.requires_grad:
        raise ValueError("loss has no gradient in the outputs, as an accuracy has none: expected a smooth function")
    return value


def _check_mean(measure: Callable[[Batch], float], pair: tuple[Batch, Batch], number: int) -> None:
    """Refuse a loss that is not, on rows of one batch or of two, the mean of its values on two parts of them."""
    one, other = (len(tree_leaves(part)[0]) for part in pair)
    parts, whole = [measure(part) for part in pair], measure(tree_map(lambda *part: torch.cat(part), *pair))
    mean = (one * parts[0] + other * parts[1]) / (one + other)
    if not abs(whole - mean) <= 3e-4 * max(map(abs, [whole, *parts])):
        raise ValueError(
            f"loss is {whole:.6g} on {one + other} rows up to batch {number}, {mean:.6g} as the mean of its parts: "
            "expected a mean per example, as reduction='mean' gives without class weights, ignored examples and layers "
            "that mix rows"
        )


def _largest_output(matrix: BatchHessian, model: nn.Module, loss: Loss, batch: Batch) -> float:
    """The largest finite output of the model by its absolute value; 1 where there is none."""
    sizes = [0.0]

    def note(outputs: Tensor) -> Tensor:
        if outputs.numel():
            sizes.append(float(outputs.detach().nan_to_num(0, 0, 0).abs().max()))
        return outputs

    with suppress(ValueError), outputs_replaced(model, note):
        matrix.value(model, loss, batch)
    return max(sizes) or 1.0


def _far_from_trained(matrix: BatchHessian, model: nn.Module, loss: Loss, batch: Batch) -> Callable[[Batch], float]:
    """The loss of some rows where examples differ: at moved weights, with outputs of ordinary size.

    Where it has no finite value there, it is that of the model as it is.
    """
    moved, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in trained(moved):
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            usual = (len(p) / max(1, p.numel())) ** 0.5 if p.ndim > 1 else 1.0
            p.add_(0.3 * noise * (p.square().mean().sqrt() + usual))
    factor = ORDINARY / _largest_output(matrix, moved, loss, batch)

    def measure(rows: Batch) -> float:
        for change in (lambda outputs: outputs * factor, torch.clone):
            with suppress(ValueError), outputs_replaced(moved, change):
                if (value := matrix.value(moved, loss, rows)).isfinite():
                    return value.item()
        return matrix.value(model, loss, rows).item()

    return measure


def _check_few(matrix: BatchHessian, models: tuple[nn.Module, nn.Module], loss: Loss, few: Batch) -> None:
    """On a few rows: that the loss changes nothing, reads no other weights, is curved, and has right derivatives."""
    model, original = models
    frozen = [p for p in original.parameters() if p.is_leaf and not p.requires_grad and p.is_floating_point()]
    try:
        for parameter in frozen:  # of which the graph then tells, where the loss reads them
            parameter.requires_grad_()
        (first, kinds), (second, _) = (_graph_leaves(matrix, model, loss, few) for _ in range(2))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    if low := kinds & {torch.bfloat16, torch.float16}:
        raise ValueError(f"the loss computes in {low.pop()}: products would have two digits; expected no autocast")
    known = {id(part) for part in [*tree_leaves(few), *(model.parameters() if matrix.reads_weights else ())]}
    for key in first.keys() & second.keys() - known:  # a leaf that the loss makes is another one each time
        raise ValueError(_say_foreign(first[key], model, original))
    try:
        _check_curved(model, loss, few)
        _check_products(matrix, model, loss, few)
    except RuntimeError as error:
        raise ValueError(f"loss cannot be differentiated twice: {error}") from error


def _graph_leaves(
    matrix: BatchHessian, model: nn.Module, loss: Loss, batch: Batch
) -> tuple[dict[int, Tensor], set[torch.dtype]]:
    """The tensors that the graph of the loss starts from, by identity, and the dtypes of those that it keeps."""
    saved, found, own = dict[int, Tensor](), dict[int, Tensor](), {id(part) for part in model.parameters()}

    def note(outputs: Tensor) -> Tensor:
        found.update({key: leaf for key, leaf in leaves(outputs).items() if key not in own})
        return outputs

    keep = saved_tensors_hooks(lambda part: saved.setdefault(id(part), part), lambda part: part)
    with keep, outputs_replaced(model, note):
        found |= leaves(_evaluate(matrix, model, loss, batch))
    return found, {part.dtype for part in saved.values()}


def leaves(value: Tensor) -> dict[int, Tensor]:
    """The tensors that the graph of a value starts from, by identity."""
    found, seen, waiting = {}, set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [earlier for earlier, _ in node.next_functions]
            if isinstance(leaf := getattr(node, "variable", None), Tensor):
                found[id(leaf)] = leaf
    return found


def _say_foreign(leaf: Tensor, model: nn.Module, original: nn.Module) -> str:
    names = [[name for name, p in network.named_parameters() if p is leaf] for network in (model, original)]
    if names[0]:
        return (
            f"loss reads parameter {names[0][0]!r} beside the outputs, as a penalty on weights does, but the "
            "Gauss-Newton matrix is of a function of the outputs: expected a loss without that part, or hessian"
        )
    what = f"parameter {names[1][0]!r}" if names[1] else f"a trainable tensor of shape {tuple(leaf.shape)}"
    return (
        f"loss reads {what} from elsewhere than its argument, and the matrix would lack that part: expected "
        "loss(model, batch) to read the weights of that model, and to detach all else"
    )


def _check_curved(model: nn.Module, loss: Loss, few: Batch) -> None:
    """Refuse a loss without gradient in the outputs, and one that is piecewise linear in them.

    A loss is piecewise linear when its gradient jumps while its second derivative is zero everywhere. The derivatives
    are taken at the outputs, at zero, where no softmax is saturated, far off to either side, and at the targets, around
    which a Huber loss is curved; not where the loss fails, as one of derivatives of the outputs does.
    """
    gradients: list[Tensor] = []
    targets = [lambda o, part=part: part.to(o.dtype) if part.shape == o.shape else o for part in tree_leaves(few)]
    for place in (torch.clone, torch.zeros_like, lambda o: o + _far(o), lambda o: o - _far(o), *targets):
        points: list[Tensor] = []

        def replace(outputs: Tensor, place: Any = place, points: list[Tensor] = points) -> Tensor:
            points.append(place(outputs).detach().requires_grad_())
            return points[-1]

        try:
            with outputs_replaced(model, replace):
                value = loss(model, few)
        except ValueError:
            continue
        if not points:
            return
        if not leaves(value).keys() & set(map(id, points)):
            raise ValueError("loss has no gradient in the outputs, as an accuracy has none: expected a smooth function")
        slopes = torch.autograd.grad(value, points, create_graph=True, materialize_grads=True)
        if flat(differentiate(slopes, points, [2 + _ramp(point) for point in points])).nan_to_num().any():
            return
        gradients.append(flat(slopes).detach())
    if not all(torch.allclose(gradients[0], other) for other in gradients):
        raise ValueError("loss is piecewise linear in the outputs: it has no second derivative")


def _ramp(like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, like.numel(), dtype=like.dtype, device=like.device).reshape(like.shape)


def _far(outputs: Tensor) -> Tensor:
    return 10 * (1 + outputs.abs().max()) * (_ramp(outputs) + 0.5 / outputs.numel())


def _check_products(matrix: BatchHessian, model: nn.Module, loss: Loss, few: Batch) -> None:
    """Compare u . H w with w . H u, and H u with differences of gradients, in float64 where the model can be so.

    The outputs are brought to an ordinary size before. Products in float32 are then compared with those in float64.
    Where gradients jump at every distance, as at a ReLU of exactly zero, only symmetry is asked for.
    """
    factor = min(1.0, ORDINARY / _largest_output(matrix, model, loss, few))
    exact, rows, eps = _in_float64(matrix, model, loss, few)
    weights, generator = trained(exact), torch.Generator().manual_seed(0)
    sizes = [weight.numel() for weight in weights]
    drawn = torch.randn(2, sum(sizes), generator=generator, dtype=torch.float64).to(weights[0])
    u, w = nn.functional.normalize(drawn)
    with outputs_replaced(exact, lambda outputs: outputs * factor):
        multiply = matrix.product(exact, loss, rows)
        hu, hw = (flat(multiply(split(vector, weights))) for vector in (u, w))
        blocks = zip(*(torch.split(part, sizes) for part in (u, hu, hw)), strict=True)
        # a row of zeros among others is of a number that torch holds fast, as of a padding token: it stays
        along = torch.cat([part * ((one != 0) | (other != 0)) if one.any() else part for part, one, other in blocks])
        slope, unsure, gap = _differences_of_gradients(matrix, exact, (loss, rows), along, eps)
    with outputs_replaced(model, lambda outputs: outputs * factor):
        own = flat(matrix.product(model, loss, few)(split(u.to(trained(model)[0]), weights))).to(hu)
    if not torch.cat([hu, hw, own]).isfinite().all():
        return  # it is refused, or handed on, where it is used
    excess = [
        float((one - other).norm() - 2 * spread.norm() - 1e-4 * other.norm())
        for one, other, spread in zip(*(torch.split(part, sizes) for part in (hu, slope, unsure)), strict=True)
    ]
    symmetric = (u @ hw - w @ hu).abs() <= eps**0.5 * (hu.norm() + hw.norm())
    if not symmetric or max(excess) > 1e-6 * float(slope.norm()):
        names = [name for name, parameter in exact.named_parameters() if parameter.requires_grad]
        where = f"by parameter {names[excess.index(max(excess))]!r}" if max(excess) > 0 else "by some parameter"
        raise ValueError(
            f"a second derivative {where} is not that of the loss: u . H w = {u @ hw:.6g}, w . H u = {w @ hu:.6g}, and "
            f"H u differs from a difference of gradients by {(hu - slope).norm() / slope.norm():.1g}; {KNOWN}"
        )
    if gap > 0:
        raise ValueError(
            "the loss changes by something else than its gradient by torch: expected nothing detached that depends on "
            "weights, and checkpoint(..., use_reentrant=False)"
        )
    if (own - hu).norm() > 0.1 * hu.norm():
        raise ValueError(
            f"products of two passes, the second in float64, differ by {(own - hu).norm() / hu.norm():.0%}: expected "
            "no random numbers in the forward pass, and full precision, as model.eval() and model.double() give"
        )


def _in_float64(matrix: BatchHessian, model: nn.Module, loss: Loss, few: Batch) -> tuple[nn.Module, Batch, float]:
    """Model and rows in float64, or as they are where these cannot be so, and the precision of what is computed.

    It is that of float32 where some layer, or the loss, goes down to it.
    """
    exact = copy.deepcopy(model).double()
    rows = tree_map(lambda part: part.double() if part.is_floating_point() else part, few)
    try:
        _, kinds = _graph_leaves(matrix, exact, loss, rows)
    except ValueError:
        exact, rows, kinds = model, few, {trained(model)[0].dtype}
    return exact, rows, torch.finfo(torch.float32 if torch.float32 in kinds else torch.float64).eps


def _differences_of_gradients(
    matrix: BatchHessian, model: nn.Module, task: tuple[Loss, Batch], along: Tensor, eps: float
) -> tuple[Tensor, Tensor, float]:
    """Central differences of gradients at two distances, `(P,)`: one, and its difference from the other; and a gap.

    The distances are the largest neighbours among `STEPS` at which the two agree; where none agree, as when every step
    crosses a kink, the second result is infinite. The gap is above zero where the loss changes by something else than
    the gradient.
    """
    at, weights = copy.deepcopy(model), [weight.detach() for weight in trained(model)]
    length = (float(flat(weights).norm()) or 1.0) * eps ** (1 / 3)

    def end(distance: float) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            for moved, start, part in zip(trained(at), weights, split(distance * along, weights), strict=True):
                moved.copy_(start + part)
        return matrix.value(at, *task).detach(), flat(matrix.gradient(model, at, *task)).detach()

    before = torch.full_like(along, torch.nan)
    for distance in (step * length for step in STEPS):
        (high, above), (low, below) = end(distance), end(-distance)
        difference = (above - below) / (2 * distance)
        rounding = 1e3 * eps * above.norm() / distance
        if (difference - before).norm() <= 1e-3 * difference.norm() + rounding:
            rise, slopes = (high - low) / (2 * distance), torch.stack([above, below]) @ along
            allowed = 0.05 * (rise.abs() + slopes.abs().sum()) + 1e3 * eps * high.abs() / distance
            gap = float((rise - slopes.mean()).abs() - allowed)
            return difference, (difference - before).abs() + rounding / len(along) ** 0.5, gap
        before = difference
    return before, torch.full_like(along, torch.inf), 0.0
