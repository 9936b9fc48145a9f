"""What the benchmarks share: a result, timing, peak memory, operations, a peer's modules, the machine's description."""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """One row of the table: what was measured, on which variant, and the figures."""

    task: str
    variant: str
    figures: dict[str, float]


def repeat(work: Callable[[], T], runs: int) -> tuple[float, T]:
    """Median seconds of `runs` runs, and the last run's result."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        result = work()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken)), result


def interleaved(works: Mapping[str, Callable[[int], T]], rounds: int) -> dict[str, tuple[float, list[T]]]:
    """Median seconds and all results of each; a round, whose number they are given, runs all. One more goes before."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    results: dict[str, list[T]] = {name: [] for name in works}
    for number in (0, *range(rounds)):
        for name, work in works.items():
            began = time.perf_counter()
            result = work(number)
            taken[name].append(time.perf_counter() - began)
            results[name].append(result)
    return {name: (float(np.median(taken[name][1:])), results[name][1:]) for name in works}


class PeakMemory:
    """A block's greatest resident memory above that at its start, sampled every 5 ms: `extra_bytes`."""

    def __enter__(self) -> PeakMemory:
        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self._peak = self._process.memory_info().rss
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()
        self.extra_bytes = self._peak - self._before


def operations(model: nn.Module, inputs: Tensor) -> float:
    """Floating-point operations of a pass: two a multiply-add of convolutions and linear layers, by their shapes."""
    found = []

    def count(layer: Any, _: object, output: Tensor) -> None:
        found.append(2 * output.numel() * layer.weight[0].numel())

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return float(sum(found))


def gemm(precision: str, size: int, runs: int) -> float:
    """Floating-point operations a second of a square matrix product, best of the runs."""
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(getattr(torch, precision))
    taken = []
    for _ in range(runs + 1):  # the first prepares the kernel
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        taken.append(time.perf_counter() - began)
    return 2 * size**3 / min(taken[1:])


@contextmanager
def importable(folder: Path, absent: tuple[str, ...]) -> Iterator[None]:
    """Modules of `folder` can be imported inside the block; empty modules stand in for the absent ones."""
    empty = {name: ModuleType(name) for name in absent if name not in sys.modules}
    sys.modules.update(empty)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in empty:
            del sys.modules[name]


def machine() -> dict[str, str | int]:
    """The processor, cores, memory and versions that the figures belong to."""
    name = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return {
        "processor": name,
        "cores": os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
