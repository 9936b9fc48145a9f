"""One training step of the toy models: inputs of chosen density, and the gradient written out.

The gradient of L = mean I (ReLU(z) - x)^2, z = W^T h + b, h = W x, is with g = 2 I (ReLU(z) - x) [z > 0] / (B n)

    dL/db = sum g,    dL/dW = h g^T + (W g) x^T,

the sums over the batch of B rows: five matrix products, as many as automatic differentiation makes. What is saved is
around them: models go through in blocks that the cache holds, large arrays are written in place, importances and
1 / (B n) multiply the small result, and an input costs one uniform number u: x = max(0, (u - 1 + d) / d) is 0 with
probability 1 - d. Inputs are `(models, features, batch)`: with the batch along a row products of small models are
many times faster than with the features along them, and those of large ones no slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from descent.repro.seeding import numpy_generator, torch_generator

KINDS = ("relu", "linear", "layernorm")
PAIRINGS = ("independent", "correlated", "anticorrelated")
BLOCK = 1 << 18  # numbers in one array of a block, 1 MiB
GPU_BLOCK = 1 << 26  # a GPU wants few and large products
EPSILON = 1e-5  # of the layer normalisation


class Models(Protocol):
    """What a step has to know of its models; see `toy_models.Toys`."""

    @property
    def n(self) -> int:
        """Features."""

    @property
    def seeds(self) -> Sequence[int]:
        """One per model."""

    @property
    def kind(self) -> str:
        """One of KINDS."""

    @property
    def pairing(self) -> str:
        """One of PAIRINGS."""

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Density, importance, noise."""


