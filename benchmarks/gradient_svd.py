"""The exact SVD of a gradient stack: ours against LAPACK, ARPACK and the randomised method, in one run.

One 1,876 x 101,770 float32 matrix: two epochs of MNIST at batch 64, a network of 784-128-10. It is a low-rank signal
with decaying values plus noise, so that LAPACK's values are known at every size. Run through `make bench`.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from sklearn.utils.extmath import randomized_svd

from descent.models.image_networks import mlp
from descent.repro.seeding import deterministic
from descent.spectra.singular_values import gram_matrix, singular_spectrum
from descent.training.capture import CapturePlan, GradientRecorder
from descent.training.loop import MiniBatches, TrainingPlan, batch_cross_entropy, fit
from measure import PeakMemory, Result, repeat

STEPS, PARAMETERS, LEADING = 1876, 101_770, 200
MEMORY_LIMIT = 2 * 2**30  # of the run on a matrix larger than its memory


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Rank-80 signal with values over one and a half decades, plus noise: `(rows, columns)` float32."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(rows, 80, generator=generator) * torch.logspace(0, -1.5, 80)
    out = signal @ torch.randn(80, columns, generator=generator)
    return out.add_(torch.randn(rows, columns, generator=generator), alpha=0.02).numpy()


def ours(rows: np.ndarray) -> np.ndarray:
    return singular_spectrum(gram_matrix(rows)).values


def ours_with_vectors(rows: np.ndarray) -> np.ndarray:
    found = singular_spectrum(gram_matrix(rows))
    found.right(rows, LEADING)
    return found.values


def lapack_thin(rows: np.ndarray) -> np.ndarray:
    return np.linalg.svd(rows, full_matrices=False)[1]


def arpack(rows: np.ndarray) -> np.ndarray:
    return np.sort(scipy.sparse.linalg.svds(rows, LEADING, random_state=0)[1])[::-1]


def randomised(rows: np.ndarray) -> np.ndarray:
    return randomized_svd(rows, LEADING, n_iter=4, random_state=0)[1]


METHODS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {  # with the number of runs
    "ours: all values, step-side vectors": (ours, 3),
    f"ours: the same and {LEADING} parameter-side vectors": (ours_with_vectors, 3),
    "numpy.linalg.svd, thin": (lapack_thin, 1),
    f"scipy.sparse.linalg.svds, {LEADING}": (arpack, 1),
    f"sklearn randomized_svd, {LEADING}": (randomised, 3),
}


def methods() -> list[Result]:
    """Every method on the one matrix: seconds, error against LAPACK in float64, peak extra memory, ratios."""
    rows = matrix(STEPS, PARAMETERS)
    seconds, values, extra = {}, {}, {}
    for name, (method, runs) in METHODS.items():
        print(f"  {name} ...", file=sys.stderr, flush=True)
        with PeakMemory() as memory:
            seconds[name], values[name] = repeat(partial(method, rows), runs)
        extra[name] = memory.extra_bytes
    print("  LAPACK's values in float64, the yardstick ...", file=sys.stderr, flush=True)
    exact = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    thin, task = seconds["numpy.linalg.svd, thin"], "SVD of 1,876 x 101,770 float32"
    results = []
    for name, found in values.items():
        figures = {"seconds": seconds[name], "times faster than thin SVD": thin / seconds[name]}
        figures["largest error / first value"] = float(np.abs(found - exact[: len(found)]).max() / exact[0])
        figures["extra memory / matrix"] = extra[name] / rows.nbytes
        results.append(Result(task, name, figures))
    return results


def gemm_rate() -> list[Result]:
    """The Gram step's rate against a square float64 GEMM, both in one run; a symmetric product needs half the work."""
    rows = matrix(STEPS, PARAMETERS)
    side = 3000
    square, other = np.random.default_rng(0).standard_normal((2, side, side))
    gemm, _ = repeat(lambda: square @ other, 5)
    peak = 2 * side**3 / gemm
    took, _ = repeat(lambda: gram_matrix(rows), 3)
    done = (STEPS + 1) * STEPS * PARAMETERS / took  # one triangle, a multiply and an add for each entry
    figures = {
        "GEMM GFLOP/s": peak / 1e9,
        "Gram GFLOP/s (one triangle)": done / 1e9,
        "fraction of GEMM rate": done / peak,
    }
    figures["fraction, counted as a full product"] = 2 * STEPS / (STEPS + 1) * done / peak
    return [Result("Gram step", "float64 over column blocks", figures)]


