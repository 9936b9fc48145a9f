"""Hessian and Gauss-Newton matrix of a network's loss as SciPy operators, mean per example.

Neither matrix is ever built. A product with the Hessian is the derivative of gradient . vector (Pearlmutter 1994,
section 2), taken through the graph of the gradient. Both matrices are linear in the examples, so that the matrix of a
whole data set is the mean of those of its batches, each weighted by its number of examples. What such products need of
model, loss and data is checked before the first one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, RandomSampler

from descent.curvature.checks import (
    Batch,
    BatchHessian,
    Loss,
    Parts,
    Product,
    check_batches,
    count_examples,
    differentiate,
    flat,
    prepare,
    split,
    trained,
    uncached,
)

Array = NDArray[np.float64]
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
WRAPPERS = {"OptimizedModule", "ScriptModule", "DistributedDataParallel", "FullyShardedDataParallel"}


def hessian(
    model: nn.Module, loss: Loss, batches: Iterable[Batch], parameters: Iterable[str] | None = None
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
        loss: `loss(model, batch)`, a scalar that is a mean over the examples of a batch. A penalty that reads the
            weights of `model`, the copy that the loss is given, counts.
        batches: tuples such as (inputs, targets), or lists or dicts, of tensors with one row an example; the same at
            every pass: a list of them, or a loader that neither shuffles nor drops.
        parameters: names of the parameters to differentiate by, float32 or float64; None takes all trained ones. Always
            in the order of `model.named_parameters()`, flat as by `descent.models.flat_weights.flatten`; a tied weight
            counts once, by any of its names.

    Raises:
        ValueError: before any product is computed, with the culprit's name: batches that shuffle, drop examples, are
            empty or change between passes; dropout, batch statistics or any random numbers in the forward pass; a model
            that cannot be copied or is compiled; a loss that is not a finite scalar, not a mean per example on each
            batch and on two together, not differentiable, or piecewise linear; a loss that depends on trainable tensors
            other than the given model's; an unknown parameter; products that are not symmetric, or not the derivative
            of the gradient, as torch's own are for some layers. From a product: a complex vector.

    Examples:
        The loss w^2 - 3 w of a single weight, at any batch size, has curvature 2:

        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> batch = torch.ones(6, 1).double(), torch.full((6, 1), 1.5).double()
        >>> operator = hessian(model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), [batch])
        >>> operator.shape, operator @ np.array([1.0])
        ((1, 1), array([2.]))
    """
    return _MeanOverBatches(BatchHessian(), model, loss, batches, parameters)


def gauss_newton(
    model: nn.Module, loss: Loss, batches: Iterable[Batch], parameters: Iterable[str] | None = None
) -> LinearOperator:
    """The generalised Gauss-Newton matrix, `(P, P)`: mean over examples of J^T (d^2 loss / d outputs^2) J.

    This is the Hessian without the network's own second derivative (Schraudolph 2002, section 3). It is positive
    semi-definite when the loss is convex in the outputs, as cross-entropy and squared error are. Arguments, units and
    errors are those of `hessian`; one product costs about three gradients when `batches` holds one batch.

    Raises:
        ValueError: as `hessian`; and a loss that reads weights beside the outputs, or does not call the model exactly
            once; a model that returns anything but one tensor of real numbers.

    Examples:
        A linear model has no second derivative of its own, so that both matrices are the same:

        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> batch = torch.eye(2).double(), torch.zeros(2, 1).double()
        >>> gauss_newton(model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), [batch]) @ np.eye(2)
        array([[1., 0.],
               [0., 1.]])
    """
    return _MeanOverBatches(_BatchGaussNewton(), model, loss, batches, parameters)


