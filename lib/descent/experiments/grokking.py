"""Training runs on tables of an operation, which generalise late.

The set-up is that of Nanda et al. 2023 (Progress measures for grokking via mechanistic interpretability, section 3). A
run keeps its weights every so many steps; all curves are computed from those afterwards, by `grok_measures`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from descent.data.operations import ModularTask, modular_task, split_pairs
from descent.models.transformer import OneLayerTransformer, TransformerSizes
from descent.models.vectors import flatten, unflatten
from descent.repro.machine import compute_device, keep_freed_memory
from descent.training.capture import CapturePlan, GradientRecorder, GradientStack
from descent.training.loop import Batch, MiniBatches, TrainingPlan, fit, newest_checkpoint

Array = NDArray[np.float64]
WARM_UP = 10  # steps


@dataclass(frozen=True)
class ModularExperiment:
    """What decides a run; the defaults are the source's.

    Attributes:
        task, p: see `descent.data.operations.modular_task`.
        fraction: of the examples that training sees.
        width, heads, hidden: see `descent.models.transformer.TransformerSizes`.
        weight_decay: AdamW's, on every parameter.
        learning_rate: after a warm-up of ten steps, the first of which has rate zero.
        batch_size: examples a step; None for all of them.
        steps: in all.
        every: steps from one kept set of weights to the next.
        seed: of the weights, the split and the mini-batches.
    """

    task: str = "addition"
    p: int = 113
    fraction: float = 0.3
    width: int = 128
    heads: int = 4
    hidden: int = 512
    weight_decay: float = 1.0
    learning_rate: float = 1e-3
    batch_size: int | None = None
    steps: int = 40_000
    every: int = 100
    seed: int = 0

    def digest(self) -> str:
        """Twelve hexadecimal digits that name it."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class GrokkingRun:
    """A finished run.

    Attributes:
        experiment: what it was.
        task: all examples.
        train, test: indices of the examples, `(n,)` int64 each.
        losses: `(steps,)`, the loss of each step's batch before its update, over all logits, mean per example.
        stack: the kept weights, `(m, P)`: those before steps 0, `every`, 2 `every`, ...
        model: with the weights after the last step.
    """

    experiment: ModularExperiment
    task: ModularTask
    train: Tensor
    test: Tensor
    losses: Array = field(repr=False)
    stack: GradientStack = field(repr=False)
    model: OneLayerTransformer = field(repr=False)

    def at(self, row: NDArray[np.floating]) -> OneLayerTransformer:
        """A network with these flat weights `(P,)`."""
        model = OneLayerTransformer(self.model.sizes, 0)
        model.load_state_dict(unflatten(torch.from_numpy(np.array(row, np.float32)), self.stack.layout))
        return model

    def logits(self, row: NDArray[np.floating]) -> Tensor:
        """Those of every example, `(n, symbols)`: without the logit of "=", as in the source's analysis."""
        with torch.no_grad():
            found: Tensor = self.at(row)(self.task.pairs)
            return found[:, :-1]

    def final(self) -> NDArray[np.float32]:
        """The weights after the last step, `(P,)`."""
        return flatten(dict(self.model.named_parameters())).detach().numpy()


def cross_entropy_in_double(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy with the softmax in float64, in nats, mean per example: in float32 losses end at about 1e-7.

    Back in float32, gradients of logits are zero where they would be subnormal, below 1.2e-38. Late in a run, when
    logits lie 80 nats apart and more, thousands would be, and processors multiply such numbers slowly: a step takes
    several times as long (`benchmarks/grokking.py`). Beside the others of their sums they are nothing: no weight
    changes by a bit.
    """
    pairs, targets = batch
    logits: Tensor = model(pairs)
    if logits.requires_grad:
        logits.register_hook(zero_subnormals)  # type: ignore[no-untyped-call]
    return nn.functional.cross_entropy(logits.double(), targets)


def zero_subnormals(gradient: Tensor) -> Tensor:
    """The gradient, zero where it is smaller than the smallest normal number of its type."""
    return nn.functional.hardshrink(gradient, torch.finfo(gradient.dtype).tiny)


class TrainingStart(NamedTuple):
    """All that a run begins with."""

    task: ModularTask
    train: Tensor
    test: Tensor
    model: OneLayerTransformer
    optimizer: AdamW
    scheduler: LambdaLR
    batches: Callable[[int], Batch]


def prepare_experiment(experiment: ModularExperiment) -> TrainingStart:
    """Task, split, network, optimiser, schedule and batches; raises as `train_modular_transformer`."""
    task = modular_task(experiment.task, experiment.p)
    train_part, test_part = split_pairs(len(task), experiment.fraction, experiment.seed)
    sizes = TransformerSizes(task.symbols, experiment.width, experiment.heads, experiment.hidden)
    device = compute_device()
    model = OneLayerTransformer(sizes, experiment.seed).to(device)
    optimizer = AdamW(
        model.parameters(), experiment.learning_rate, (0.9, 0.98), weight_decay=experiment.weight_decay, fused=True
    )
    schedule = LambdaLR(optimizer, lambda step: min(step / WARM_UP, 1.0))
    shown = task.pairs[train_part].to(device), task.targets[train_part].to(device)
    size = experiment.batch_size
    batches = (lambda step: shown) if size is None else MiniBatches(shown, size, experiment.seed)
    return TrainingStart(task, train_part, test_part, model, optimizer, schedule, batches)


def train_modular_transformer(
    experiment: ModularExperiment, folder: Path | None = None, progress: str | None = None
) -> GrokkingRun:
    """Train one network; with a folder, weights and losses go there, and a killed run goes on bit for bit.

    Args:
        experiment: what to train.
        folder: of this run alone; None keeps everything in memory.
        progress: text before a progress bar; None shows none.

    Raises:
        ValueError: an unknown task, a modulus that it cannot have, a fraction or size out of range.
        DamagedCheckpointError: the folder is another experiment's, or damaged.
    """
    keep_freed_memory()  # else every step asks the system for 10 MB anew: a sixth of its time
    start = prepare_experiment(experiment)
    plan = TrainingPlan(
        experiment.steps,
        start.scheduler,
        checkpoints=folder and folder / "checkpoints",
        checkpoint_every=10 * experiment.every,
        run=experiment.digest(),
        progress=progress,
    )
    begun = newest_checkpoint(folder / "checkpoints")[0] if folder else None
    recipe = CapturePlan(range(0, experiment.steps, experiment.every), "weight")
    model, optimizer = start.model, start.optimizer
    with GradientRecorder(model, optimizer, recipe, folder and folder / "weights", begun) as recorder:
        history = fit(model, cross_entropy_in_double, start.batches, optimizer, plan)
        stack = recorder.stack()
        return GrokkingRun(experiment, start.task, start.train, start.test, history.losses, stack, model.cpu())
