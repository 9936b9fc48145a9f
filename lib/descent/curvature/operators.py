"""Hessian and Gauss-Newton matrix of a network's loss as SciPy operators, mean per example.

Neither matrix is ever built. A product with the Hessian is the derivative of gradient . vector (Pearlmutter 1994,
section 2), taken through the graph of the gradient. Both matrices are linear in the examples, so that the matrix of a
whole data set is the mean of those of its batches, each weighted by its number of examples. What such products need of
model, loss and data is checked before the first one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, RandomSampler

Array = NDArray[np.float64]
DataBatches = Iterable[Sequence[Tensor]]
LossFunction = Callable[[Tensor, Tensor], Tensor]
Parts = Sequence[Tensor]  # a vector in weight space, cut into the shapes of the parameters
BatchProduct = Callable[[Parts], Parts]
BatchMatrix = Callable[[nn.Module, LossFunction, Parts, Tensor, Tensor], BatchProduct]
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def hessian(
    model: nn.Module, loss: LossFunction, batches: DataBatches, parameters: Iterable[str] | None = None
) -> LinearOperator:
    """The Hessian of the mean loss over all examples of `batches`, `(P, P)`, in units of loss / weight^2.

    The operator works on a copy of the model made now: the model is not touched, and training it further does not move
    the operator. It takes float64 vectors and multiplies in the parameters' own dtype: with float32 weights products
    agree with each other to about 1e-6 of the largest eigenvalue, and with those of float64 weights to 1e-6 for a small
    network, 1e-4 for ResNet-20. A network with ReLUs has a Hessian almost everywhere.

    One product costs about two gradients of the whole data when `batches` holds one batch, whose graph is then kept
    (memory of about three training steps; ResNet-20: 5 MB an example), and about three when it holds more.

    Args:
        model: in the mode in which its curvature is wanted; batch-norm and dropout must be in evaluation mode.
        loss: `loss(outputs, targets)`, a scalar that is a mean over the examples of a batch.
        batches: pairs (inputs, targets), the same at every pass: a list, or a loader that neither shuffles nor drops.
        parameters: names of the parameters to differentiate by; None takes all trained ones. Always in the order of
            `model.named_parameters()`, flat as by `descent.models.flat_weights.flatten`; a tied weight counts once.

    Raises:
        ValueError: before any product is computed, with the culprit's name: batches that shuffle, drop examples, are
            empty or change between passes; dropout or batch statistics in training mode; a model that returns no
            tensor; a loss that is not a finite scalar, not a mean per example, not differentiable, or piecewise linear;
            an unknown parameter.

    Examples:
        The loss w^2 - 3 w of a single weight, at any batch size, has curvature 2:

        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> batch = torch.ones(6, 1).double(), torch.full((6, 1), 1.5).double()
        >>> operator = hessian(model, torch.nn.functional.mse_loss, [batch])
        >>> operator.shape, operator @ np.array([1.0])
        ((1, 1), array([2.]))
    """
    return _MeanOverBatches(_hessian_of_batch, model, loss, batches, parameters)


def gauss_newton(
    model: nn.Module, loss: LossFunction, batches: DataBatches, parameters: Iterable[str] | None = None
) -> LinearOperator:
    """The generalised Gauss-Newton matrix, `(P, P)`: mean over examples of J^T (d^2 loss / d outputs^2) J.

    This is the Hessian without the network's own second derivative (Schraudolph 2002, section 3). It is positive
    semi-definite when the loss is convex in the outputs, as cross-entropy and squared error are. Arguments, units and
    errors are those of `hessian`; one product costs about three gradients when `batches` holds one batch.

    Raises:
        ValueError: as `hessian`.

    Examples:
        A linear model has no second derivative of its own, so that both matrices are the same:

        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> batch = torch.eye(2).double(), torch.zeros(2, 1).double()
        >>> gauss_newton(model, torch.nn.functional.mse_loss, [batch]) @ np.eye(2)
        array([[1., 0.],
               [0., 1.]])
    """
    return _MeanOverBatches(_gauss_newton_of_batch, model, loss, batches, parameters)


def _hessian_of_batch(
    model: nn.Module, loss: LossFunction, weights: Parts, inputs: Tensor, targets: Tensor
) -> BatchProduct:
    gradient = torch.autograd.grad(loss(model(inputs), targets), weights, create_graph=True, materialize_grads=True)
    return lambda vector: _differentiate(gradient, weights, vector)


def _gauss_newton_of_batch(
    model: nn.Module, loss: LossFunction, weights: Parts, inputs: Tensor, targets: Tensor
) -> BatchProduct:
    outputs = model(inputs)
    point = outputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(point, targets), point, create_graph=True, materialize_grads=True)
    # J^T z is linear in z, so that its derivative along a vector is J vector: no forward mode is needed
    z = torch.zeros_like(outputs, requires_grad=True)
    pulled_back = torch.autograd.grad(outputs, weights, z, create_graph=True, materialize_grads=True)

    def multiply(vector: Parts) -> Parts:
        pushed = _differentiate(pulled_back, [z], vector)
        return _differentiate([outputs], weights, _differentiate([slope], [point], pushed))

    return multiply


def _differentiate(values: Parts, sources: Parts, along: Parts) -> Parts:
    """The derivative of values . along by the sources; a value without a graph is a constant."""
    moving = [i for i, value in enumerate(values) if value.requires_grad]
    if not moving:
        return [torch.zeros_like(source) for source in sources]
    chosen = [values[i] for i in moving], sources, [along[i] for i in moving]
    return torch.autograd.grad(*chosen, retain_graph=True, materialize_grads=True)


class _MeanOverBatches(LinearOperator):  # type: ignore[misc]
    """The symmetric matrix of a data set: the mean of a batch's matrix over batches, weighted by their examples."""

    def __init__(
        self,
        of_batch: BatchMatrix,
        model: nn.Module,
        loss: LossFunction,
        batches: DataBatches,
        parameters: Iterable[str] | None,
    ) -> None:
        _check_modules(model)
        _check_order(batches)
        names = _choose_parameter_names(model, parameters)
        self._model, self._loss, self._of_batch = copy.deepcopy(model), loss, of_batch
        self._model.zero_grad(set_to_none=True)
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name in names)
        self._weights = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._batches = list(batches) if isinstance(batches, list | tuple) else batches
        with sdpa_kernel(SDPBackend.MATH):
            self._examples = _check_values(self._model, loss, self._batches)
        self._kept: BatchProduct | None = None  # of the only batch
        size = sum(weight.numel() for weight in self._weights)
        super().__init__(np.float64, (size, size))

    def _matmat(self, matrix: Array) -> Array:
        like = self._weights[0]
        rows = torch.as_tensor(matrix.T, dtype=like.dtype, device=like.device).contiguous()
        sizes = [weight.numel() for weight in self._weights]
        vectors = [
            [part.view_as(weight) for part, weight in zip(row.split(sizes), self._weights, strict=True)] for row in rows
        ]
        total = torch.zeros_like(rows)
        for share, multiply in self._products():
            for row, vector in zip(total, vectors, strict=True):
                row.add_(torch.cat([part.reshape(-1) for part in multiply(vector)]), alpha=share)
        product: Array = total.T.double().cpu().numpy()
        return product

    def _matvec(self, vector: Array) -> Array:
        return self._matmat(vector.reshape(-1, 1))[:, 0]

    def _adjoint(self) -> LinearOperator:
        return self

    def _products(self) -> Iterator[tuple[float, BatchProduct]]:
        """Of each batch its share of the examples and its product."""
        for inputs, targets in self._batches:
            yield len(inputs) / self._examples, self._kept or self._linearise(inputs, targets)

    @torch.enable_grad()  # the caller may be inside no_grad
    @sdpa_kernel(SDPBackend.MATH)  # the fused kernels of attention have no second derivative
    def _linearise(self, inputs: Tensor, targets: Tensor) -> BatchProduct:
        device = self._weights[0].device
        multiply = self._of_batch(self._model, self._loss, self._weights, inputs.to(device), targets.to(device))
        if isinstance(self._batches, list) and len(self._batches) == 1:
            self._kept = multiply
        return multiply


def _choose_parameter_names(model: nn.Module, parameters: Iterable[str] | None) -> set[str]:
    """The names in `parameters`, by default of all trained ones; unknown names and several dtypes are refused."""
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


def _check_modules(model: nn.Module) -> None:
    """Refuse modules whose output is random or depends on the other examples of a batch."""
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


def _check_order(batches: DataBatches) -> None:
    """Refuse batches that are known, without reading them, to shuffle, to drop examples or to end after one pass."""
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


def _check_values(model: nn.Module, loss: LossFunction, batches: DataBatches) -> int:
    """The number of examples; refuses batches that are empty or change, random outputs, and losses without a Hessian.

    One forward pass over the data without gradients, and a second one over the first batch, on which the loss is
    probed.
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
