"""Steps a second of twenty toy models trained at once: ours, the source's formulation, one model after another.

n = 200 features in m = 20 dimensions, 20 models, a batch of 1,024, densities from 1 to 1/20, as the notebook of Elhage
et al. 2022 (Toy Models of Superposition) has them. Its formulation is written from its formulas: two uniform numbers an
input, inputs of its own for every model, `einsum` over a (batch, model, feature) layout, automatic differentiation,
torch's AdamW. The loop has the same for a single model. Ours comes twice: with one seed for all models, which share the
numbers, and with a seed for each. All take turns, with as many threads as this process has cores; figures are
medians over the turns. Before that the loss and gradients of one batch are compared.

The limit is that of the five products of a step, 10 B m n operations a model, at the measured rate of a square product.
The growth with the number of models and of features is the exponent of a least-squares line in logarithms.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from descent.experiments.toy_models import ToyInputs, ToyModels, ToyTraining, toy_gradients, train_toy_models
from descent.repro.machine import cores, keep_freed_memory
from descent.repro.seeding import deterministic, torch_generator
from measure import Result, gemm, interleaved

N, M, MODELS, BATCH, TURNS, STEPS = 200, 20, 20, 1024, 7, 9
TASK = f"training of {MODELS} toy models, n = {N}, m = {M}, batch {BATCH:,}"
DENSITY = 20 ** -torch.linspace(0, 1, MODELS)


def loss_of(W: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """The source's formulation: mean over the batch and features, summed over models; x is `(batch, k, n)`."""
    hidden = torch.einsum("bkn,kmn->bkm", x, W)
    out = torch.relu(torch.einsum("bkm,kmn->bkn", hidden, W) + b)
    return (x - out).square().mean((0, 2)).sum()


def textbook(density: Tensor) -> Callable[[], None]:
    """A step of the source's formulation for the models of these densities."""
    toys, generator = ToyModels(N, M, range(len(density)), density), torch_generator(0, "benchmark")
    W, b = toys.start().requires_grad_(), torch.zeros(len(density), N, requires_grad=True)
    optimizer, shape = torch.optim.AdamW([W, b], 1e-3), (BATCH, len(density), N)

    def step() -> None:
        values, chosen = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
        x = torch.where(chosen <= density[:, None], values, torch.zeros(()))
        optimizer.zero_grad()
        loss_of(W, b, x).backward()
        optimizer.step()

    return step


def ours(seeds: list[int]) -> Callable[[], None]:
    """A few steps of ours, one more to begin with."""
    toys = ToyModels(N, M, seeds, DENSITY)
    return lambda: train_toy_models(toys, ToyTraining(STEPS, BATCH)) and None


def apart() -> tuple[float, float]:
    """Largest differences of losses and of gradients from the source's formulation on one batch, over the largest."""
    toys = ToyModels(N, M, range(MODELS), DENSITY)
    inputs = ToyInputs(toys, BATCH)
    inputs.draw()
    x = inputs.block(slice(0, MODELS))[0].permute(2, 0, 1)
    W, b = toys.start().requires_grad_(), torch.zeros(MODELS, N, requires_grad=True)
    expected = loss_of(W, b, x)
    expected.backward()
    mine = SimpleNamespace(W=toys.start(), b=torch.zeros(MODELS, N))
    mine.W.grad, mine.b.grad = torch.zeros_like(mine.W), torch.zeros_like(mine.b)
    found = toy_gradients(mine.W, mine.b, inputs, toys, True)
    assert found is not None
    assert W.grad is not None
    loss = abs(float(found.sum() / expected.detach()) - 1)
    return loss, float((mine.W.grad - W.grad).abs().max() / W.grad.abs().max())


def growth() -> list[Result]:
    """Seconds a step as a power of the number of models, and of features, of which a tenth are dimensions."""
    cases = {
        "models": {k: ToyModels(N, M, [0] * k, DENSITY[:1]) for k in (10, 20, 40, 80)},
        "features": {n: ToyModels(n, n // 10, [0] * MODELS, DENSITY) for n in (100, 200, 400, 800)},
    }
    results = []
    for name, sizes in cases.items():
        works = {
            str(size): lambda _, toys=toys: train_toy_models(toys, ToyTraining(STEPS, BATCH)) and None
            for size, toys in sizes.items()
        }
        measured = interleaved(works, 3)
        taken = [measured[str(size)][0] / (STEPS + 1) for size in sizes]
        figures = {"exponent": float(np.polyfit(np.log(list(sizes)), np.log(taken), 1)[0])}
        figures["exponent of operations"] = 1.0 if name == "models" else 2.0
        figures |= {f"ms at {size}": 1e3 * each for size, each in zip(sizes, taken, strict=True)}
        results.append(Result("growth of milliseconds a step, ours", f"with {name}", figures))
    return results


def run() -> list[Result]:
    """Milliseconds a step of all models, models times steps a second, times ours; ours also against its limit."""
    keep_freed_memory()
    with deterministic(cores()):
        loss, gradient = apart()
        together, singles = textbook(DENSITY), [textbook(density[None]) for density in DENSITY]
        own, shared = ours(list(range(MODELS))), ours([0] * MODELS)
        works: dict[str, Callable[[int], None]] = {
            "ours, one seed": lambda _: shared(),
            "ours, a seed each": lambda _: own(),
            "the source's formulation": lambda _: [together() for _ in range(STEPS + 1)] and None,
            "a loop over single models": lambda _: [step() for step in singles for _ in range(STEPS + 1)] and None,
        }
        taken = {name: seconds / (STEPS + 1) for name, (seconds, _) in interleaved(works, TURNS).items()}
        limit = 10 * BATCH * M * N * MODELS / gemm("float32", 2048, 10)
    results = []
    for name, seconds in taken.items():
        figures = {
            "ms": 1e3 * seconds,
            "models x steps / s": MODELS / seconds,
            "times ours": seconds / taken["ours, one seed"],
        }
        if name.startswith("ours"):
            figures |= {"times its limit": seconds / limit, "loss apart": loss, "gradient apart": gradient}
        results.append(Result(TASK, name, figures))
    with deterministic(cores()):
        return results + growth()
