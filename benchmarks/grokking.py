"""Milliseconds of a full-batch training step of the grokking network: ours, the textbook's pass, the published code.

The network is that of Nanda et al. 2023 at p = 113 on 30 % of the pairs. All have the same weights, the loss in float64
and AdamW, at rate zero so that the weights stay; they take turns, and figures are medians over the turns. The
textbook's pass computes all three positions, attention fused. All have as many threads as this process has cores.

Weights are those of a start, and those of the record of a run's end. There, gradients of many logits are subnormal
numbers; ours has zeros instead, the others multiply them as they are, and so does our pass with the textbook's loss.

The published code takes part when PEERS names a folder that holds its repository:
    cd peers; git clone https://github.com/mechanistic-interpretability-grokking/progress-measures-paper
and then: PEERS=peers make bench. Of it (commit 23d2c64 was used) the class Transformer runs as it stands; it imports
wandb and plotting packages, which nothing that is called here uses: empty modules stand in for those that are absent.
Its own optimiser steps parameter by parameter; it is given the same fused one as the others. Without PEERS only the
textbook's pass is compared with.

The limit is that of the multiplications of our own pass, counted by torch, forward and backward, at the measured rate
of a square product.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.flop_counter import FlopCounterMode

from descent.data.group_tables import modular_task, split_pairs
from descent.experiments.grokking import cross_entropy_in_double
from descent.models.flat_weights import Layout, unflatten
from descent.models.transformer import OneLayerTransformer, TransformerSizes, every_position
from descent.repro.machine import cores, keep_freed_memory
from descent.repro.records import Record
from descent.repro.seeding import deterministic
from descent.training.loop import Batch
from measure import Result, gemm, importable, interleaved

P, FRACTION, SEED, TURNS, STEPS = 113, 0.3, 1, 15, 5
TASK = f"a full-batch training step, p = {P}, {int(FRACTION * P * P):,} pairs"
RECORD = Path(__file__).parents[1] / "data/records/grokking" / f"seed-{SEED}.npz"
Pass = Callable[[Tensor], Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


def published(peers: Path, weights: dict[str, Tensor]) -> tuple[nn.Module, Pass]:
    """The published network with these weights, and its pass."""
    with importable(peers, ("wandb", "pandas")):
        code = importlib.import_module("progress-measures-paper.transformers")
    network = code.Transformer(code.Config(), use_ln=False)
    network.load_state_dict(
        {name: weights.get(name.rsplit(".", 1)[1], tensor) for name, tensor in network.state_dict().items()}
    )

    def forward(pairs: Tensor) -> Tensor:
        tokens = torch.cat([pairs, torch.full((len(pairs), 1), P)], dim=1)
        logits: Tensor = network(tokens)[:, -1]
        return logits

    return network, forward


def of_textbook(forward: Pass) -> Loss:
    """Its loss for a pass."""
    return lambda _, batch: nn.functional.cross_entropy(forward(batch[0]).double(), batch[1])


def training(model: nn.Module, loss: Loss, batch: Batch) -> Callable[[int], None]:
    """A few steps of training."""
    optimizer = AdamW(model.parameters(), 0.0, (0.9, 0.98), weight_decay=1.0, fused=True)

    def steps(_: int) -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()

    return steps


def operations_of(model: OneLayerTransformer, pairs: Tensor, targets: Tensor) -> float:
    """Floating-point operations of the products of one step, two a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(model(pairs), targets).backward()
    model.zero_grad()
    return float(counter.get_total_flops())


def starts() -> dict[str, OneLayerTransformer]:
    """The network at its start, and with the weights of the record."""
    first, last = (OneLayerTransformer(TransformerSizes(P), SEED) for _ in range(2))
    final = Record.load(RECORD).values["final"].astype(np.float32)
    last.load_state_dict(unflatten(torch.from_numpy(final), Layout.of(last.named_parameters())))
    return {"at the start": first, "at the end of a run": last}


def batch() -> Batch:
    """The pairs that are shown, and their sums."""
    task = modular_task("addition", P)
    shown, _ = split_pairs(len(task), FRACTION, SEED)
    return task.pairs[shown], task.targets[shown]


def pair(model: OneLayerTransformer) -> list[tuple[nn.Module, Loss]]:
    """Copies with ours, and with the textbook's pass over all positions."""
    ours, textbook = copy.deepcopy(model), copy.deepcopy(model)
    return [(ours, cross_entropy_in_double), (textbook, of_textbook(lambda x: every_position(textbook, x)))]


def compared(task: str, model: OneLayerTransformer, batch: Batch) -> list[Result]:
    """Milliseconds a step, times slower than ours, largest difference of the logits; ours also against its limit."""
    ours, plain, textbook = (copy.deepcopy(model) for _ in range(3))
    passes: dict[str, tuple[nn.Module, Pass]] = {
        "ours": (ours, ours),
        "our pass, the textbook's loss": (plain, plain),
        "textbook: every position, fused attention": (textbook, lambda x: every_position(textbook, x)),
    }
    if peers := os.environ.get("PEERS"):
        passes["published code"] = published(Path(peers), ours.state_dict())
    with torch.no_grad():
        expected = ours(batch[0])
        apart = {name: float((forward(batch[0]) - expected).abs().max()) for name, (_, forward) in passes.items()}
    limit = operations_of(ours, *batch) / gemm("float32", 2048, 10)
    losses = {name: of_textbook(forward) for name, (_, forward) in passes.items()} | {"ours": cross_entropy_in_double}
    works = {name: training(network, losses[name], batch) for name, (network, _) in passes.items()}
    taken = {name: seconds / STEPS for name, (seconds, _) in interleaved(works, TURNS).items()}
    results = []
    for name, seconds in taken.items():
        figures = {"ms": 1e3 * seconds, "times ours": seconds / taken["ours"], "logits apart": apart[name]}
        if name == "ours":
            figures |= {"times its limit": seconds / limit, "minutes for 12,000 steps": 200 * seconds}
        results.append(Result(task, name, figures))
    return results


def run() -> list[Result]:
    """Of both starts, see `compared`."""
    if "PEERS" not in os.environ:
        print("PEERS is not set: the published code is left out", file=sys.stderr)
    keep_freed_memory()  # for all of them, as training has it
    with deterministic(cores()):
        return [row for when, model in starts().items() for row in compared(f"{TASK}, {when}", model, batch())]
