"""Hessian and Gauss-Newton matrix of a network's loss as SciPy operators, mean per example.

Neither matrix is ever built. A product with the Hessian is the derivative of gradient . vector (Pearlmutter 1994,
section 2), taken through the graph of the gradient. Both matrices are linear in the examples, so that the matrix of a
whole data set is the mean of those of its batches, each weighted by its number of examples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from descent.curvature.checks import (
    DataBatches,
    LossFunction,
    check_modules,
    check_order,
    check_values,
    chosen_parameter_names,
)

Array = NDArray[np.float64]
Parts = Sequence[Tensor]  # a vector in weight space, cut into the shapes of the parameters
BatchProduct = Callable[[Parts], Parts]
BatchMatrix = Callable[[nn.Module, LossFunction, Parts, Tensor, Tensor], BatchProduct]


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
        check_modules(model)
        check_order(batches)
        names = chosen_parameter_names(model, parameters)
        self._model, self._loss, self._of_batch = copy.deepcopy(model), loss, of_batch
        self._model.zero_grad(set_to_none=True)
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name in names)
        self._weights = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._batches = list(batches) if isinstance(batches, list | tuple) else batches
        with sdpa_kernel(SDPBackend.MATH):
            self._examples = check_values(self._model, loss, self._batches)
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
