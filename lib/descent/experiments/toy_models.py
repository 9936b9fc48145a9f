"""The toy models of superposition, many trained at once (Elhage et al. 2022, Toy Models of Superposition).

A model stores n features in m dimensions and reads them out by the same map: x' = ReLU(W^T W x + b), W `(m, n)`.
Feature i is 0 with probability 1 - d_i, its density being d_i, else uniform on 0 to 1. The loss is the mean over batch
and features of I_i (x_i - x'_i)^2. Tensors of several models have their number first: W is `(k, m, n)`, b `(k, n)`.

Everything random of a model comes from its own seed: its weights do not depend on those trained beside it, bit for bit.
So that every model's arrays begin alike in memory, a batch is filled up to a multiple of 16 rows, which do not count.
Models of one seed start at the same weights and see the same uniform numbers, each as inputs of its own density.

The gradient is written out. With z = W^T h + b, h = W x and g = 2 I (ReLU(z) - x) [z > 0] / (B n),

    dL/db = sum g,    dL/dW = h g^T + (W g) x^T,

summed over the B rows of the batch. Models are taken in blocks that fit the cache, large arrays are written in place,
and an input costs one uniform number u: x = max(0, (u - 1 + d) / d) is 0 with probability 1 - d. Inputs are `(models,
features, batch)`: products of small models are faster with the batch along a row, and those of large ones no slower.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from threading import Event
from typing import cast

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from descent.repro.machine import compute_device, keep_freed_memory
from descent.repro.numbers import as_real, check_whole
from descent.repro.seeding import deterministic, numpy_generator, torch_generator
from descent.training.loop import DivergenceError

KINDS = ("relu", "linear", "layernorm")
BLOCK = 1 << 19  # numbers in one array of a block, 2 MiB
GPU_BLOCK = 1 << 26  # a GPU wants few and large products
EPSILON = 1e-5  # of the layer normalisation
FLOAT = torch.float32  # whatever the default type: a seed decides the numbers
LANES = 64  # what fills no whole vector register is rounded differently: bits would depend on a model's neighbours
ROWS = 16  # of float32, a cache line: products of matrices that begin elsewhere in one are rounded differently, too
LEAST_DENSITY = 2.0**-16  # below it, uniform numbers of 24 bits leave a feature that is present less than 256 values


def _tensor(values: object, name: str) -> Tensor:
    """Real numbers in any form, as float32 on the CPU."""
    return torch.from_numpy(np.array(as_real(values, name), float)).to(FLOAT)  # of any width and order of bytes


def _per_feature(values: float | Sequence[float] | Tensor, count: int, n: int, name: str) -> Tensor:
    """A number, one per model `(k,)`, or one per model and feature `(k, n)`, expanded to `(k, n)` float32."""
    given = _tensor(values, name)
    if given.ndim == 1 and len(given) == count == n > 1:
        raise ValueError(f"{name} of shape ({n},): give ({n}, 1), one for each model, or (1, {n}), for each feature")
    given = given.unsqueeze(-1) if given.ndim == 1 else given
    if given.ndim > 2 or (given.ndim == 2 and not (given.shape[0] in (1, count) and given.shape[1] in (1, n))):
        expected = f"a number, {count} of them, or ({count} or 1, {n})"
        raise ValueError(f"{name} of shape {tuple(given.shape)}: expected {expected}")
    return given.expand(count, n).contiguous()


@dataclass(frozen=True)
class ToyModels:
    """The settings of k models.

    Attributes:
        n: number of features.
        m: number of dimensions.
        seeds: one per model; their number decides how many models there are.
        density: probability that a feature is not 0: a number, `(k, n)`, `(k, 1)`, `(1, n)` or, unless k = n, `(k,)`.
        importance: the I_i, in the same forms.
        noise: standard deviation of Gaussian noise on the inputs, which the target does not have; a number or `(k,)`.
        kind: "relu"; "linear", without the ReLU; or "layernorm", ReLU(W^T LN(W x) + b) with LN without parameters.

    Raises:
        ValueError: a size below 1, no seed, a value out of range or of a shape that means two things, an unknown kind;
            a density below LEAST_DENSITY; a model whose largest importance is outside 1e-6 to 1e12, where Adam's
            epsilon would outweigh the gradients, or their squares leave float32.
    """

    n: int
    m: int
    seeds: Sequence[int]
    density: float | Sequence[float] | Tensor = 1.0
    importance: float | Sequence[float] | Tensor = 1.0
    noise: float | Sequence[float] | Tensor = 0.0
    kind: str = "relu"

    def __post_init__(self) -> None:
        if not hasattr(self.seeds, "__len__"):
            raise ValueError(f"seeds={self.seeds}: expected a sequence, one for each model")
        check_whole(n=self.n, m=self.m, seeds=len(self.seeds))
        for seed in self.seeds:
            check_whole(0, seed=seed)
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: expected one of {', '.join(KINDS)}")
        for name in ("density", "importance", "noise"):
            filled = _per_feature(getattr(self, name), len(self), 1 if name == "noise" else self.n, name)
            object.__setattr__(self, name, filled)
        density, importance, noise = self.tensors()
        if not (density.min() >= LEAST_DENSITY and density.max() <= 1):
            ends = f"{float(density.min()):g} to {float(density.max()):g}"
            raise ValueError(f"density={ends}: expected above 0 and at most 1, and at least {LEAST_DENSITY:g}")
        if not (importance.min() > 0 and noise.min() >= 0 and (importance.max() + noise.max()).isfinite()):
            low = f"importance={float(importance.min()):g}, noise={float(noise.min()):g}"
            raise ValueError(f"{low}: expected importances above 0 and noise of at least 0, none infinite")
        if not ((largest := importance.amax(1)).min() >= 1e-6 and largest.max() <= 1e12):
            ends = f"{float(largest.min()):g} to {float(largest.max()):g}"
            raise ValueError(f"importance: the largest of each model is {ends}, expected 1e-06 to 1e+12")

    def __len__(self) -> int:
        return len(self.seeds)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Density `(k, n)`, importance `(k, n)`, noise `(k, 1)`."""
        return cast("tuple[Tensor, Tensor, Tensor]", (self.density, self.importance, self.noise))

    def part(self, chosen: Sequence[int] | NDArray[np.integer]) -> ToyModels:
        """The models with these numbers; raises ValueError for a mask, or a number that none has."""
        numbers = np.asarray(list(chosen))
        if numbers.dtype.kind not in "iu" or numbers.ndim != 1 or not ((numbers >= 0) & (numbers < len(self))).all():
            raise ValueError(f"models {numbers}: expected their numbers, 0 to {len(self) - 1}")
        seeds = [self.seeds[number] for number in numbers]
        density, importance, noise = (values[numbers] for values in self.tensors())
        return replace(self, seeds=seeds, density=density, importance=importance, noise=noise)

    def start(self) -> Tensor:
        """Initial W `(k, m, n)`: Gaussian with Xavier's variance 2 / (m + n), each model's from its own seed."""
        sources = [torch_generator(seed, "toy weights") for seed in self.seeds]
        drawn = [torch.randn(self.m, self.n, generator=source, dtype=FLOAT, device="cpu") for source in sources]
        return torch.stack(drawn).mul_(math.sqrt(2 / (self.m + self.n)))


