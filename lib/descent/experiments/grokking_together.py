"""Several networks on tables trained at once: one step for all of them, each as if it were alone.

The parameters are stacked for the pass forward and back. AdamW, its decay and the loss take each network by itself, so
that nothing but rounding tells a network of a stack from one of `train_modular_transformer`. A step of many small
networks takes less than as many steps, above all on a GPU.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from descent.experiments.grokking import WARM_UP, GrokkingRun, ModularExperiment, TrainingStart, prepare_experiment
from descent.models.flat_weights import Layout
from descent.models.transformer import OneLayerTransformer
from descent.repro.machine import compute_device, keep_freed_memory
from descent.training.capture import CapturePlan, GradientRecorder, GradientStack
from descent.training.checkpoints import Losses
from descent.training.loop import Batch, TrainingPlan, fit


class TransformerStack(nn.ModuleList):
    """m networks of the same sizes as one module, whose parameters are theirs.

    Example:
        >>> from descent.models.transformer import TransformerSizes
        >>> models = [OneLayerTransformer(TransformerSizes(7, 8, 2, 16), seed) for seed in range(3)]
        >>> tuple(TransformerStack(models)(torch.zeros(3, 5, 2, dtype=torch.int64)).shape)
        (3, 5, 8)
    """

    def forward(self, pairs: Tensor) -> Tensor:
        """The logits of each network for pairs of its own, `(m, n, 2)` int64 -> `(m, n, symbols + 1)`.

        As in `OneLayerTransformer.activations`, keys and values are computed once for each token and place.
        """
        first = cast(OneLayerTransformer, self[0])
        networks = [dict(network.named_parameters()) for network in self]
        W = {name: torch.stack([each[name] for each in networks]) for name in networks[0]}
        m, n, _ = pairs.shape
        heads, w, v = first.sizes.heads, first.sizes.width, first.sizes.symbols
        tokens, end = W["W_E"][:, :, :-1].mT, W["W_E"][:, :, -1] + W["W_pos"][:, 2]
        sources = torch.cat([tokens + W["W_pos"][:, :1], tokens + W["W_pos"][:, 1:2], end[:, None]], 1)
        places = nn.functional.pad(pairs + pairs.new_tensor([0, v]), (0, 1), value=2 * v)  # (m, n, 3)
        rows = (places + (2 * v + 1) * torch.arange(m, device=pairs.device)[:, None, None]).view(m * n, 3)
        query = torch.einsum("mhdw,mw->mhd", W["W_Q"], end) / math.sqrt(w // heads)
        scores = sources @ torch.einsum("mhd,mhdw->mwh", query, W["W_K"])
        attention = nn.functional.embedding(rows, scores.flatten(0, 1)).softmax(1)  # (m n, 3, h)
        outward = torch.einsum("mwhd,mhdv->mvhw", W["W_O"].view(m, w, heads, -1), W["W_V"])
        written = (sources @ outward.reshape(m, w, heads * w)).view(-1, w)
        bags = (heads * rows[:, :, None] + torch.arange(heads, device=pairs.device)).view(m * n, -1)
        weights = attention.reshape(m * n, -1)
        moved = nn.functional.embedding_bag(bags, written, mode="sum", per_sample_weights=weights)
        residual = end[:, None] + moved.view(m, n, w)
        neurons = torch.baddbmm(W["b_in"][:, None], residual, W["W_in"].mT).relu()
        logits: Tensor = (residual + W["b_out"][:, None]) @ W["W_U"] + neurons @ (W["W_out"].mT @ W["W_U"])
        return logits


def train_together(
    experiments: Sequence[ModularExperiment], folder: Path | None = None, progress: str | None = None
) -> list[GrokkingRun]:
    """Train several experiments in one stack; with a folder, a killed stack goes on bit for bit.

    Args:
        experiments: alike in the sizes of the network, in `steps`, `every` and `learning_rate`, each on all of its
            pairs at once. Operation, data fraction, weight decay and seed may differ.
        folder: a folder for this stack alone; None keeps everything in memory.
        progress: text before a progress bar; None shows none.

    Raises:
        ValueError: no experiment, or some that differ in what they must share; and as `train_modular_transformer`.
        DamagedCheckpointError: the folder is another stack's, or damaged.
    """
    _refuse_unlike(experiments)
    keep_freed_memory()
    first, starts = experiments[0], [prepare_experiment(each) for each in experiments]
    if len(sizes := {start.model.sizes for start in starts}) > 1:
        raise ValueError(f"networks of {sorted(map(str, sizes))}: expected one size in a stack")
    stack = TransformerStack(start.model for start in starts)
    groups = [
        {"params": list(start.model.parameters()), "weight_decay": each.weight_decay}
        for start, each in zip(starts, experiments, strict=True)
    ]
    optimizer = AdamW(groups, first.learning_rate, (0.9, 0.98), fused=True)
    batch = tuple(part.to(compute_device()) for part in _padded(starts))
    plan = TrainingPlan(
        first.steps,
        LambdaLR(optimizer, lambda step: min(step / WARM_UP, 1.0)),
        checkpoints=folder and folder / "unfinished",
        checkpoint_every=10 * first.every,
        run=stack_digest(experiments),
        progress=progress,
    )
    kept = CapturePlan(range(0, first.steps, first.every), "weight")
    with GradientRecorder(stack, optimizer, kept, folder and folder / "weights") as recorder:
        losses = fit(stack, _loss_of_all, lambda step: batch, optimizer, plan, recorders=[recorder])
        return _taken_apart(experiments, starts, losses, recorder.stack())


def stack_digest(experiments: Sequence[ModularExperiment]) -> str:
    """Twelve hexadecimal digits that name the experiments of a stack, in their order."""
    return hashlib.sha256(" ".join(each.digest() for each in experiments).encode()).hexdigest()[:12]


def _refuse_unlike(experiments: Sequence[ModularExperiment]) -> None:
    if not experiments:
        raise ValueError("no experiment to train: expected at least one")
    for name in ("width", "heads", "hidden", "learning_rate", "batch_size", "steps", "every"):
        if len(values := {getattr(each, name) for each in experiments}) > 1:
            raise ValueError(f"{name}={sorted(values, key=str)}: expected one value for all networks of a stack")
    if experiments[0].batch_size is not None:
        raise ValueError(f"batch_size={experiments[0].batch_size}: expected None, all pairs at once")


def _padded(starts: Sequence[TrainingStart]) -> Batch:
    """Pairs `(m, n, 2)`, targets `(m, n)` and what each counts in its mean `(m, n)`, which is zero beyond its own."""
    shown = [(start.task.pairs[start.train], start.task.targets[start.train]) for start in starts]
    longest = max(len(targets) for _, targets in shown)
    pairs = torch.zeros(len(starts), longest, 2, dtype=torch.int64)
    targets, counts = torch.zeros(len(starts), longest, dtype=torch.int64), torch.zeros(len(starts), longest).double()
    for number, (own, results) in enumerate(shown):
        pairs[number, : len(own)], targets[number, : len(own)] = own, results
        counts[number, : len(own)] = 1 / len(own)
    return pairs, targets, counts


def _loss_of_all(stack: nn.Module, batch: Batch) -> Tensor:
    """The sum over networks of cross-entropies in nats, mean per example, with the softmax in float64.

    Gradients of logits too small for float32 are set to zero, as in `cross_entropy_in_double`.
    """
    pairs, targets, counts = batch
    logits: Tensor = stack(pairs)
    if logits.requires_grad:
        tiny = torch.finfo(logits.dtype).tiny
        logits.register_hook(lambda gradient: nn.functional.hardshrink(gradient, tiny))  # type: ignore[no-untyped-call]
    each = nn.functional.cross_entropy(logits.double().flatten(0, 1), targets.flatten(), reduction="none")
    return (each * counts.flatten()).sum()


def _taken_apart(
    experiments: Sequence[ModularExperiment], starts: Sequence[TrainingStart], losses: Losses, stack: GradientStack
) -> list[GrokkingRun]:
    """The runs of a stack; their `losses` are the mean over its networks, since `fit` keeps one number a step."""
    runs, layout = [], Layout.of(starts[0].model.named_parameters())
    for number, (experiment, start) in enumerate(zip(experiments, starts, strict=True)):
        rows = stack.rows[:, number * layout.size : (number + 1) * layout.size]
        own = GradientStack(rows, stack.steps, layout)
        mean = losses / len(experiments)
        runs.append(GrokkingRun(experiment, start.task, start.train, start.test, mean, own, start.model.cpu()))
    return runs