class ToyInputs:
    """Batches of inputs for some models, from one stream of uniform numbers for each different seed.

    Args:
        models: what they are.
        batch: rows.
        name: of the streams.
        device: where the batches are wanted; they are drawn on the CPU.
    """

    def __init__(
        self, models: Models, batch: int, name: str = "toy inputs", device: torch.device | str = "cpu"
    ) -> None:
        different = sorted(set(models.seeds))
        n, noisy = models.n, bool(models.tensors()[2].any())
        self.batch, self.n, self.pairing = batch, n, models.pairing
        self.stream = torch.tensor([different.index(seed) for seed in models.seeds])
        self._sources = [numpy_generator(seed, name) for seed in different]  # torch's are slower by a half
        self._noises = [torch_generator(seed, f"{name}, noise") for seed in different]
        self._drawn = torch.empty(1 + noisy, len(different), n, batch)
        self.device = torch.device(device)
        together = next(model_blocks(len(models.seeds), batch * n, self.device)).stop
        self.space = torch.empty(3, together, n, batch, device=self.device)  # x, x', error of a block: written anew
        self._hand_over()

    def draw(self) -> None:
        """The next batch of every stream."""
        uniforms, *gaussians = self._drawn
        for source, uniform in zip(self._sources, uniforms, strict=True):
            source.random(out=uniform.numpy(), dtype=np.float32)
        if self.pairing == "anticorrelated":  # u near 1 switches the first of a pair on, u near 0 the second
            torch.sub(1, uniforms[:, ::2], out=uniforms[:, 1::2])
        for drawn in gaussians:
            for generator, gaussian in zip(self._noises, drawn, strict=True):
                gaussian.normal_(generator=generator)
        self._hand_over()

    def _hand_over(self) -> None:
        """The numbers as they are used: on the CPU the same memory."""
        self.uniform, *gaussians = self._drawn.to(self.device)
        self.gaussian = gaussians[0] if gaussians else None

    def block(self, models: slice, density: Tensor, noise: Tensor, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs of some models, and the same with their noise: `(j, n, batch)` each, one array where there is none.

        The inputs are written to `into` where it is given.
        """
        stream = self.stream[models]
        one = bool((stream == stream[0]).all())
        rows = stream.to(self.device)
        uniform = self.uniform[int(stream[0])] if one else self.uniform.index_select(0, rows)
        slope = 1 / density[models].unsqueeze(-1)
        x = torch.mul(uniform, slope, out=into)  # addcmul takes longer than these three
        x.add_(1 - slope).clamp_(min=0)
        if self.pairing == "correlated":
            x[:, 1::2] = uniform[..., 1::2, :] * (x[:, ::2] > 0)  # its value has a uniform number of its own
        if self.gaussian is None:
            return x, x
        gaussian = self.gaussian[int(stream[0])] if one else self.gaussian.index_select(0, rows)
        return x, torch.addcmul(x, gaussian, noise[models].unsqueeze(-1))


def model_blocks(count: int, size: int, device: torch.device) -> Iterator[slice]:
    """Slices of models of which each array has about BLOCK numbers (GPU_BLOCK on a GPU), `size` a model."""
    step = max(1, (BLOCK if device.type == "cpu" else GPU_BLOCK) // size)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _normalised(h: Tensor) -> tuple[Tensor, Tensor]:
    """Columns with mean 0 and variance 1, and what they were divided by, inverted."""
    centred = h - h.mean(-2, keepdim=True)
    factor = centred.square().mean(-2, keepdim=True).add_(EPSILON).rsqrt_()
    return centred.mul_(factor), factor


def _back_through(y: Tensor, factor: Tensor, dy: Tensor) -> Tensor:
    """The gradient before the normalisation from that after it."""
    along = (dy * y).mean(-2, keepdim=True)
    return dy.sub_(dy.mean(-2, keepdim=True)).sub_(y * along).mul_(factor)


def toy_gradients(W: Tensor, b: Tensor, inputs: ToyInputs, models: Models, losses: bool) -> Tensor | None:
    """Write the gradients of this batch into `W.grad` and `b.grad`; the losses `(k,)` if asked for.

    Args:
        W: `(k, m, n)`, with a gradient to overwrite.
        b: `(k, n)`, likewise.
        inputs: after its `draw`.
        models: their kind and numbers.
        losses: whether they are wanted, one more pass.
    """
    density, importance, noise = (values.to(W.device) for values in models.tensors())
    found = torch.empty(len(W), device=W.device) if losses else None
    assert W.grad is not None
    assert b.grad is not None
    for part in model_blocks(len(W), inputs.batch * inputs.n, W.device):
        w, weight = W[part], importance[part].unsqueeze(1)
        x, out, error = inputs.space[:, : len(w)]
        x, seen = inputs.block(part, density, noise, x)
        h = torch.bmm(w, seen)
        y, factor = _normalised(h) if models.kind == "layernorm" else (h, h)
        torch.bmm(w.mT, y, out=out).add_(b[part].unsqueeze(-1))
        torch.sub(out, x, out=error)
        if found is not None:
            error = _error(out, x, models.kind)
            found[part] = (error.square().sum(2) * weight[:, 0]).sum(1) / (inputs.batch * inputs.n)
        if models.kind != "linear":  # nothing passes where the ReLU is off
            torch.ops.aten.threshold_backward.grad_input(error, out, 0, grad_input=error)
        b.grad[part] = error.sum(2) * weight[:, 0]
        back = torch.bmm(w * weight, error)
        if models.kind == "layernorm":
            back = _back_through(y, factor, back)
        W.grad[part] = torch.bmm(y, error.mT).mul_(weight).baddbmm_(back, seen.mT)
    for grad in (W.grad, b.grad):
        grad.mul_(2 / (inputs.batch * inputs.n))
    return found


def _error(out: Tensor, x: Tensor, kind: str) -> Tensor:
    """ReLU(out) - x, or out - x; `out` becomes its ReLU."""
    return torch.sub(out if kind == "linear" else out.clamp_(min=0), x)


def batch_losses(W: Tensor, b: Tensor, inputs: ToyInputs, models: Models) -> Tensor:
    """Losses `(k,)` of this batch, mean over rows and features, weighted by importance."""
    density, importance, noise = (values.to(W.device) for values in models.tensors())
    found = torch.empty(len(W), device=W.device)
    for part in model_blocks(len(W), inputs.batch * inputs.n, W.device):
        x, seen = inputs.block(part, density, noise)
        h = torch.bmm(W[part], seen)
        y = _normalised(h)[0] if models.kind == "layernorm" else h
        error = _error(torch.bmm(W[part].mT, y).add_(b[part].unsqueeze(-1)), x, models.kind)
        found[part] = (error.square().mean(2) * importance[part]).mean(1)
    return found


def reconstruct_inputs(W: Tensor, b: Tensor, x: Tensor, kind: str = "relu") -> Tensor:
    """The textbook's x', `(batch, k, n)` from inputs of that shape: what automatic differentiation can go through.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    h = torch.einsum("bkn,kmn->bkm", x, W)
    if kind == "layernorm":
        h = torch.nn.functional.layer_norm(h, h.shape[-1:], eps=EPSILON)
    out = torch.einsum("bkm,kmn->bkn", h, W) + b
    return out if kind == "linear" else torch.relu(out)
