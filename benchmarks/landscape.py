"""Seconds per point of a loss surface: ours against the code of Li et al. 2018 and the textbook method, in one run.

A point is: weights moved along two filter-normalised directions, then the mean cross-entropy over the first 1,000
training images of CIFAR-10 in evaluation mode. Networks are ResNet-20 and ResNet-56 with projection shortcuts, the same
weights in all variants: those of data/checkpoints where they are there, else initial ones with random affine parameters
and collected statistics. All variants have as many threads as this process has cores; they take turns, and figures are
medians over the turns. CIFAR-10 is looked for as data/README.md says, and fetched (170 MB) if it is absent.

Their code takes part when PEERS names a folder that holds its repository:
    git clone https://github.com/tomgoldstein/loss-landscape peers/loss-landscape && PEERS=peers make bench
Of it (commit 64ef4d5 was used) the network, `set_weights` and `eval_loss` run as they stand with Python 3.11 and torch
2.13. `net_plotter` imports h5py and torchvision, which nothing that is called here uses: empty modules stand in for
them. Its program `plot_surface.py` does not run with NumPy 2 (a float as number of grid points), nor does `--mpi`
(np.float). Batches are of 128 images, its default. Its surface uses the training loader, which by default starts two
processes for each point; they are given standardised images in memory, where its own decodes them anew for each point.
A second variant has no such processes; the fairer ratio is to the faster of the two. Without PEERS only the textbook
method is compared with.
"""

from __future__ import annotations

import copy
import importlib
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from descent.data.datasets import load_dataset, standardise
from descent.landscape.directions import Direction, random_direction
from descent.landscape.evaluator import Evaluator
from descent.landscape.surface import plane_grid
from descent.models.published_weights import ResNetDescription, load_checkpoint
from descent.repro.machine import cores, has_bfloat16
from descent.repro.seeding import torch_generator
from measure import Result, gemm, importable, interleaved, operations

Point = tuple[float, float]
Variant = Callable[[Point], float]
CHECKPOINTS = Path(__file__).parents[1] / "data" / "checkpoints"
POINTS: tuple[Point, ...] = ((0, 0), (-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5))
BATCH = 128  # theirs by default


class Plane(NamedTuple):
    """A network in evaluation mode, images, and two directions through its weights."""

    depth: int
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    directions: list[Direction]

    def evaluator(self, precision: str, images: int | None = None) -> Evaluator:
        """Ours."""
        data = self.inputs[:images], self.targets[:images]
        return Evaluator(self.model, *data, self.directions, precision=precision)


def cifar(count: int) -> tuple[Tensor, Tensor]:
    """The first training images and their classes, standardised."""
    train = load_dataset("cifar10")
    some = replace(train, inputs=train.inputs[:count], targets=train.targets[:count])
    return standardise(some, train), some.targets.clone()


def plane(depth: int, data: tuple[Tensor, Tensor]) -> Plane:
    """Trained where its checkpoint is there."""
    network = ResNetDescription(depth, "projection")
    if (CHECKPOINTS / f"{network.name}.safetensors").is_file():
        model = load_checkpoint(CHECKPOINTS, network).model
    else:
        model = settled(network.build(), data[0][:250])
    return Plane(depth, model, *data, [random_direction(model, 0, name) for name in ("alpha", "beta")])


def settled(model: nn.Module, inputs: Tensor) -> nn.Module:
    """With random affine parameters and the images' statistics in batch normalisation, so that folding matters."""
    generator = torch_generator(0, "affine")
    with torch.no_grad():
        for norm in (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.2, generator=generator)
            norm.momentum = None  # statistics are the mean over all batches
        model.train()
        for part in inputs.split(125):
            model(part)
    return model.eval()


def textbook(work: Plane) -> Variant:
    """The moved weights are loaded, then a loop over batches: float32, channels first, batch normalisation as it is."""
    model, base = copy.deepcopy(work.model), copy.deepcopy(work.model.state_dict())
    alpha, beta = work.directions

    def loss(point: Point) -> float:
        model.load_state_dict({**base, **{n: base[n] + point[0] * alpha[n] + point[1] * beta[n] for n in alpha}})
        batches = zip(work.inputs.split(BATCH), work.targets.split(BATCH), strict=True)
        with torch.no_grad():
            sums = [float(nn.functional.cross_entropy(model(x), y, reduction="sum")) for x, y in batches]
        return sum(sums) / len(work.targets)

    return loss


def ours(work: Plane, precision: str) -> Variant:
    evaluator = work.evaluator(precision)
    return lambda point: float(evaluator(point)["loss"][0])


def theirs(work: Plane, folder: Path, workers: int) -> Variant:
    """Li et al.'s network with the same weights, moved and evaluated by their functions."""
    with importable(folder, ("h5py", "torchvision")):
        names = ("net_plotter", "evaluation", "cifar10.models.resnet")
        plotter, evaluation, resnet = (importlib.import_module(name) for name in names)
    model, state = getattr(resnet, f"ResNet{work.depth}")(), work.model.state_dict()
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))  # both in the order of use
    still = [(name, torch.zeros_like(weight)) for name, weight in work.model.named_parameters()]
    directions = [[direction.get(name, zero) for name, zero in still] for direction in work.directions]
    weights, criterion = plotter.get_weights(model), nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(work.inputs, work.targets), BATCH, shuffle=False, num_workers=workers)

    def loss(point: Point) -> float:
        plotter.set_weights(model, weights, directions, point)
        return float(evaluation.eval_loss(model, criterion, loader, False)[0])

    return loss


def precisions() -> list[str]:
    return ["float32", "bfloat16"] if has_bfloat16(torch.device("cpu")) else ["float32"]


