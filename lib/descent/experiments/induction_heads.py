"""Repeated blocks in random tokens, and the attention-only transformer that learns to copy them.

This is the companion task of the chapter `grokking_basins`: such a network has a phase change on data that it never
sees twice (Olsson et al. 2022, In-context learning and induction heads; sizes are those of Nanda's published run).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW

from descent.repro.seeding import torch_generator
from descent.training.loop import Batch, TrainingPlan, fit


@dataclass(frozen=True)
class InductionExperiment:
    """All that decides a run: batch, sizes and learning rate are the source's, whose layout of blocks is not known.

    The source's weight decay is 1. With this layout the network would then copy hardly anything within the steps; with
    0.1 it does.

    Attributes:
        vocabulary: number of different tokens.
        length: number of tokens in a sequence.
        block, repeats: one block of random tokens stands in a sequence `repeats` times, at random places.
        width, heads, layers: sizes of the network.
        batch_size: sequences per step, new ones at every step.
        learning_rate, weight_decay: those of AdamW with betas 0.9 and 0.98.
        steps: number of steps in all.
        every: steps from one look at the losses to the next.
        seed: decides the weights and the sequences.

    Raises:
        ValueError: a size below 1, one occurrence only, heads that do not divide the width, or blocks that do not fit.
    """

    vocabulary: int = 128
    length: int = 85
    block: int = 16
    repeats: int = 3
    width: int = 48
    heads: int = 4
    layers: int = 2
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    steps: int = 6000
    every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.vocabulary, self.block, self.width, self.heads, self.layers, self.batch_size, self.every)
        if min(sizes) < 1 or self.repeats < 2 or self.width % self.heads:
            raise ValueError(f"{self}: expected sizes of at least 1, two occurrences, heads that divide the width")
        if self.block * self.repeats > self.length:
            raise ValueError(f"{self.repeats} blocks of {self.block} tokens do not fit in {self.length}")


@dataclass(frozen=True)
class InductionRun:
    """What a run gave; losses are in nats.

    Attributes:
        losses: `(steps,)`, the loss of each step's batch before its update, mean per predictable token.
        looks: `(m,)`, the numbers of steps after which the fixed sequences were looked at; the first is 0.
        token_losses: `(m, sequences * (length - 1))` float32, one for each token of the fixed sequences but the first.
        predictable: `(sequences * (length - 1),)` bool, whether a token can be known from what stands before it.
    """

    losses: NDArray[np.float64] = field(repr=False)
    looks: NDArray[np.int64] = field(repr=False)
    token_losses: NDArray[np.float32] = field(repr=False)
    predictable: NDArray[np.bool_] = field(repr=False)


def repeated_blocks(of: InductionExperiment, count: int, generator: torch.Generator) -> Batch:
    """Random tokens `(count, length)` int64 with their blocks, and which can be predicted, `(count, length - 1)` bool.

    Entry t of the latter is for token t + 1: true in every occurrence of the block after the first one, but not for the
    token with which it begins.
    """
    tokens = torch.randint(of.vocabulary, (count, of.length), generator=generator)
    block = torch.randint(of.vocabulary, (count, of.block), generator=generator)
    free = of.length - of.block * of.repeats
    before = torch.randint(free + 1, (count, of.repeats), generator=generator).sort(1).values
    known = torch.zeros(count, of.length, dtype=torch.bool)
    for number in range(of.repeats):
        places = (before[:, number] + number * of.block)[:, None] + torch.arange(of.block)
        tokens.scatter_(1, places, block)
        if number:
            known.scatter_(1, places[:, 1:], True)
    return tokens, known[:, 1:]


class AttentionOnly(nn.Module):
    """A transformer of causal attention layers on a residual stream, without MLPs, biases and normalisation.

    With w the width and v the vocabulary, its weights are `W_E` (v, w), `W_pos` (length, w), `W_U` (w, v) and, for each
    layer, `W_QKV` (3 w, w) and `W_O` (w, w). All start Gaussian with variance 1 / w.
    """

    def __init__(self, of: InductionExperiment) -> None:
        super().__init__()
        generator = torch_generator(of.seed, "weights")

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) / math.sqrt(of.width))

        self.heads = of.heads
        self.W_E, self.W_pos = normal(of.vocabulary, of.width), normal(of.length, of.width)
        self.W_QKV = nn.ParameterList(normal(3 * of.width, of.width) for _ in range(of.layers))
        self.W_O = nn.ParameterList(normal(of.width, of.width) for _ in range(of.layers))
        self.W_U = normal(of.width, of.vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits of the next token, `(n, t) -> (n, t, vocabulary)`."""
        residual = self.W_E[tokens] + self.W_pos[: tokens.shape[1]]
        for inward, outward in zip(self.W_QKV, self.W_O, strict=True):
            parts = (residual @ inward.T).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
            residual = residual + mixed.transpose(1, 2).flatten(2) @ outward.T
        return residual @ self.W_U


def token_losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """The loss of each token but the first, `(n, t) -> (n, t - 1)`, in nats per token."""
    logits = model(tokens[:, :-1])
    return nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def predictable_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean of `token_losses` over the tokens that can be predicted; `batch` is what `repeated_blocks` gives."""
    tokens, known = batch
    return token_losses(model, tokens)[known].mean()


def train_induction(of: InductionExperiment, count: int = 100, progress: str | None = None) -> InductionRun:
    """Train on sequences that never come twice, and measure the loss of `count` fixed ones every so many steps.

    Args:
        of: what to train.
        count: number of fixed sequences, which come from a stream of their own.
        progress: text before a progress bar; None shows none.

    Raises:
        ValueError: no step.
        DivergenceError: a loss that is not finite.
    """
    model = AttentionOnly(of)
    fixed, known = repeated_blocks(of, count, torch_generator(of.seed, "fixed sequences"))
    losses: list[NDArray[np.float32]] = []

    def look(step: int, _: float) -> None:
        if (step + 1) % of.every == 0:
            with torch.no_grad():
                losses.append(token_losses(model, fixed).flatten().numpy())

    look(-1, math.nan)
    optimizer = AdamW(model.parameters(), of.learning_rate, (0.9, 0.98), weight_decay=of.weight_decay)
    plan = TrainingPlan(of.steps, callbacks=[look], progress=progress)

    def batch(step: int) -> Batch:
        return repeated_blocks(of, of.batch_size, torch_generator(of.seed, f"sequences of step {step}"))

    batch_losses = fit(model, predictable_loss, batch, optimizer, plan)
    looks = of.every * np.arange(len(losses), dtype=np.int64)
    return InductionRun(batch_losses, looks, np.stack(losses), known.flatten().numpy())
