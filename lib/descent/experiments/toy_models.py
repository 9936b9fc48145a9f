"""The toy models of superposition, many trained at once (Elhage et al. 2022, Toy Models of Superposition).

A model stores n features in m dimensions and reads them out by the same map: x' = ReLU(W^T W x + b), W `(m, n)`.
Feature i is 0 with probability 1 - d_i, its density being d_i, else uniform on 0 to 1. The loss is the mean over batch
and features of I_i (x_i - x'_i)^2. Tensors of several models have their number first: W is `(k, m, n)`, b `(k, n)`.

Everything random of a model comes from its own seed: its weights do not depend on those trained beside it, bit for bit.
Models of one seed start at the same weights and see the same uniform numbers, each as inputs of its own density.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor
from tqdm import tqdm

from descent.experiments.toy_steps import KINDS, PAIRINGS, ToyInputs, batch_losses, toy_gradients
from descent.repro.machine import compute_device, keep_freed_memory
from descent.repro.seeding import deterministic, torch_generator

LANES = 64  # the optimizer rounds what fills no vector register otherwise: bits would depend on who is beside one


def _per_feature(values: float | Sequence[float] | Tensor, count: int, n: int, name: str) -> Tensor:
    """A number, one per model `(k,)`, or one per model and feature `(k, n)`, as `(k, n)` float32."""
    given = torch.as_tensor(values, dtype=torch.float32)
    given = given.unsqueeze(-1) if given.ndim == 1 else given
    if given.ndim > 2 or (given.ndim == 2 and not (given.shape[0] in (1, count) and given.shape[1] in (1, n))):
        raise ValueError(
            f"{name} of shape {tuple(given.shape)}: expected a number, {count} of them, or ({count} or 1, {n})"
        )
    return given.expand(count, n).contiguous()


@dataclass(frozen=True)
class ToyModels:
    """What k models are.

    Attributes:
        n: features.
        m: dimensions.
        seeds: one per model; decides how many there are.
        density: probability that a feature is not 0: a number, `(k,)`, `(k, n)` or `(1, n)`; kept as `(k, n)`.
        importance: the I_i, in the same forms.
        noise: standard deviation of Gaussian noise on the inputs, which the target does not have; a number or `(k,)`.
        kind: "relu"; "linear", without the ReLU; "layernorm", ReLU(W^T LN(W x) + b) with LN without parameters.
        pairing: "independent"; or how features 2 i and 2 i + 1 go together: "correlated", both are 0 or neither is;
            "anticorrelated", never both are not 0.

    Raises:
        ValueError: a size below 1, no seed, a value out of range, an unknown kind or pairing.
    """

    n: int
    m: int
    seeds: Sequence[int]
    density: float | Sequence[float] | Tensor = 1.0
    importance: float | Sequence[float] | Tensor = 1.0
    noise: float | Sequence[float] | Tensor = 0.0
    kind: str = "relu"
    pairing: str = "independent"

    def __post_init__(self) -> None:
        if min(self.n, self.m, len(self.seeds)) < 1:
            raise ValueError(f"n={self.n}, m={self.m}, {len(self.seeds)} seeds: expected at least 1 each")
        for name, value, choices in (("kind", self.kind, KINDS), ("pairing", self.pairing, PAIRINGS)):
            if value not in choices:
                raise ValueError(f"{name} {value!r}: expected one of {', '.join(choices)}")
        if self.pairing != "independent" and self.n % 2:
            raise ValueError(f"n={self.n}: features that go in pairs need an even number")
        for name in ("density", "importance", "noise"):
            filled = _per_feature(getattr(self, name), len(self), 1 if name == "noise" else self.n, name)
            object.__setattr__(self, name, filled)
        self._check_values()

    def _check_values(self) -> None:
        density, importance, noise = self.tensors()
        most = 0.5 if self.pairing == "anticorrelated" else 1.0
        if not (density.min() > 0 and density.max() <= most):
            ends = f"{float(density.min()):g} to {float(density.max()):g}"
            raise ValueError(f"density={ends}: expected above 0 and at most {most:g} for {self.pairing} features")
        if not (importance.min() > 0 and noise.min() >= 0):
            low = f"importance={float(importance.min()):g}, noise={float(noise.min()):g}"
            raise ValueError(f"{low}: expected importances above 0 and noise of at least 0")
        if self.pairing != "independent" and not torch.equal(density[:, ::2], density[:, 1::2]):
            raise ValueError("density: expected the same for both features of a pair")

    def __len__(self) -> int:
        return len(self.seeds)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Density `(k, n)`, importance `(k, n)`, noise `(k, 1)`."""
        assert isinstance(self.density, Tensor)
        assert isinstance(self.importance, Tensor)
        assert isinstance(self.noise, Tensor)
        return self.density, self.importance, self.noise

    def part(self, chosen: Sequence[int]) -> ToyModels:
        """The models of these numbers."""
        picked, seeds = list(chosen), [self.seeds[number] for number in chosen]
        density, importance, noise = (values[picked] for values in self.tensors())
        return replace(self, seeds=seeds, density=density, importance=importance, noise=noise)

    def start(self) -> Tensor:
        """Initial W `(k, m, n)`: Gaussian of variance 2 / (m + n), Xavier's, each model's from its seed."""
        drawn = [torch.randn(self.m, self.n, generator=torch_generator(seed, "toy weights")) for seed in self.seeds]
        return torch.stack(drawn).mul_(math.sqrt(2 / (self.m + self.n)))