class ToyInputs:
    """Batches of inputs for some models, from one stream of uniform numbers for each different seed.

    The streams are called `name`; their numbers are drawn on the CPU, `batch` rows at once, and go to `device`. There
    are `width` rows, a multiple of ROWS; those beyond `batch` are for place alone.
    """

    def __init__(
        self, models: ToyModels, batch: int, name: str = "toy inputs", device: torch.device | str = "cpu"
    ) -> None:
        check_whole(batch=batch)
        different = sorted(set(models.seeds))
        density, _, noise = models.tensors()
        self.batch, self.n, self.width = batch, models.n, -(-batch // ROWS) * ROWS
        self.stream = torch.tensor([different.index(seed) for seed in models.seeds], device="cpu")
        self._sources = [numpy_generator(seed, name) for seed in different]  # torch's are slower by a half
        self._noises = [torch_generator(seed, f"{name}, noise") for seed in different]
        shape = 1 + bool(noise.any()), len(different), self.n, self.width
        self._drawn = torch.empty(shape, dtype=FLOAT, device="cpu")
        self.device = torch.device(device)
        self.slope, self.noise = (values.to(self.device).unsqueeze(-1) for values in (1 / density, noise))
        together = next(model_blocks(len(models), batch * self.n, self.device)).stop
        shape = 3, together, self.n, self.width  # x, x' and error of a block, reused
        self.space = torch.empty(shape, device=self.device, dtype=FLOAT)

    def draw(self) -> None:
        """Draw the next batch of every stream."""
        uniforms, *gaussians = self._drawn
        for source, uniform in zip(self._sources, uniforms, strict=True):
            source.random(out=uniform.numpy(), dtype=np.float32)
        for drawn in gaussians:
            for generator, gaussian in zip(self._noises, drawn, strict=True):
                gaussian.normal_(generator=generator)
        self.uniform, *there = self._drawn.to(self.device)  # on the CPU in the same memory
        self.gaussian = there[0] if there else None

    def block(self, models: slice, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs of some models, and with noise, `(j, n, batch)`; after a `draw`. `into` is filled with all `width`."""
        batch = slice(self.batch if into is None else self.width)
        stream = self.stream[models]
        one = bool((stream == stream[0]).all())
        rows = stream.to(self.device)
        uniform = (self.uniform[int(stream[0])] if one else self.uniform.index_select(0, rows))[..., batch]
        slope = self.slope[models]
        x = torch.mul(uniform, slope, out=into)  # addcmul takes longer than these three
        x.add_(1 - slope).clamp_(min=0)
        if self.gaussian is None:
            return x, x
        gaussian = self.gaussian[int(stream[0])] if one else self.gaussian.index_select(0, rows)
        return x, torch.addcmul(x, gaussian[..., batch], self.noise[models])


def model_blocks(count: int, size: int, device: torch.device) -> Iterator[slice]:
    """Slices of `count` models, so that an array with `size` numbers per model has BLOCK of them, or GPU_BLOCK."""
    step = max(1, (BLOCK if device.type == "cpu" else GPU_BLOCK) // size)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _normalised(h: Tensor) -> tuple[Tensor, Tensor]:
    """The columns at mean 0 and variance 1, and the inverse of what each was divided by."""
    centred = h - h.mean(-2, keepdim=True)
    factor = centred.square().mean(-2, keepdim=True).add_(EPSILON).rsqrt_()
    return centred.mul_(factor), factor


def _back_through(y: Tensor, factor: Tensor, dy: Tensor) -> Tensor:
    """The gradient before the normalisation, from the gradient `dy` after it."""
    along = (dy * y).mean(-2, keepdim=True)
    return dy.sub_(dy.mean(-2, keepdim=True)).sub_(y * along).mul_(factor)


def toy_gradients(W: Tensor, b: Tensor, inputs: ToyInputs, models: ToyModels, losses: bool) -> Tensor | None:
    """Write the gradients of this batch, after a `draw`, into `W.grad` `(k, m, n)` and `b.grad` `(k, n)`.

    Returns:
        The losses `(k,)` if they are asked for, which takes one more pass.
    """
    importance = models.tensors()[1].to(W.device)
    measured = torch.empty(len(W), device=W.device, dtype=W.dtype) if losses else None
    assert W.grad is not None
    assert b.grad is not None
    for part in model_blocks(len(W), inputs.batch * inputs.n, W.device):
        w, weight = W[part], importance[part].unsqueeze(1)
        x, out, error = inputs.space[:, : len(w)]
        x, seen = inputs.block(part, x)
        h = torch.bmm(w, seen)
        y, factor = _normalised(h) if models.kind == "layernorm" else (h, h)
        torch.bmm(w.mT, y, out=out).add_(b[part].unsqueeze(-1))
        error = torch.sub(out, x, out=error) if measured is None else _error(out, x, models.kind)
        if inputs.batch < inputs.width:
            error[..., inputs.batch :] = 0
        if measured is not None:
            measured[part] = (error.square().sum(2) * weight[:, 0]).sum(1) / (inputs.batch * inputs.n)
        if models.kind != "linear":  # nothing passes where the ReLU is off
            torch.ops.aten.threshold_backward.grad_input(error, out, 0, grad_input=error)
        b.grad[part] = error.sum(2) * weight[:, 0]
        back = torch.bmm(w * weight, error)
        if models.kind == "layernorm":
            back = _back_through(y, factor, back)
        W.grad[part] = torch.bmm(y, error.mT).mul_(weight).baddbmm_(back, seen.mT)
    for grad in (W.grad, b.grad):
        grad.mul_(2 / (inputs.batch * inputs.n))
    return measured


def _error(out: Tensor, x: Tensor, kind: str) -> Tensor:
    """ReLU(out) - x, where `out` becomes its ReLU in place; out - x for a linear model."""
    return torch.sub(out if kind == "linear" else out.clamp_(min=0), x)


def batch_losses(W: Tensor, b: Tensor, inputs: ToyInputs, models: ToyModels) -> Tensor:
    """Losses `(k,)` of this batch, mean over rows and features, weighted by importance."""
    importance = models.tensors()[1].to(W.device)
    losses = torch.empty(len(W), device=W.device, dtype=W.dtype)
    for part in model_blocks(len(W), inputs.batch * inputs.n, W.device):
        x, seen = inputs.block(part)
        h = torch.bmm(W[part], seen)
        y = _normalised(h)[0] if models.kind == "layernorm" else h
        error = _error(torch.bmm(W[part].mT, y).add_(b[part].unsqueeze(-1)), x, models.kind)
        losses[part] = (error.square().mean(2) * importance[part]).mean(1)
    return losses


def reconstruct_inputs(W: Tensor, b: Tensor, x: Tensor, kind: str = "relu") -> Tensor:
    """The output x' `(batch, k, n)` for inputs of that shape, written so that automatic differentiation works.

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


@dataclass(frozen=True)
class ToyTraining:
    """How models are trained; the defaults are the source's.

    Attributes:
        steps: number of steps of AdamW with betas 0.9 and 0.999 at a constant rate.
        batch: fresh inputs per step.
        learning_rate: that of every parameter.
        weight_decay: that of AdamW, on W and b.
        every: steps from one kept set of weights to the next; None keeps the last only.

    Raises:
        ValueError: a count below 1, or a rate that is no number or not positive.
    """

    steps: int = 10_000
    batch: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    every: int | None = None

    def __post_init__(self) -> None:
        check_whole(steps=self.steps, batch=self.batch, every=1 if self.every is None else self.every)
        rate, decay = as_real([self.learning_rate, self.weight_decay], "learning_rate or weight_decay")
        if not (0 < rate < math.inf and 0 <= decay < math.inf):
            raise ValueError(f"{self}: expected a positive learning rate and a weight decay of at least 0")


@dataclass(frozen=True)
class TrainedToys:
    """What training gave.

    Attributes:
        toys: the models.
        W: `(k, m, n)`, after the last step.
        b: `(k, n)`.
        steps: `(t,)` int64, of the kept weights: 0, every, 2 every, ..., and after the last step.
        kept: `(t, k, m, n)`, W at these.
        losses: `(t, k)`, mean over a step's batch and features, weighted by importance, at these.
    """

    toys: ToyModels
    W: Tensor = field(repr=False)
    b: Tensor = field(repr=False)
    steps: Tensor = field(repr=False)
    kept: Tensor = field(repr=False)
    losses: Tensor = field(repr=False)


def train_toy_models(
    toys: ToyModels, recipe: ToyTraining, progress: str | None = None, start: Tensor | None = None
) -> TrainedToys:
    """Train the models side by side, in this process, with the text `progress` before a bar if there is one.

    On the CPU the models are shared out over as many threads as torch has here, and each thread multiplies by itself:
    one product of this size takes as long on two cores as on one. Every model's bits are those of one thread, also in a
    context of autocast or of another default device.

    Args:
        toys: the models.
        recipe: how they are trained.
        progress: None shows no bar.
        start: initial W `(k, m, n)`; None for that of the seeds, `toys.start()`. Biases start at zero.

    Raises:
        ValueError: `start` has another shape, or is not of finite real numbers.
        DivergenceError: weights that are not finite after the last step; names the seeds of their models.
    """
    start = _checked_start(start, toys)
    keep_freed_memory()  # otherwise each step asks the system for its arrays again
    threads, stop = torch.get_num_threads() if compute_device().type == "cpu" else 1, Event()
    shares = np.array_split(np.arange(len(toys)), min(threads, len(toys)))

    def train(number: int) -> TrainedToys:
        share = shares[number]
        given = None if start is None else start[share]
        return _train_share(toys.part(share), recipe, None if number else progress, given, stop)

    if threads == 1:
        return _finite(train(0))
    try:
        with ThreadPoolExecutor(len(shares), "toys", torch.set_num_threads, (1,)) as pool:
            try:
                begun = [pool.submit(train, number) for number in range(len(shares))]
                wait(begun, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()  # where one fails or a reader interrupts, all end
    finally:
        torch.set_num_threads(threads)  # threads that are yet to come take over what was last set in any
    failed = [error for each in begun if (error := each.exception()) and not isinstance(error, CancelledError)]
    if failed:
        raise failed[0]
    return _finite(_joined(toys, [each.result() for each in begun], range(len(toys))))


def _train_share(
    toys: ToyModels, recipe: ToyTraining, progress: str | None, start: Tensor | None, stop: Event
) -> TrainedToys:
    """Train in this thread."""
    first = toys.start() if start is None else start
    device = compute_device()
    W, b, both = _side_by_side(first.to(device), torch.zeros(len(toys), toys.n, device=device, dtype=FLOAT))
    optimizer = torch.optim.AdamW([both], recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    inputs = ToyInputs(toys, recipe.batch, device=device)
    marks = {recipe.steps, *(range(0, recipe.steps, recipe.every) if recipe.every else ())}
    kept, losses = [], []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for step in tqdm(range(recipe.steps + 1), desc=progress, disable=progress is None, mininterval=0.5):
            if stop.is_set():
                raise CancelledError
            inputs.draw()
            measured = toy_gradients(W, b, inputs, toys, step in marks)
            if measured is not None:
                kept.append(W.clone().cpu())
                losses.append(measured.cpu())
            if step < recipe.steps:
                optimizer.step()
    steps = torch.tensor(sorted(marks), device="cpu")
    return TrainedToys(toys, W.detach().cpu(), b.detach().cpu(), steps, torch.stack(kept), torch.stack(losses))


def _finite(trained: TrainedToys) -> TrainedToys:
    """The same, if all weights are finite."""
    finite = trained.W.flatten(1).isfinite().all(1) & trained.b.isfinite().all(1)
    if seeds := [seed for seed, good in zip(trained.toys.seeds, finite.tolist(), strict=True) if not good]:
        raise DivergenceError(f"models of seeds {seeds[:9]}: weights are not finite; try a smaller learning rate")
    return trained


def _joined(toys: ToyModels, parts: Sequence[TrainedToys], order: Sequence[int]) -> TrainedToys:
    """All models in one, taken from the parts' in this order."""
    taken = torch.tensor(order, device="cpu")

    def joined(name: str, along: int) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], along).index_select(along, taken)

    return TrainedToys(toys, joined("W", 0), joined("b", 0), parts[0].steps, joined("kept", 1), joined("losses", 1))


def _checked_start(start: object, toys: ToyModels) -> Tensor | None:
    given, shape = None if start is None else _tensor(start, "start"), (len(toys), toys.m, toys.n)
    if given is not None and not (given.shape == shape and given.isfinite().all()):
        raise ValueError(f"start of shape {tuple(given.shape)}: expected {shape}, finite numbers")
    return given


def _side_by_side(W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W and b as parts of one array with a gradient, and that array, whose length is a multiple of LANES."""
    ends = W.numel(), W.numel() + b.numel()
    both = torch.zeros(-(-ends[1] // LANES) * LANES, device=W.device, dtype=W.dtype)
    both.grad = torch.zeros_like(both)
    parts = [part.view_as(like) for part, like in zip(both.tensor_split(ends), (W, b), strict=False)]
    for part, values, grad in zip(parts, (W, b), both.grad.tensor_split(ends), strict=False):
        part.copy_(values).grad = grad.view_as(values)
    return parts[0], parts[1], both


def train_toy_models_in_parts(
    toys: ToyModels, recipe: ToyTraining, workers: int, progress: str | None = None, start: Tensor | None = None
) -> TrainedToys:
    """Train in processes of one thread each; models of one seed go together, as they share their uniform numbers.

    Raises:
        ValueError: no worker, or `start` as in `train_toy_models`.
        DivergenceError: as `train_toy_models`.
    """
    check_whole(workers=workers)
    by_seed = np.argsort(np.array(toys.seeds), kind="stable")
    chosen = [part.tolist() for part in np.array_split(by_seed, min(workers, len(toys)))]
    start = _checked_start(start, toys)
    jobs = [
        delayed(_train_on_one_thread)(
            toys.part(part), recipe, None if i else progress, None if start is None else start[part]
        )
        for i, part in enumerate(chosen)
    ]
    parts: list[TrainedToys] = Parallel(len(jobs), backend="loky")(jobs)  # threads would share one thread count
    return _joined(toys, parts, np.argsort(by_seed).tolist())


def _train_on_one_thread(
    toys: ToyModels, recipe: ToyTraining, progress: str | None, start: Tensor | None
) -> TrainedToys:
    with deterministic(1):
        return train_toy_models(toys, recipe, progress, start)


def checked_weights(toys: ToyModels, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float32; raises ValueError for shapes other than W `(k, m, n)` and b `(k, n)`."""
    k, m, n = len(toys), toys.m, toys.n
    W, b = _tensor(W, "W"), _tensor(b, "b")
    if W.shape != (k, m, n) or b.shape != (k, n):
        raise ValueError(f"W {tuple(W.shape)}, b {tuple(b.shape)}: expected ({k}, {m}, {n}), ({k}, {n})")
    return W, b


def fresh_losses(toys: ToyModels, W: Tensor, b: Tensor, batches: int = 16, batch: int = 4096) -> Tensor:
    """Losses `(k,)` on fresh inputs, made of the same uniform numbers for all models; mean per input and feature.

    Models that see the same inputs share their luck; where losses are ranked, `toy_theory.expected_losses` has none.

    Raises:
        ValueError: weights of other shapes than W `(k, m, n)` and b `(k, n)`, or no input.
    """
    check_whole(batches=batches, batch=batch)
    W, b = checked_weights(toys, W, b)
    inputs = ToyInputs(replace(toys, seeds=[0] * len(toys)), batch, "toy tests")
    total = torch.zeros(len(toys), dtype=torch.float64, device="cpu")
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for _ in range(batches):
            inputs.draw()
            total += batch_losses(W, b, inputs, toys).double()
    return total / batches
