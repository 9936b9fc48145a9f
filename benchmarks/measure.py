"""What the benchmarks share: a result, timing, peak memory, the machine's description."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch

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
