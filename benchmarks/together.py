"""Small networks trained side by side against one by one, in one run: time for a step of a network, and agreement.

784-32-10 on batches of 64, as in the chapter on gradient controls: one by one in a plain loop of PyTorch, which is the
textbook method, and in a stack of k, with operations recorded once or called anew. The limit is the time of the matrix
products of such a step at the rate of one large product on the same thread. Run through `make bench`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from descent.models.image_networks import mlp
from descent.repro.seeding import deterministic
from descent.training.together import ModelStack, StackPlan, train_stack
from measure import Result, gemm, interleaved

SHAPE, HIDDEN, BATCH, STEPS = (1, 28, 28), 32, 64, 500
SIZES, ROUNDS = (1, 8, 32), 3
FLOP = 2 * BATCH * (2 * 784 * HIDDEN + 3 * HIDDEN * 10)  # forward, and back to the weights and the hidden layer


def batches(k: int) -> tuple[Tensor, Tensor]:
    """Inputs `(STEPS, k, BATCH, 1, 28, 28)` and targets."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(STEPS, k, BATCH, *SHAPE, generator=generator)
    return inputs, torch.randint(0, 10, (STEPS, k, BATCH), generator=generator)


def one_by_one(k: int, inputs: Tensor, targets: Tensor) -> Tensor:
    """The textbook loop, for each network by itself; final weights `(k, P)`."""
    rows = []
    for number in range(k):
        model = mlp(SHAPE, [HIDDEN], 10, number)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(STEPS):
            optimizer.zero_grad()
            cross_entropy(model(inputs[step, number]), targets[step, number]).backward()
            optimizer.step()
        rows.append(torch.cat([each.detach().flatten() for each in model.parameters()]))
    return torch.stack(rows)


def side_by_side(k: int, inputs: Tensor, targets: Tensor, recorded: bool) -> Tensor:
    """The same in a stack."""
    stack = ModelStack([mlp(SHAPE, [HIDDEN], 10, number) for number in range(k)])
    if not recorded:
        stack.gradients = stack._gradients  # type: ignore[method-assign]
    return train_stack(stack, lambda step: (inputs[step], targets[step]), StackPlan(STEPS, 0.1)).weights


def run() -> list[Result]:
    """Milliseconds for a step of one network, how many times faster than one by one, times the limit, agreement."""
    results = []
    with deterministic(1):
        limit = 1e3 * FLOP / gemm("float32", 1024, 7)
        for k in SIZES:
            data = batches(k)
            works = {
                "one by one (textbook)": lambda _, k=k, data=data: one_by_one(k, *data),
                "side by side": lambda _, k=k, data=data: side_by_side(k, *data, True),
                "side by side, operations called anew": lambda _, k=k, data=data: side_by_side(k, *data, False),
            }
            found = interleaved(works, ROUNDS)
            expected = found["one by one (textbook)"][1][0]
            alone = found["one by one (textbook)"][0]
            for name, (seconds, weights) in found.items():
                each = 1e3 * seconds / STEPS / k
                figures = {
                    "ms a step and network": each,
                    "times faster": alone / seconds,
                    "times the limit": each / limit,
                }
                figures["largest difference"] = float(np.abs(weights[0] - expected).max())
                results.append(Result(f"{k} networks of 784-{HIDDEN}-10, batches of {BATCH}", name, figures))
    return results