class _BatchGaussNewton(BatchHessian):
    """The Gauss-Newton matrix of a loss on one batch."""

    reads_weights = False

    def value(self, model: nn.Module, loss: Loss, batch: Batch) -> Tensor:
        return self._outputs(model, loss, batch)[2]

    def gradient(self, model: nn.Module, at: nn.Module, loss: Loss, batch: Batch) -> Parts:
        _, point, value = self._outputs(at, loss, batch)
        slope = torch.autograd.grad(value, point, materialize_grads=True)
        outputs, _, _ = self._outputs(model, loss, batch)
        return torch.autograd.grad(outputs, trained(model), slope, materialize_grads=True)

    def product(self, model: nn.Module, loss: Loss, batch: Batch) -> Product:
        weights = trained(model)
        outputs, point, value = self._outputs(model, loss, batch)
        slope = torch.autograd.grad(value, point, create_graph=True, materialize_grads=True)
        # J^T z is linear in z, so that its derivative along a vector is J vector: no forward mode is needed
        z = torch.zeros_like(outputs, requires_grad=True)
        pulled_back = torch.autograd.grad(outputs, weights, z, create_graph=True, materialize_grads=True)

        def multiply(vector: Parts) -> Parts:
            pushed = differentiate(pulled_back, [z], vector)
            return differentiate([outputs], weights, differentiate(slope, [point], pushed))

        return multiply

    def _outputs(self, model: nn.Module, loss: Loss, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The model's outputs, the leaf that the loss gets in their place, and the loss of it."""
        calls: list[tuple[Any, Any]] = []

        def stand_in(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
            real = isinstance(outputs, Tensor) and outputs.is_floating_point()
            calls.append((outputs, outputs.detach().requires_grad_() if real else outputs))
            return calls[-1][1]

        handle = model.register_forward_hook(stand_in)
        try:
            value = loss(model, batch)
        finally:
            handle.remove()
        if len(calls) != 1:
            raise ValueError(f"loss calls the model {len(calls)} times: expected model(...) once, or hessian")
        outputs, point = calls[0]
        if not isinstance(outputs, Tensor) or point is outputs:
            what = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"the model returned {what}: expected one tensor of real numbers, or hessian")
        return outputs, point, value


class _MeanOverBatches(LinearOperator):  # type: ignore[misc]
    """The symmetric matrix of a data set: the mean of a batch's matrix over batches, weighted by their examples."""

    def __init__(
        self,
        matrix: BatchHessian,
        model: nn.Module,
        loss: Loss,
        batches: Iterable[Batch],
        parameters: Iterable[str] | None,
    ) -> None:
        _check_modules(model)
        _check_order(batches)
        names = _choose_parameter_names(model, parameters)
        with _twice_differentiable(model):
            self._model = _copy_model(model, names)
            self._weights, self._loss, self._matrix_of = trained(self._model), _guarded(loss), matrix
            self._batches = list(batches) if isinstance(batches, list | tuple) else batches
            self._examples = check_batches(matrix, (self._model, model), self._loss, self._batches)
        self._kept: Product | None = None  # of the only batch
        size = sum(weight.numel() for weight in self._weights)
        super().__init__(np.float64, (size, size))

    def _matmat(self, matrix: Array) -> Array:
        if np.iscomplexobj(matrix):
            raise ValueError(f"vector of {matrix.dtype}: expected real numbers, the real and the imaginary part apart")
        like, exponents = self._weights[0], np.frexp(np.abs(matrix).max(0))[1]
        scaled = np.ldexp(matrix, -exponents)  # by powers of two, which round nothing, into the range of float32
        rows = torch.as_tensor(scaled.T, dtype=like.dtype, device=like.device).contiguous()
        vectors = [split(row, self._weights) for row in rows]
        total, examples = torch.zeros_like(rows), 0
        with uncached(like.device):
            for count, multiply in self._products():
                examples += count
                for row, vector in zip(total, vectors, strict=True):
                    row.add_(flat(multiply(vector)), alpha=count / self._examples)
        if examples != self._examples:
            raise ValueError(f"batches held {self._examples} examples and now {examples}: expected the same each time")
        product: Array = np.ldexp(total.T.double().cpu().numpy(), exponents)
        return product

    def _matvec(self, vector: Array) -> Array:
        return self._matmat(vector.reshape(-1, 1))[:, 0]

    def _adjoint(self) -> LinearOperator:
        return self

    def _products(self) -> Iterator[tuple[int, Product]]:
        """Of each batch its number of examples and its product."""
        if self._kept is not None:
            yield self._examples, self._kept
            return
        for number, batch in enumerate(self._batches):
            with _twice_differentiable(self._model):
                multiply = self._matrix_of.product(self._model, self._loss, prepare(batch, self._weights[0].device))
            if isinstance(self._batches, list) and len(self._batches) == 1:
                self._kept = multiply
            yield count_examples(batch, number), multiply


@contextmanager
def _twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Let autograd work as for training, whatever the caller has set, with kernels that have second derivatives."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
        with uncached(next(model.parameters()).device), cudnn:
            yield


def _guarded(loss: Loss) -> Loss:
    """The loss, whose own failures are told as those of a wrong argument."""

    def call(model: nn.Module, batch: Batch) -> Tensor:
        try:
            return loss(model, batch)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"loss(model, batch) fails: {type(error).__name__}: {error}; expected a function of both, for any "
                "number of rows, such as lambda model, batch: cross_entropy(model(batch[0]), batch[1])"
            ) from error

    return call


