"""The task of `test_sweeps`, in a module that worker processes can import, and a sweep of it that is killed."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from descent.repro.sweeps import Sweep, sweep

POINTS = np.stack(np.meshgrid(np.linspace(-1, 1, 6), np.linspace(0, 2, 5)), -1).reshape(-1, 2)  # 30 in shards of 4


def wait_until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 3600
    while not holds() and time.monotonic() < give_up:
        time.sleep(0.02)


class Losses:
    """Mean loss and gradient of a small network along two directions; `folder` gets a line per unpickling and shard."""

    def __init__(self, folder: Path | str = "", **settings: object) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(3, 20, 30, generator=generator)
        self.inputs = torch.randn(500, 20, generator=generator)
        self.folder, self.settings = str(folder), settings

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.note("unpickled", str(os.getpid()))

    def note(self, name: str, text: str) -> None:
        if self.folder:
            with open(Path(self.folder, name), "a") as file:
                file.write(text + "\n")

    def __call__(self, points: np.ndarray) -> dict[str, np.ndarray]:
        self.act(points)
        steps = torch.from_numpy(points).float().requires_grad_()
        weights = self.weights[0] + torch.einsum("sk,kij->sij", steps, self.weights[1:])
        losses = torch.log_softmax(torch.einsum("ni,sij->snj", self.inputs, weights), -1)[..., 0].neg().mean(1)
        (gradients,) = torch.autograd.grad(losses.sum(), steps)
        self.note("computed", str(points[0].tolist()))
        return {"loss": losses.detach().numpy(), "gradient": gradients.numpy()}

    def act(self, points: np.ndarray) -> None:
        """What the settings ask for: "late", the first shard ends after another; the rest at that of POINTS[12].

        "raises" is the folder of the shards, of which one is to be there before this one fails.
        """
        if "late" in self.settings and np.array_equal(points[0], POINTS[0]):
            wait_until(Path(self.folder, "computed").exists)
        if not np.array_equal(points[0], POINTS[12]):
            return
        if shards := self.settings.get("raises"):
            wait_until(lambda: any(Path(str(shards)).glob("shard-*.npz")))
            raise ZeroDivisionError("no loss here")
        if "dies" in self.settings and not (flag := Path(self.folder, "died")).exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    assert "distributed" not in sys.modules, "no cluster is named"
    folder = Path(sys.argv[1])
    sweep(Losses(folder, dies=True), POINTS, Sweep(folder=folder / "shards", shard_size=4, workers=1), "resumed")
