"""Hessian and Gauss-Newton matrix of a network's loss as scipy operators, mean per example.

The operators are curvlinops' (Dangel et al. 2025, "Position: Curvature matrices should be democratized via linear
operators"). The Hessian's product with a vector is the derivative of gradient . vector (Pearlmutter 1994) through a
graph of the gradient, which one batch keeps between products: half the time of forward-over-reverse and as exact.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from descent.curvature.checks import (
    DataBatches,
    LossFunction,
    check_loss_type,
    check_modules,
    check_order,
    check_values,
    chosen_parameter_names,
)

with warnings.catch_warnings():  # torch compiles its forward-mode rules with torch.jit.script, which it deprecates
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))  # loads them now rather than in a first product
    from curvlinops import GGNLinearOperator, HessianLinearOperator


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
            `model.named_parameters()`, flat as by `descent.models.vectors.flatten`.

    Raises:
        ValueError: before any product is computed, with the culprit's name: batches that shuffle, drop examples, are
            empty or change between passes; dropout or batch statistics in training mode; a loss that is not a finite
            scalar, not a mean per example, not differentiable, or piecewise linear; an unknown parameter.
    """
    net, chosen, data, criterion = _checked(model, loss, batches, parameters)
    operator = _Hessian(net, criterion, chosen, data, check_deterministic=False)
    operator.keep = len(data) == 1 if isinstance(data, list) else False
    return operator.to_scipy(np.float64)


def gauss_newton(
    model: nn.Module, loss: LossFunction, batches: DataBatches, parameters: Iterable[str] | None = None
) -> LinearOperator:
    """The generalised Gauss-Newton matrix, `(P, P)`: mean over examples of J^T (d^2 loss / d outputs^2) J.

    The Hessian without the network's own second derivative (Schraudolph 2002); positive semi-definite when the loss is
    convex in the outputs, as cross-entropy and squared error are. Everything else is as in `hessian`; one product costs
    two to four gradients, fewer in a matrix of vectors, more for tiny networks.

    Raises:
        ValueError: as `hessian`.
    """
    net, chosen, data, criterion = _checked(model, loss, batches, parameters)
    return GGNLinearOperator(net, criterion, chosen, data, check_deterministic=False).to_scipy(np.float64)


class _Criterion(nn.Module):
    """Any callable loss in the form that curvlinops reads: a module whose reduction is a mean."""

    reduction = "mean"

    def __init__(self, loss: LossFunction) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs, targets)


class _Hessian(HessianLinearOperator):  # type: ignore[misc]
    """Curvlinops' Hessian, with the product of a batch through the graph of its gradient."""

    keep = False
    _kept: list[Tensor] | None = None

    def _gradient(self, X: Tensor, y: Tensor) -> list[Tensor]:
        if self._kept is not None:
            return self._kept
        loss = self._loss_func(self._model_func(X), y)
        gradient = list(torch.autograd.grad(loss, self._params, create_graph=True, materialize_grads=True))
        self._kept = gradient if self.keep else None
        return gradient

    def _matmat_batch(self, X: Tensor, y: Tensor, M: list[Tensor]) -> list[Tensor]:
        columns = M[0].shape[-1]
        with torch.enable_grad():  # the caller may be inside no_grad
            gradient = self._gradient(X, y)
        moving = [i for i, part in enumerate(gradient) if part.requires_grad]  # the others do not depend on weights
        if not moving:
            return [torch.zeros_like(m) for m in M]
        products = [
            torch.autograd.grad(
                [gradient[i] for i in moving],
                self._params,
                [M[i][..., column] for i in moving],
                retain_graph=self.keep or column + 1 < columns,
                materialize_grads=True,
            )
            for column in range(columns)
        ]
        return [torch.stack(parts, -1) for parts in zip(*products, strict=True)]


def _checked(
    model: nn.Module, loss: LossFunction, batches: DataBatches, parameters: Iterable[str] | None
) -> tuple[nn.Module, list[nn.Parameter], Any, nn.Module]:
    """A copy of the model, its chosen parameters, the batches and the loss, all found fit for a Hessian."""
    check_modules(model)
    check_loss_type(loss)
    check_order(batches)
    names = chosen_parameter_names(model, parameters)
    net = copy.deepcopy(model)
    net.zero_grad(set_to_none=True)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in names)
    data = list(batches) if isinstance(batches, list | tuple) else batches
    criterion = _Criterion(loss)
    check_values(net, criterion, data)
    return net, [p for name, p in net.named_parameters() if name in names], data, criterion
