"""Runs that are killed by signal 9 at random moments and started again until they end, for `test_kills` and its audit.

Each run is a function of a folder, and says which files of the folder are its results.
"""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from small_project import command, environment, read, write_project
from sweep_tasks import Losses

from descent.data.datasets import Dataset
from descent.experiments import cifar_resnets
from descent.experiments.cifar_resnets import ResNetSchedule
from descent.experiments.grokking import ModularExperiment
from descent.experiments.grokking import train_modular_transformer as train_grokking
from descent.models.published_weights import ResNetDescription
from descent.repro.files import sha256_of, write_atomic
from descent.repro.seeding import deterministic, torch_generator
from descent.repro.sweeps import Sweep, sweep

EXPERIMENT = ModularExperiment(p=13, fraction=0.5, width=16, heads=2, hidden=24, steps=600, every=5)
SCHEDULE = ResNetSchedule(epochs=12, small_epochs=1, batch_size=16, snapshots=12)
GRID = np.stack(np.meshgrid(np.linspace(-1, 1, 25), np.linspace(0, 2, 24)), -1).reshape(-1, 2)  # 60 shards of ten
BODY = """import numpy
values = numpy.random.default_rng(settings.seed).normal(size=200_000)
time.sleep(0.3)
if settings.results_dir:
    numpy.save(Path(settings.results_dir, "values.npy"), values)
print(values.sum())"""


def grokking(folder: Path) -> None:
    with deterministic(1):
        run = train_grokking(EXPERIMENT, folder)
        write_atomic(folder / "final.bin", run.final().tobytes() + run.losses.tobytes())


def images(name: str, split: str) -> Dataset:
    generator = torch_generator(0, split)
    targets = torch.arange(64) % 10
    pixels = torch.rand(64, 3, 8, 8, generator=generator) / 2 + targets[:, None, None, None] / 20
    return Dataset(name, split, pixels, targets, 10)


def resnet(folder: Path) -> None:
    plan = cifar_resnets.TrainingPlan
    cifar_resnets.TrainingPlan = lambda *given: plan(*given[:4], 3, *given[5:])  # a checkpoint every third step
    with deterministic(1):
        cifar_resnets.train_resnet(
            ResNetDescription(8, "projection", width=4), folder, SCHEDULE, images, progress=False
        )


def grid(folder: Path) -> None:
    values = sweep(Losses(), GRID, Sweep(folder=folder / "shards", shard_size=10, workers=2), "killed")
    write_atomic(folder / "final.bin", b"".join(values[name].tobytes() for name in sorted(values)))


@dataclass(frozen=True)
class Run:
    """What is run, and the patterns of the files that are its results."""

    body: Callable[[Path], None]
    results: tuple[str, ...]


RUNS = {
    "training and capture of weights (grokking)": Run(grokking, ("final.bin", "weights/*")),
    "training (residual network)": Run(resnet, ("*.safetensors", "*.npz", "*.json")),
    "grid of a surface (sweep)": Run(grid, ("final.bin", "shards/*")),
}


def detached(body: Callable[[Path], None], folder: Path) -> None:
    """The body, blind to the checkout's commit, which its results name and which may change during a long audit."""
    os.environ["PATH"] = os.devnull  # there is no git
    body(folder)
    os._exit(0)  # else it would wait for joblib's idle processes, which end after five minutes


def start(body: Callable[[Path], None], folder: Path, seconds: float | None) -> int | None:
    """The run in a process of its own, killed after so many seconds if they are given; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kills"])
    child = context.Process(target=detached, args=(body, folder))
    child.start()
    child.join(seconds)
    child.kill()
    child.join()
    return child.exitcode


def results(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    assert not [path for path in found if "tmp" in path.name], "a temporary file among the results"
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in found}


def killed(run: Run, folder: Path, kills: int) -> int:
    """Kill runs, and start them again until each ends, until there were so many kills; how many runs ended.

    The bytes of every result must be those of a run that nobody killed.
    """
    start(run.body, folder / "first", None)  # imports what the run imports late
    begun = time.monotonic()
    assert start(run.body, folder / "whole", None) == 0
    length, moments = time.monotonic() - begun, random.Random(0)
    expected, ended = results(folder / "whole", run.results), 0
    assert expected
    assert results(folder / "first", run.results) == expected
    while kills > 0:
        place, code = folder / f"run-{ended}", None
        while code != 0:
            code = start(run.body, place, moments.uniform(0, length) if kills > 0 else None)
            assert code in (0, -signal.SIGKILL)
            kills -= code != 0
        assert results(place, run.results) == expected
        assert not [path for path in place.rglob("*") if ".tmp" in path.name]
        ended += 1
    return ended


def chapter(folder: Path) -> Path:
    return write_project(folder / "p", first=BODY)


def begin(root: Path, scratch: Path) -> subprocess.Popen[str]:
    """The runner on the project, its temporary folders in `scratch`."""
    scratch.mkdir(exist_ok=True)
    quiet = {**environment(), "TMPDIR": str(scratch), "GIT_DIR": os.devnull}
    return subprocess.Popen(
        command(root, "run", "--force"), env=quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def editions(root: Path) -> dict[str, str]:
    """Digests of all that an edition holds, the seconds that its chapters took set aside, and of what failed."""
    found = {}
    for path in sorted((root / "_build").rglob("*")):
        if path.is_file() and path.suffix in (".ipynb", ".json"):
            content = read(path)
            noted = content.get("metadata", {}).get("descent", {})
            for part in (content, noted, *content.get("chapters", {}).values()):
                for name in ("seconds", "sha256"):  # the digest covers the seconds
                    part.pop(name, None)
            found[path.relative_to(root).as_posix()] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        elif path.is_file():
            found[path.relative_to(root).as_posix()] = sha256_of(path)
    return found


def family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def killed_editions(folder: Path, kills: int) -> int:
    """The same for the runner of the chapters: killed alone, as its workers and kernels go on by themselves."""
    root, moments = chapter(folder), random.Random(1)
    begun = time.monotonic()
    first = begin(root, folder / "scratch")
    said = first.communicate()[0]
    assert first.returncode == 0, said
    length, expected, ended = time.monotonic() - begun, editions(root), 0
    orphans: list[psutil.Process] = []
    while kills > 0:
        code = None
        while code != 0:
            runner = begin(root, folder / "scratch")
            try:
                runner.wait(moments.uniform(0.1, length) if kills > 0 else None)
            except subprocess.TimeoutExpired:
                orphans += family(runner.pid)
                runner.kill()
            code = runner.wait()
            assert code in (0, -signal.SIGKILL), runner.communicate()[0]
            runner.stdout.close()
            kills -= code != 0
        _, left = psutil.wait_procs(orphans, timeout=3600)
        assert left == [], "what a killed runner had started goes on without it"
        assert editions(root) == expected
        ended += 1
    return ended