def variants(work: Plane) -> dict[str, tuple[str, Variant]]:
    """Name -> precision and loss at a point; the first is what the others are compared with."""
    found: dict[str, tuple[str, Variant]] = {}
    if folder := os.environ.get("PEERS"):
        for name, workers in {"Li et al.": 2, "Li et al., no loader processes": 0}.items():
            found[name] = "float32", theirs(work, Path(folder) / "loss-landscape", workers)
    found["textbook"] = "float32", textbook(work)
    for precision in precisions():
        found[f"ours, {precision}"] = precision, ours(work, precision)
    return found


def per_point(work: Plane, rates: Mapping[str, float]) -> list[Result]:
    """Each variant at 5 points of the plane, in turn.

    Seconds are of a point; the share is of the rate of a matrix product of the same precision, for the operations of
    convolutions and linear layer only; the difference is from the textbook's loss, over that, the largest of 5 points.
    """
    found = variants(work)
    losses = {name: lambda number, at=at: at(POINTS[number]) for name, (_, at) in found.items()}
    measured = interleaved(losses, len(POINTS))
    reference, exact = next(iter(found)), np.array(measured["textbook"][1])
    flop = operations(work.model, work.inputs[:1]) * len(work.inputs)
    results = []
    for name, (precision, _) in found.items():
        seconds, values = measured[name]
        figures = {"seconds per point": seconds, f"seconds / {reference}": seconds / measured[reference][0]}
        figures["share of matrix rate"] = flop / seconds / rates[precision]
        figures["largest relative difference"] = float(np.abs(np.array(values) / exact - 1).max())
        results.append(Result(f"a point of the surface, {described(work)}", name, figures))
    return results


def described(work: Plane) -> str:
    return f"ResNet-{work.depth}, {len(work.inputs):,} images"


def begin(packed: bytes) -> None:
    """In a process of its own: one thread, and the evaluator."""
    global _evaluator
    torch.set_num_threads(1)
    _evaluator = pickle.loads(packed)  # noqa: S301 (the parent process made it)


def evaluate(point: Point) -> float:
    return float(_evaluator(point)["loss"][0])


def processes(work: Plane, rounds: int) -> list[Result]:
    """Seconds per point, when two a core are due, of ours: processes of one thread, or one of as many threads."""
    count, at = cores(), ours(work, "auto")
    points = [POINTS[i % len(POINTS)] for i in range(2 * count)]
    packed = pickle.dumps(work.evaluator("auto"))  # bytes: tensors by themselves would arrive in shared memory
    with get_context("spawn").Pool(count, begin, (packed,)) as pool:
        one, many = f"one process of {count} threads", f"{count} processes of one thread"
        works = {one: lambda _: [at(p) for p in points], many: lambda _: pool.map(evaluate, points, chunksize=1)}
        measured = interleaved(works, rounds)
    results = []
    for name, (seconds, _) in measured.items():
        figures = {"seconds per point": seconds / len(points), "seconds / one process": seconds / measured[one][0]}
        results.append(Result(f"{len(points)} points, ours, {described(work)}", name, figures))
    return results


def grid_of(work: Plane, images: int, side: int) -> Callable[[int], object]:
    evaluator, line = work.evaluator("auto", images), np.linspace(-0.5, 0.5, side)
    points = plane_grid(line, line)
    return lambda _: evaluator(points)


def growth(against: str, cases: Mapping[int, tuple[Plane, int, int]], rounds: int) -> Result:
    """Seconds per point as a power of the size: exponent by least squares in logarithms, and that of the operations."""
    # the cases: size -> network, images, points along a side of the grid
    works = {str(size): grid_of(*case) for size, case in cases.items()}
    flop = [operations(work.model, work.inputs[:1]) * images for work, images, _ in cases.values()]
    measured = interleaved(works, rounds)
    seconds = [measured[str(size)][0] / side**2 for size, (_, _, side) in cases.items()]
    exponents = [np.polyfit(np.log(list(cases)), np.log(values), 1)[0] for values in (seconds, flop)]
    figures = {"exponent": float(exponents[0]), "exponent of operations": round(float(exponents[1]), 9) + 0.0}
    figures |= {f"seconds at {size}": taken for size, taken in zip(cases, seconds, strict=True)}
    return Result("growth of seconds per point, ours", f"with {against}", figures)


def growths(data: tuple[Tensor, Tensor], counts: list[int], depths: list[int], some: int) -> list[Result]:
    """With the number of images, of grid points, and with depth; the latter two at `some` images."""
    work = plane(20, data)
    return [
        growth("images, ResNet-20", {count: (work, count, 1) for count in counts}, 3),
        growth(f"grid points, ResNet-20, {some} images", {side**2: (work, some, side) for side in (2, 3, 4)}, 3),
        growth(f"depth, {some} images", {depth: (plane(depth, data), some, 1) for depth in depths}, 3),
    ]


def run() -> list[Result]:
    """Both networks, then the growth."""
    before = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        rates = {precision: gemm(precision, 4096, 5) for precision in precisions()}
        results = [Result("product of two 4096 x 4096 matrices", p, {"GFLOP/s": r / 1e9}) for p, r in rates.items()]
        inputs, targets = cifar(2000)
        for depth in (20, 56):
            print(f"  a point, ResNet-{depth} ...", file=sys.stderr, flush=True)
            work = plane(depth, (inputs[:1000], targets[:1000]))
            results += per_point(work, rates) + processes(work, 3)
        print("  growth ...", file=sys.stderr, flush=True)
        return results + growths((inputs, targets), [125, 250, 500, 1000, 2000], [8, 20, 32, 56, 110], 250)
    finally:
        torch.set_num_threads(before)
