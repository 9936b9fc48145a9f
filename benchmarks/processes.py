"""Every hot path in fresh processes: is it fast in some and slow in others?

Where the system puts the threads of a process is settled anew in each, so that a median within one process does not say
how long a step takes in the next. Each path runs in 7 processes, one after another, with as many threads as there are
cores. In a process ours and the textbook's method take turns; its figure is the median over the turns. The table has
the median and the slowest of the processes, the smallest of their ratios, and, where the limit is known, that of the
operations at the rate of a square product in the same process.

python benchmarks/processes.py PATH runs one path in this process and prints its seconds as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import grokking
import hessian
import landscape
import superposition
from descent.repro.machine import cores, keep_freed_memory
from descent.repro.seeding import deterministic, numpy_generator
from descent.spectra.singular_values import gram_matrix
from measure import Result, gemm, interleaved

PROCESSES, TURNS = 7, 9
TASK = f"fresh processes, {PROCESSES} of each"


@dataclass(frozen=True)
class Hot:
    """A path: ours and the textbook's, each of `steps` steps, and the operations of one of ours, 0 if not counted."""

    ours: Callable[[int], object]
    textbook: Callable[[int], object]
    steps: int
    operations: float


def toys(seeds: list[int]) -> Hot:
    """Twenty toy models, beside the source's formulation."""
    ours, together = superposition.ours(seeds), superposition.textbook(superposition.DENSITY)
    steps, count = superposition.STEPS + 1, 10 * superposition.BATCH * superposition.M * superposition.N
    return Hot(lambda _: ours(), lambda _: [together() for _ in range(steps)], steps, count * superposition.MODELS)


def transformer(when: str) -> Hot:
    """A full-batch step of the grokking network, beside the pass over all positions."""
    model, batch = grokking.starts()[when], grokking.batch()
    works = [grokking.training(network, loss, batch) for network, loss in grokking.pair(model)]
    return Hot(*works, grokking.STEPS, grokking.operations_of(model, *batch))


def surface() -> Hot:
    """Points of a loss surface of ResNet-20 in float32, beside loading weights and a loop over batches."""
    work = landscape.plane(20, landscape.cifar(500))
    at, textbook, points = landscape.ours(work, "float32"), landscape.textbook(work), landscape.POINTS
    flop = landscape.operations(work.model, work.inputs[:1]) * len(work.inputs)
    return Hot(lambda turn: at(points[turn % 5]), lambda turn: textbook(points[turn % 5]), 1, flop)


def curvature() -> Hot:
    """A Hessian-vector product of ResNet-20, beside double backward."""
    work = hessian.resnet()
    ours, product = work.operator(), hessian.Textbook().product(work)
    vector = numpy_generator(0, "vector").standard_normal(ours.shape[0])
    narrow = torch.from_numpy(vector).float()
    return Hot(lambda _: ours @ vector, lambda _: product(narrow), 1, 0)


def spectrum() -> Hot:
    """The Gram matrix of 117 gradients of 101,770 numbers, beside the thin SVD."""
    rows = numpy_generator(0, "rows").standard_normal((117, 101_770), dtype=np.float32)
    return Hot(lambda _: gram_matrix(rows), lambda _: np.linalg.svd(rows, full_matrices=False), 1, 0)


PATHS: dict[str, Callable[[], Hot]] = {
    "toy models, one stream of inputs": lambda: toys([0] * superposition.MODELS),
    "toy models, a stream each": lambda: toys(list(range(superposition.MODELS))),
    "grokking, at the start": lambda: transformer("at the start"),
    "grokking, at the end of a run": lambda: transformer("at the end of a run"),
    "a point of a surface": surface,
    "a Hessian-vector product": curvature,
    "a Gram matrix": spectrum,
}


def one(name: str) -> dict[str, float]:
    """Seconds a step of ours and of the textbook's, medians over turns in this process, and the limit's."""
    keep_freed_memory()
    with deterministic(cores()):
        hot = PATHS[name]()
        measured = interleaved({"ours": hot.ours, "textbook": hot.textbook}, TURNS)
        seconds = {each: taken / hot.steps for each, (taken, _) in measured.items()}
        return seconds | {"limit": hot.operations / gemm("float32", 2048, 10)}


def run() -> list[Result]:
    """A row for each path."""
    results = []
    for name in PATHS:
        print(f"  {name} ...", file=sys.stderr, flush=True)
        found = []
        for _ in range(PROCESSES):
            done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        ours, textbook, limit = (np.array([each[key] for each in found]) for key in ("ours", "textbook", "limit"))
        figures = {
            "ms, median": 1e3 * float(np.median(ours)),
            "ms, slowest": 1e3 * float(ours.max()),
            "slowest / median": float(ours.max() / np.median(ours)),
            "textbook / ours, median": float(np.median(textbook / ours)),
            "textbook / ours, least": float((textbook / ours).min()),
        }
        if limit.any():
            figures |= {"times its limit, median": float(np.median(ours / limit))}
            figures |= {"times its limit, most": float((ours / limit).max())}
        results.append(Result(TASK, name, figures))
    return results


if __name__ == "__main__":
    print(json.dumps(one(sys.argv[1])))