@dataclass(frozen=True)
class ToyTraining:
    """How they are trained; the defaults are the source's.

    Attributes:
        steps: of AdamW, betas 0.9 and 0.999, at a constant rate.
        batch: fresh inputs a step.
        learning_rate: of every parameter.
        weight_decay: AdamW's, on W and b.
        every: steps from one kept set of weights to the next; None keeps the last only.

    Raises:
        ValueError: a count below 1, or a rate that is not positive.
    """

    steps: int = 10_000
    batch: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    every: int | None = None

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, 1 if self.every is None else self.every) < 1:
            raise ValueError(f"{self}: expected steps, batch and every of at least 1")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(f"{self}: expected a positive learning rate and a weight decay of at least 0")


@dataclass(frozen=True)
class TrainedToys:
    """What training gave.

    Attributes:
        toys, recipe: what was asked for.
        W: `(k, m, n)`, after the last step.
        b: `(k, n)`.
        steps: `(t,)` int64, of the kept weights: 0, every, 2 every, ..., and after the last step.
        kept: `(t, k, m, n)`, W at these.
        losses: `(t, k)`, mean over a step's batch and features, weighted by importance, at these.
    """

    toys: ToyModels
    recipe: ToyTraining
    W: Tensor = field(repr=False)
    b: Tensor = field(repr=False)
    steps: Tensor = field(repr=False)
    kept: Tensor = field(repr=False)
    losses: Tensor = field(repr=False)


def train_toy_models(toys: ToyModels, recipe: ToyTraining, progress: str | None = None) -> TrainedToys:
    """Train the models side by side, in this process.

    Args:
        toys: the models.
        recipe: how.
        progress: text before a progress bar; None shows none.
    """
    keep_freed_memory()  # else each step asks the system for its arrays anew
    device = compute_device()
    W, b, both = _side_by_side(toys.start().to(device), torch.zeros(len(toys), toys.n, device=device))
    optimizer = torch.optim.AdamW([both], recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    inputs = ToyInputs(toys, recipe.batch, device=device)
    marks = {recipe.steps, *(range(0, recipe.steps, recipe.every) if recipe.every else ())}
    kept, losses = [], []
    with torch.no_grad():
        for step in tqdm(range(recipe.steps + 1), desc=progress, disable=progress is None, mininterval=0.5):
            inputs.draw()
            found = toy_gradients(W, b, inputs, toys, step in marks)
            if found is not None:
                kept.append(W.clone().cpu())
                losses.append(found.cpu())
            if step < recipe.steps:
                optimizer.step()
    steps = torch.tensor(sorted(marks))
    return TrainedToys(toys, recipe, W.detach().cpu(), b.detach().cpu(), steps, torch.stack(kept), torch.stack(losses))


def _side_by_side(W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W and b as parts of one array with a gradient, and that array, a multiple of LANES."""
    ends = W.numel(), W.numel() + b.numel()
    both = torch.zeros(-(-ends[1] // LANES) * LANES, device=W.device)
    both.grad = torch.zeros_like(both)
    parts = [part.view_as(like) for part, like in zip(both.tensor_split(ends), (W, b), strict=False)]
    for part, values, grad in zip(parts, (W, b), both.grad.tensor_split(ends), strict=False):
        part.copy_(values).grad = grad.view_as(values)
    return parts[0], parts[1], both


def train_toy_models_in_parts(
    toys: ToyModels, recipe: ToyTraining, workers: int, progress: str | None = None
) -> TrainedToys:
    """The same in processes of one thread each: models of one seed go together, for they share uniform numbers.

    Raises:
        ValueError: no worker.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: expected at least 1")
    by_seed = np.argsort(np.array(toys.seeds), kind="stable")
    chosen = [part.tolist() for part in np.array_split(by_seed, min(workers, len(toys)))]
    jobs = [
        delayed(_train_on_one_thread)(toys.part(part), recipe, None if i else progress) for i, part in enumerate(chosen)
    ]
    parts: list[TrainedToys] = Parallel(n_jobs=len(jobs))(jobs)
    order = torch.tensor([number for part in chosen for number in part]).argsort()

    def joined(name: str, along: int) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], along).index_select(along, order)

    first, both = joined("W", 0), (joined("kept", 1), joined("losses", 1))
    return TrainedToys(toys, recipe, first, joined("b", 0), parts[0].steps, *both)


def _train_on_one_thread(toys: ToyModels, recipe: ToyTraining, progress: str | None) -> TrainedToys:
    with deterministic(1):
        return train_toy_models(toys, recipe, progress)


def fresh_losses(toys: ToyModels, W: Tensor, b: Tensor, batches: int = 16, batch: int = 4096) -> Tensor:
    """Losses `(k,)` on inputs that were not trained on, the same uniform numbers for all models; see the module.

    Args:
        toys: gives densities, importances, noise and form.
        W: `(k, m, n)`.
        b: `(k, n)`.
        batches: how many batches of `batch` inputs.
        batch: inputs in each.
    """
    inputs = ToyInputs(replace(toys, seeds=[0] * len(toys)), batch, "toy tests")
    total = torch.zeros(len(toys), dtype=torch.float64)
    with torch.no_grad():
        for _ in range(batches):
            inputs.draw()
            total += batch_losses(W, b, inputs, toys).double()
    return total / batches
