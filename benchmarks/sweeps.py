"""A surface's points shared out: seconds with more workers, on this machine's processes and on a local Dask cluster.

The points are those of a 12 x 12 grid on a filter-normalised plane of ResNet-20 over 250 training images of CIFAR-10,
in shards of 12. Every worker has one thread. Start-up counts where it belongs to the sweep (joblib's processes, the
network's journey) and not where it does not (the cluster is there before). CIFAR-10 is looked for as
data/README.md says.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from distributed import LocalCluster

from descent.data.datasets import load_dataset, standardise
from descent.landscape.directions import random_direction
from descent.landscape.evaluator import Evaluator
from descent.landscape.surface import plane_grid
from descent.models.image_networks import cifar_resnet
from descent.repro.machine import cores
from descent.repro.sweeps import Sweep, sweep
from measure import Result

SIDE, IMAGES, SHARD = 12, 250, 12
TASK = f"a surface of {SIDE} x {SIDE} points, ResNet-20, {IMAGES} images, shards of {SHARD}"


def evaluator() -> Evaluator:
    """Initial weights will do: what a point costs does not depend on them."""
    data, model = load_dataset("cifar10"), cifar_resnet(20, 10, 0).eval()
    directions = [random_direction(model, 0, name) for name in ("alpha", "beta")]
    return Evaluator(model, standardise(data)[:IMAGES].clone(), data.targets[:IMAGES].clone(), directions)


@contextmanager
def cluster(workers: int) -> Iterator[str]:
    """The address of a scheduler with that many worker processes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a busy machine makes Dask warn of its own slowness
        with LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None) as local:
            yield local.scheduler_address


def run() -> list[Result]:
    """Seconds, speed-up over one process, and speed-up over the number of workers; whether the bits are the same."""
    task, axis = evaluator(), np.linspace(-1, 1, SIDE)
    points = plane_grid(axis, axis)
    counts = sorted({1, cores()})
    seconds: dict[str, tuple[int, float]] = {}
    same = {}

    def measure(name: str, workers: int, how: Sweep) -> None:
        began = time.perf_counter()
        values = sweep(task, points, how, "benchmark")
        seconds[name] = workers, time.perf_counter() - began
        same[name] = float(np.array_equal(values["loss"], reference["loss"]))

    reference = sweep(task, points[:SHARD], Sweep(shard_size=SHARD, workers=1), "benchmark")  # prepares the kernels
    reference = sweep(task, points, Sweep(shard_size=SHARD, workers=1), "benchmark")
    for count in counts:
        measure(f"this machine, {count} workers", count, Sweep(shard_size=SHARD, workers=count))
    for count in counts:
        with cluster(count) as address:
            measure(f"Dask, {count} workers", count, Sweep(address, shard_size=SHARD))
    one = seconds["this machine, 1 workers"][1]
    results = []
    for name, (count, taken) in seconds.items():
        figures = {"seconds": taken, "speed-up": one / taken, "of the ideal": one / taken / count}
        results.append(Result(TASK, name, {**figures, "equal to the last bit": same[name]}))
    return results
