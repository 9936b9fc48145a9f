"""What a Hessian needs of a model, its loss and its data, checked before any product is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

DataBatches = Iterable[Sequence[Tensor]]
LossFunction = Callable[[Tensor, Tensor], Tensor]
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def chosen_parameter_names(model: nn.Module, parameters: Iterable[str] | None) -> set[str]:
    """The names in `parameters`; where it is None, those of all parameters that require a gradient.

    Raises:
        ValueError: an unknown name, none at all, or parameters of several dtypes or devices.
    """
    named = dict(model.named_parameters())
    if isinstance(parameters, str):
        raise ValueError(f"parameters={parameters!r}: expected a list of names")
    chosen = {n for n, p in named.items() if p.requires_grad} if parameters is None else set(parameters)
    if unknown := sorted(chosen - set(named)):
        raise ValueError(f"parameter {unknown[0]!r}: expected one of {', '.join(named)}")
    if not chosen:
        raise ValueError("parameters: expected at least one, and the model trains none")
    kinds = {f"{named[name].dtype} on {named[name].device}" for name in chosen}
    if len(kinds) > 1:
        raise ValueError(f"parameters of {' and '.join(sorted(kinds))}: expected one dtype on one device")
    return chosen


def check_modules(model: nn.Module) -> None:
    """Refuse modules whose output is random or depends on the other examples of a batch.

    Raises:
        ValueError: with the module's name.
    """
    for name, module in model.named_modules():
        what = f"{type(module).__name__} {name!r}"
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"{what} is in training mode: products would be random; expected model.eval()")
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch_norm and (module.training or module.running_mean is None):
            raise ValueError(f"{what} uses each batch's own statistics: expected model.eval() with running statistics")
        if isinstance(module, NORMS) and module.training and module.running_mean is not None:
            raise ValueError(
                f"{what} is in training mode and would change its running statistics: expected model.eval()"
            )


def check_order(batches: DataBatches) -> None:
    """Refuse batches that are known, without reading them, to shuffle, to drop examples or to end after one pass.

    Raises:
        ValueError: with the sampler's name or the number of examples.
    """
    if isinstance(batches, Iterator):
        raise ValueError(f"batches is a {type(batches).__name__}, spent after one pass: expected a list or a loader")
    if not isinstance(batches, DataLoader):
        return
    batching: Any = batches.batch_sampler
    sampler = getattr(batching, "sampler", None)
    if isinstance(sampler, RandomSampler):
        raise ValueError("the loader draws its order with a RandomSampler: expected shuffle=False")
    if isinstance(sampler, Sized) and batching.drop_last and (rest := len(sampler) % batching.batch_size):
        raise ValueError(f"the loader drops the last {rest} of {len(sampler)} examples: expected drop_last=False")


def check_values(model: nn.Module, loss: LossFunction, batches: DataBatches) -> int:
    """The number of examples; refuses batches that are empty or change, random outputs, and losses without a Hessian.

    One forward pass over the data without gradients, and a second one over the first batch, on which the loss is
    probed.

    Raises:
        ValueError: in one sentence, with the value.
    """
    device = next(model.parameters()).device
    examples = 0
    for number, (first, second) in enumerate(zip_longest(batches, batches)):
        if first is None or second is None or not all(map(_same, first, second)):
            raise ValueError(
                f"batch {number} differs between two passes over batches: expected the same data each time"
            )
        inputs, targets = (part.to(device) for part in first)
        with torch.no_grad():
            outputs = model(inputs)
            if not isinstance(outputs, Tensor):
                raise ValueError(f"the model returned {type(outputs).__name__}: expected one tensor")
            value = loss(outputs, targets)
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            what = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss returned {what}: expected a scalar tensor, the mean over the batch's examples")
        if not torch.isfinite(value):
            raise ValueError(f"loss of batch {number} is {value.item()}: expected a finite number")
        if number == 0:
            with torch.no_grad():
                if not torch.equal(outputs, model(inputs)):
                    raise ValueError("the model gives other outputs on the same inputs: products would be random")
            _check_mean(loss, outputs, targets)
            _check_derivatives(loss, outputs, targets)
        examples += len(inputs)
    if examples == 0:
        raise ValueError("batches is empty: expected at least one pair (inputs, targets)")
    return examples


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num()))


def _check_mean(loss: LossFunction, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a loss that is not the mean of its values on the two halves of a batch, weighted by their examples."""
    if not outputs.ndim or not len(outputs) == len(targets) > 1:
        return
    half = len(outputs) // 2
    parts = [loss(outputs[part], targets[part]).item() for part in (slice(half), slice(half, None))]
    mean = (half * parts[0] + (len(outputs) - half) * parts[1]) / len(outputs)
    whole = loss(outputs, targets).item()
    if abs(whole - mean) > 1e-4 * max(map(abs, [whole, *parts])):
        raise ValueError(
            f"loss is {whole:.6g} on {len(outputs)} examples, {mean:.6g} as the mean of its halves: "
            "expected a mean per example, as reduction='mean' gives"
        )


@torch.enable_grad()  # the caller may be inside no_grad
def _check_derivatives(loss: LossFunction, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a loss without gradient, one of more than outputs and targets, and one that is piecewise linear.

    A loss is piecewise linear when its gradient jumps while its second derivative is zero everywhere. The derivatives
    are taken at the outputs, at zero, where no softmax is saturated, far off to either side, and at
    the targets, around which a Huber loss is curved.
    """
    if loss(outputs.detach(), targets.detach()).requires_grad:
        raise ValueError(
            "loss reads weights beside the outputs, as a penalty on weights does, and the matrix would lack that part: "
            "expected a function of outputs and targets alone"
        )
    ramp = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype, device=outputs.device).reshape(outputs.shape)
    far = 10 * (1 + outputs.abs().max()) * (ramp + 0.5 / outputs.numel())
    points = [outputs, torch.zeros_like(outputs), outputs + far, outputs - far]
    if targets.shape == outputs.shape and targets.is_floating_point():
        points.append(targets.to(outputs.dtype))
    gradients = []
    for point in points:
        point = point.detach().requires_grad_()
        value = loss(point, targets)
        if not value.requires_grad:
            raise ValueError("loss has no gradient in the outputs, as an accuracy has none: expected a smooth function")
        (gradient,) = torch.autograd.grad(value, point, create_graph=True, materialize_grads=True)
        if gradient.requires_grad:
            try:
                (second,) = torch.autograd.grad(gradient, point, 2 + ramp, materialize_grads=True)
            except RuntimeError as error:
                raise ValueError(f"loss cannot be differentiated twice: {error}") from error
            if second.any():
                return
        gradients.append(gradient.detach())
    if not all(torch.allclose(gradients[0], other) for other in gradients):
        raise ValueError("loss is piecewise linear in the outputs: it has no second derivative")
