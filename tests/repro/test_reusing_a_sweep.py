"""Kept shards answer only the task that made them, and a worker that dies is named by its points."""

import os
import signal
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from descent.repro import Sweep, SweepError, sweep

POINTS = np.linspace(-1, 1, 6)[:, None]
INPUTS = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))


def on_a_line(middle: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype, power: int = 2) -> Any:
    """The mean power of the outputs of a small network along a line in its weights."""
    torch.manual_seed(0)
    first, last, along = nn.Linear(4, 8), nn.Linear(8, 1), torch.randn(8, 4)

    def task(points: np.ndarray) -> dict[str, np.ndarray]:
        losses = []
        for (point,) in points:
            weight = (first.weight + float(point) * along).to(dtype)
            hidden = middle(INPUTS.to(dtype) @ weight.T + first.bias.to(dtype))
            outputs = (hidden @ last.weight.T.to(dtype)).double()
            losses.append(outputs.abs().pow(power).mean().item())
        return {"loss": np.array(losses)}

    return task


USUAL = on_a_line(torch.relu, torch.float32)
CHANGED = {
    "precision": on_a_line(torch.relu, torch.bfloat16),
    "forward pass": on_a_line(torch.tanh, torch.float32),
    "loss": on_a_line(torch.relu, torch.float32, power=1),
    "scale": lambda points: {"loss": 1.001 * USUAL(points)["loss"]},
    "name": lambda points: {"error": USUAL(points)["loss"]},
    "type": lambda points: {"loss": USUAL(points)["loss"].astype(np.float32)},
    "shape": lambda points: {"loss": USUAL(points)["loss"][:, None]},
}


@pytest.mark.parametrize("left", [6, 2])
@pytest.mark.parametrize("name", CHANGED)
def test_shards_of_a_changed_task_are_refused(name: str, left: int, tmp_path: Path) -> None:
    """A complete folder, and one that a kill has left unfinished."""
    how = Sweep(folder=str(tmp_path), shard_size=1, workers=1)
    expected = sweep(USUAL, POINTS, how, "k")["loss"]
    for number in range(left, 6):
        (tmp_path / f"shard-{number:05d}.npz").unlink()
    sentence = rf"{tmp_path}: shard-00000\.npz has loss \[[\d.]+\] at \[-1\.0\], now .*; if another task or precision"
    with pytest.raises(ValueError, match=sentence):
        sweep(CHANGED[name], POINTS, how, "k")
    assert np.array_equal(sweep(USUAL, POINTS, how, "k")["loss"], expected)


def test_a_whole_shard_and_its_first_point_alone_agree_to_rounding(tmp_path: Path) -> None:
    """Products of other sizes are rounded differently in float32."""

    def task(points: np.ndarray) -> dict[str, np.ndarray]:
        columns = torch.from_numpy(points).float()
        weights = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))
        return {"sums": (columns @ weights).exp().log1p().sum(1).numpy() * (1 + 1e-7 * len(points))}

    how = Sweep(folder=tmp_path, shard_size=6, workers=1)
    kept = sweep(task, POINTS, how, "k")["sums"]
    assert not np.array_equal(task(POINTS[:1])["sums"], kept[:1])
    assert np.array_equal(sweep(task, POINTS, how, "k")["sums"], kept)


@pytest.mark.parametrize("recompute", [True, False])
def test_the_point_that_is_compared_is_finite_if_one_is(recompute: bool, tmp_path: Path) -> None:
    def task(points: np.ndarray) -> dict[str, np.ndarray]:
        return {"value": np.where(points[:, 0] > 0.5, points[:, 0], np.nan), "pair": points.repeat(2, 1)}

    def other(points: np.ndarray) -> dict[str, np.ndarray]:
        return {name: 2 * values for name, values in task(points).items() if name != "pair"} | {
            "pair": points.repeat(2, 1)
        }

    how = Sweep(folder=tmp_path, shard_size=2, workers=1, recompute=recompute)
    kept = sweep(task, POINTS, how, "k")
    if recompute:
        with pytest.raises(ValueError, match=r"shard-00002\.npz has value \[.*\] at \[0\.6.*, now \[1\.2"):
            sweep(other, POINTS, how, "k")
    else:
        np.testing.assert_array_equal(sweep(other, POINTS, how, "k")["value"], kept["value"])


@pytest.mark.parametrize(
    "values",
    [
        lambda n: np.full(n, np.nan),
        lambda n: np.full(n, np.inf),
        lambda n: np.zeros((n, 3)),
        lambda n: np.array(["a"] * n),
        lambda n: np.ones(n, bool),
        lambda n: np.ones((n, 0)),
        lambda n: np.full(n, 2 + 3j),
        lambda n: np.full(n, 7),
    ],
)
def test_values_of_any_type_are_compared(values: Any, tmp_path: Path) -> None:
    how = Sweep(folder=tmp_path, shard_size=2, workers=1)
    for _ in range(2):
        found = sweep(lambda points: {"value": values(len(points))}, POINTS, how, "k")["value"]
    np.testing.assert_array_equal(found, values(6))


@pytest.mark.parametrize(
    "values", [lambda n: np.array(["b"] * n), lambda n: np.zeros(n, bool), lambda n: np.full(n, 8)]
)
def test_values_of_any_type_are_told_apart(values: Any, tmp_path: Path) -> None:
    how = Sweep(folder=tmp_path, shard_size=2, workers=1)
    alike = {"U": np.array("a"), "b": np.array(True), "i": np.array(7)}[values(1).dtype.kind]
    sweep(lambda points: {"value": np.broadcast_to(alike, len(points))}, POINTS, how, "k")
    with pytest.raises(ValueError, match="if another task or precision filled it, name another folder"):
        sweep(lambda points: {"value": values(len(points))}, POINTS, how, "k")


def test_points_may_be_a_list_or_a_tensor(tmp_path: Path) -> None:
    for points in (POINTS.tolist(), torch.from_numpy(POINTS)):
        found = sweep(USUAL, points, Sweep(folder=tmp_path, workers=1), "k")  # type: ignore[arg-type]
        assert np.array_equal(found["loss"], USUAL(POINTS)["loss"])


# --- workers that end


def dies(points: np.ndarray) -> Mapping[str, np.ndarray]:
    if points[0, 0] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"value": points[:, 0]}


def test_a_local_worker_that_is_killed_is_named_by_its_point(tmp_path: Path) -> None:
    points = np.arange(6.0)[:, None]
    with pytest.raises(SweepError) as caught:
        sweep(dies, points, Sweep(folder=tmp_path, shard_size=1, workers=2), "k")
    assert "shard 4, whose first point is [4.0]" in str(caught.value)
    assert str(caught.value).endswith(": a worker was killed, as where memory is short; fewer workers need less")
    kept = [path.name for path in tmp_path.glob("shard-*.npz")]
    assert "shard-00004.npz" not in kept
    found = sweep(lambda points: {"value": points[:, 0]}, points, Sweep(folder=tmp_path, shard_size=1, workers=2), "k")
    assert found["value"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_local_worker_that_lacks_a_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "only_here", module := types.ModuleType("only_here"))
    exec("def task(points):\n    return {'points': points}", module.__dict__)
    with pytest.raises(
        SweepError, match=r"shard \d, whose first point is \[.*\]: ModuleNotFoundError: No module named"
    ):
        sweep(module.task, POINTS, Sweep(shard_size=2, workers=2), "k")