def _copy_model(model: nn.Module, names: set[str]) -> nn.Module:
    """A copy in which the named parameters alone require gradients, all of them dense."""
    try:
        copied = copy.deepcopy(model)
    except RuntimeError as error:
        for name, module in model.named_modules():
            for key, value in vars(module).items():
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    raise ValueError(
                        f"{type(module).__name__} {name!r} cannot be copied, since it keeps a computed tensor {key!r}: "
                        "expected it detached, or torch.nn.utils.parametrizations in place of weight_norm's hooks"
                    ) from error
        raise
    copied.zero_grad(set_to_none=True)
    for name, parameter in copied.named_parameters():
        parameter.requires_grad_(name in names)
    for module in copied.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False  # the gradient is the same, and a sparse one has no derivative
    return copied


def _choose_parameter_names(model: nn.Module, parameters: Iterable[str] | None) -> set[str]:
    """The names in `parameters`, by default of all trained ones; what has no real second derivative is refused."""
    named, every = dict(model.named_parameters()), dict(model.named_parameters(remove_duplicate=False))
    if isinstance(parameters, str):
        raise ValueError(f"parameters={parameters!r}: expected a list of names")
    asked = [n for n, p in named.items() if p.requires_grad] if parameters is None else list(parameters)
    if unknown := [name for name in asked if name not in every]:
        raise ValueError(f"parameter {unknown[0]!r}: expected one of {', '.join(named)}")
    chosen = {name: p for name, p in named.items() if any(p is every[other] for other in asked)}
    if not chosen:
        raise ValueError("parameters: expected at least one, and the model trains none")
    for name, parameter in chosen.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"parameter {name!r} has no shape yet: expected a lazy model that has run once")
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"parameter {name!r} is {parameter.dtype}: expected float32 or float64")
        for other, same in chosen.items():
            (start, end), (first, last) = _span(same), _span(parameter)
            if same is not parameter and max(start, first) < min(end, last):
                raise ValueError(
                    f"parameters {name!r} and {other!r} share memory: expected one parameter, tied by name"
                )
    kinds = {f"{parameter.dtype} on {parameter.device}" for parameter in chosen.values()}
    if len(kinds) > 1:
        raise ValueError(f"parameters of {' and '.join(sorted(kinds))}: expected one dtype on one device")
    return set(chosen)


def _span(part: Tensor) -> tuple[int, int]:
    """The addresses in memory from its first number to behind its last."""
    steps = sum((size - 1) * step for size, step in zip(part.shape, part.stride(), strict=True))
    return part.data_ptr(), part.data_ptr() + (steps + 1) * part.element_size() * (part.numel() > 0)


def _check_modules(model: nn.Module) -> None:
    """Refuse modules whose output is random or depends on the other examples of a batch, and compiled ones."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    for name, module in model.named_modules():
        what = f"{type(module).__name__} {name!r}"
        if WRAPPERS & {kind.__name__ for kind in type(module).__mro__}:
            raise ValueError(f"{what} has no second derivative: expected the module that it was made from")
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"{what} is in training mode: products would be random; expected model.eval()")
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if batch_norm and (module.training or module.running_mean is None):
            raise ValueError(f"{what} uses each batch's own statistics: expected model.eval() with running statistics")
        if isinstance(module, NORMS) and module.training and module.running_mean is not None:
            raise ValueError(f"{what} is in training mode and would move its statistics: expected model.eval()")


def _check_order(batches: Iterable[Batch]) -> None:
    """Refuse batches that are known, without reading them, to shuffle, to drop examples or to end after one pass."""
    if isinstance(batches, Iterator):
        raise ValueError(f"batches is a {type(batches).__name__}, spent after one pass: expected a list or a loader")
    if isinstance(batches, Tensor | dict) or not hasattr(batches, "__iter__"):
        raise ValueError(f"batches is a {type(batches).__name__}: expected a list of batches, or a loader")
    if not isinstance(batches, DataLoader):
        return
    batching: Any = batches.batch_sampler
    sampler = getattr(batching, "sampler", None)
    if isinstance(sampler, RandomSampler):
        raise ValueError("the loader draws its order with a RandomSampler: expected shuffle=False")
    if isinstance(sampler, Sized) and batching.drop_last and (rest := len(sampler) % batching.batch_size):
        raise ValueError(f"the loader drops the last {rest} of {len(sampler)} examples: expected drop_last=False")