def growth() -> list[Result]:
    """Fitted exponents of seconds in steps and in parameters (least squares on logarithms)."""
    results = []
    for what, sizes in {
        "steps": [(n, PARAMETERS) for n in (469, 938, 1876)],
        "parameters": [(938, p) for p in (50_885, 101_770, 203_540, 407_080)],
    }.items():
        taken = []
        for rows, columns in sizes:
            data = matrix(rows, columns)
            taken.append(repeat(partial(ours, data), 3)[0])
        axis = [math.log(size[0] if what == "steps" else size[1]) for size in sizes]
        exponent = float(np.polyfit(axis, np.log(taken), 1)[0])
        results.append(Result("growth of seconds", f"in {what}", {"exponent": exponent, "largest, seconds": taken[-1]}))
    return results


def larger_than_memory() -> list[Result]:
    """A store larger than the memory that the process may use (an address-space-free limit: RLIMIT_DATA)."""
    columns = 500_000
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder, "rows.f32")
        with open(path, "wb") as file:
            for start in range(0, STEPS, 67):
                matrix(min(67, STEPS - start), columns, seed=start).tofile(file)
        command = [sys.executable, __file__, "--limited", str(path), str(STEPS), str(columns)]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        took = time.perf_counter() - began
        size = path.stat().st_size
    peak = float(done.stdout.split()[-1])
    figures = {
        "seconds": took,
        "matrix / memory allowed": size / MEMORY_LIMIT,
        "private memory at peak / matrix": peak / size,
    }
    return [Result("larger than its memory", f"{STEPS:,} x {columns:,} from a store", figures)]


def limited(path: str, rows: int, columns: int) -> None:
    """The child of `larger_than_memory`: heap capped by the kernel, the store mapped read-only."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    singular_spectrum(gram_matrix(np.memmap(path, np.float32, "r", shape=(rows, columns))))
    anonymous = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    print(int(anonymous.split()[1]) * 1024)


def capture_cost() -> list[Result]:
    """A training step with and without the recorder, in turn, so that drift of the machine's speed cancels."""
    inputs = torch.rand(60_000, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    batches = MiniBatches((inputs, torch.arange(60_000) % 10), 64, 0)
    results = []
    for label, recipe in {
        "every step": CapturePlan(range(10**9)),
        "400 of 1,876 steps": CapturePlan(range(0, 1876, 5)),
    }.items():
        ratios, plain_ms = [], []
        for _ in range(9):
            plain, recorded = (step_seconds(batches, which) for which in (None, recipe))
            ratios.append(recorded / plain)
            plain_ms.append(plain * 1e3)
        figures = {"plain step, ms": float(np.median(plain_ms)), "extra / plain step": float(np.median(ratios)) - 1}
        results.append(Result("capture of 101,770 gradients", label, figures))
    return results


def step_seconds(batches: MiniBatches, recipe: CapturePlan | None, steps: int = 600) -> float:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, deterministic(1):
        model = mlp((1, 28, 28), [128], 10, 0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recorder = GradientRecorder(model, optimizer, recipe, Path(folder)) if recipe is not None else None
        began = time.perf_counter()
        fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(steps))
        if recorder is not None:
            recorder.close()  # what is still on its way to the disk counts
        return (time.perf_counter() - began) / steps


def run() -> list[Result]:
    """All parts, in order."""
    parts: list[Callable[[], list[Result]]] = [capture_cost, gemm_rate, methods, growth, larger_than_memory]
    results: list[Result] = []
    for part in parts:
        print(f"gradient_svd: {part.__name__} ...", file=sys.stderr, flush=True)
        results += part()
    return results


if __name__ == "__main__" and sys.argv[1:2] == ["--limited"]:
    _: Any = limited(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
