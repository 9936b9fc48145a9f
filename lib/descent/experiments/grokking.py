"""Training runs on tables of an operation, which generalise long after they have memorised.

The set-up is that of Nanda et al. 2023 (Progress measures for grokking via mechanistic interpretability, section 3). A
run keeps its weights every so many steps; `grokking_measures` computes all curves from these afterwards.
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

from descent.data.group_tables import ModularTask, modular_task, split_mirrors, split_pairs
from descent.models.flat_weights import flatten, unflatten
from descent.models.transformer import OneLayerTransformer, TransformerSizes
from descent.repro.machine import compute_device, keep_freed_memory
from descent.training.capture import CapturePlan, GradientRecorder, GradientStack
from descent.training.loop import Batch, MiniBatches, TrainingPlan, fit

Array = NDArray[np.float64]
WARM_UP = 10  # steps


@dataclass(frozen=True)
class ModularExperiment:
    """All that decides a run; the defaults are the source's (section 3).

    Attributes:
        task, p: name and modulus of the operation, see `descent.data.group_tables.modular_task`.
        fraction: share of the examples that training sees.
        width, heads, hidden: see `descent.models.transformer.TransformerSizes`.
        weight_decay: that of AdamW, on every parameter.
        learning_rate: after a warm-up of ten steps, the first of which has rate zero.
        batch_size: examples per step; None takes all of them.
        steps: number of steps in all.
        every: steps from one kept set of weights to the next.
        seed: decides the weights, the split and the mini-batches.
        mirrors: whether (a, b) and (b, a) are kept together, both shown or both unseen.
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
    mirrors: bool = False

    def digest(self) -> str:
        """Twelve hexadecimal digits that name the experiment; `mirrors` counts where it is set."""
        decided = {name: value for name, value in asdict(self).items() if name != "mirrors" or value}
        return hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class GrokkingRun:
    """A finished run.

    Attributes:
        experiment: what decided it.
        task: all examples of the operation.
        train, test: indices of the examples in each part, `(n,)` int64.
        losses: `(steps,)`, the loss of each step's batch before its update, over all logits, mean per example.
        stack: the kept weights, `(m, P)`: those before steps 0, `every`, 2 `every`, ...
        model: the network with the weights after the last step.
    """

    experiment: ModularExperiment
    task: ModularTask
    train: Tensor
    test: Tensor
    losses: Array = field(repr=False)
    stack: GradientStack = field(repr=False)
    model: OneLayerTransformer = field(repr=False)

    def at(self, row: NDArray[np.floating]) -> OneLayerTransformer:
        """The network with these flat weights `(P,)`."""
        model = OneLayerTransformer(self.model.sizes, 0)
        model.load_state_dict(unflatten(torch.from_numpy(np.array(row, np.float32)), self.stack.layout))
        return model

    def logits(self, row: NDArray[np.floating]) -> Tensor:
        """The logits of every example, `(n, symbols)`, without that of "=", as in the source's analysis."""
        with torch.no_grad():
            logits: Tensor = self.at(row)(self.task.pairs)
            return logits[:, :-1]

    def final(self) -> NDArray[np.float32]:
        """The weights after the last step, `(P,)`."""
        return flatten(dict(self.model.named_parameters())).detach().numpy()


def cross_entropy_in_double(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy in nats, mean per example, with the softmax in float64: in float32 a loss below 1e-7 is zero.

    Gradients of the logits that would be subnormal in float32 (below 1.2e-38) are set to zero. Late in a run, when
    logits lie 80 nats and more apart, there are thousands of them, and as processors multiply such numbers slowly, a
    step takes several times as long (`benchmarks/grokking.py`). They are too small to change a bit of any weight.
    """
    pairs, targets = batch
    logits: Tensor = model(pairs)
    if logits.requires_grad:
        tiny = torch.finfo(logits.dtype).tiny
        logits.register_hook(lambda gradient: nn.functional.hardshrink(gradient, tiny))  # type: ignore[no-untyped-call]
    return nn.functional.cross_entropy(logits.double(), targets)


class TrainingStart(NamedTuple):
    """All that a run begins with; `train` and `test` are indices `(n,)` into the task."""

    task: ModularTask
    train: Tensor
    test: Tensor
    model: OneLayerTransformer
    optimizer: AdamW
    scheduler: LambdaLR
    batches: Callable[[int], Batch]


def prepare_experiment(experiment: ModularExperiment) -> TrainingStart:
    """Make task, split, network, optimiser, schedule and batches; raises as `train_modular_transformer` does."""
    task = modular_task(experiment.task, experiment.p)
    if experiment.mirrors:
        train_part, test_part = split_mirrors(task, experiment.fraction, experiment.seed)
    else:
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
    """Train one network; with a folder, weights and losses are kept there and a killed run goes on bit for bit.

    Args:
        experiment: what to train.
        folder: a folder for this run alone; None keeps everything in memory.
        progress: text before a progress bar; None shows none.

    Raises:
        ValueError: an unknown task, a modulus that it cannot have, a fraction or size out of range.
        DamagedCheckpointError: the folder is another experiment's, or damaged.
    """
    keep_freed_memory()  # otherwise a sixth of each step goes into asking the system for 10 MB
    start = prepare_experiment(experiment)
    plan = TrainingPlan(
        experiment.steps,
        start.scheduler,
        checkpoints=folder and folder / "unfinished",
        checkpoint_every=10 * experiment.every,
        run=experiment.digest(),
        progress=progress,
    )
    recipe = CapturePlan(range(0, experiment.steps, experiment.every), "weight")
    model, optimizer = start.model, start.optimizer
    with GradientRecorder(model, optimizer, recipe, folder and folder / "weights") as recorder:
        losses = fit(model, cross_entropy_in_double, start.batches, optimizer, plan, recorders=[recorder])
        stack = recorder.stack()
        return GrokkingRun(experiment, start.task, start.train, start.test, losses, stack, model.cpu())
