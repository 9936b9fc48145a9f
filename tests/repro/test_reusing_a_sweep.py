"""Kept shards answer only the task that made them, and a worker that dies is named by its points."""

import os
import signal
import sys
import threading
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


# --- where a changed task shows itself at few points only

LINE = np.linspace(-15, 15, 61)[:, None]
BLIND: dict[str, tuple[np.ndarray, Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]] = {
    "zero at the ends": (np.array([0.0, 1, 5]), lambda p: np.maximum(0, p - 1), lambda p: 10 * np.maximum(0, p - 1)),
    "small in the middle": (LINE, lambda p: np.exp(abs(p)), lambda p: np.exp(abs(p)) + 0.5 * (abs(p) < 2)),
    "small at one end": (LINE, np.exp, lambda p: np.exp(p) + 1e-3 * (p < -14)),
    "alike at both ends": (LINE, lambda p: (abs(p) > 3) * 1.0 + 1, lambda p: (abs(p) > 3) * 1.0 + 1 + (abs(p) < 1)),
    "a small value beside a large one": (
        LINE,
        lambda p: np.c_[p * 0 + 1, 1e9 + p],
        lambda p: np.c_[p * 0 + 500, 1e9 + p],
    ),
    "counts": (LINE, lambda p: (abs(p) > 3).astype(int), lambda p: (abs(p) > 4) + (abs(p) > 3).astype(int)),
    "zero in the middle": (LINE, lambda p: p * (abs(p) > 9), lambda p: 1.01 * p * (abs(p) > 9)),
}


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("name", BLIND)
def test_a_change_is_seen_where_it_is_relatively_large(name: str, size: int, tmp_path: Path) -> None:
    points, before, after = BLIND[name]
    points, how = points.reshape(-1, 1), Sweep(folder=tmp_path, shard_size=size, workers=1)
    for _ in range(2):
        kept = sweep(lambda part: {"value": before(part[:, 0])}, points, how, "k")["value"]
    np.testing.assert_array_equal(kept, before(points[:, 0]))
    with pytest.raises(
        ValueError, match=r"shard-000\d\d\.npz has value \[.*\] at \[.*\], now \[.*\]; if another task or"
    ):
        sweep(lambda part: {"value": after(part[:, 0])}, points, how, "k")


@pytest.mark.parametrize("left", [4, 2])
@pytest.mark.parametrize(("before", "now"), [("a", "ab"), ("ab", "b"), ("a", "b")])
def test_other_names_are_refused(before: str, now: str, left: int, tmp_path: Path) -> None:
    how, points = Sweep(folder=tmp_path, shard_size=1, workers=1), np.arange(1.0, 5)[:, None]
    sweep(lambda part: {name: part for name in before}, points, how, "k")
    for number in range(left, 4):
        (tmp_path / f"shard-{number:05d}.npz").unlink()
    with pytest.raises(ValueError, match=r"has \w (nothing|\[.*\]) at \[1\.0\], now (nothing|\[.*\]); if another"):
        sweep(lambda part: {name: part for name in now}, points, how, "k")


@pytest.mark.parametrize("size", [1, 7, 4000])
def test_a_whole_sweep_computes_at_most_three_points_again(size: int, tmp_path: Path) -> None:
    computed: list[int] = []

    def task(points: np.ndarray) -> dict[str, np.ndarray]:
        computed.append(len(points))
        return {"value": points[:, 0] ** 2, "none": np.zeros(len(points))}

    how, points = Sweep(folder=tmp_path, shard_size=size, workers=1), np.linspace(-1, 2, 40)[:, None]
    sweep(task, points, how, "k")
    computed.clear()
    sweep(task, points, how, "k")
    assert computed == [1, 1, 1]


def test_texts_may_be_as_wide_as_the_widest(tmp_path: Path) -> None:
    def task(points: np.ndarray) -> dict[str, Any]:
        return {"end": ["diverged" if point > 0.9 else "ok" for (point,) in points]}

    how = Sweep(folder=tmp_path, shard_size=4, workers=1)
    for _ in range(2):
        assert sweep(task, POINTS, how, "k")["end"].tolist() == [*["ok"] * 5, "diverged"]
    with pytest.raises(ValueError, match=r"has end \['ok'\] at \[.*\], now \['o'\]; if another task"):
        sweep(lambda points: {"end": [each[:1] for each in task(points)["end"]]}, POINTS, how, "k")


def test_a_sum_that_cancels_may_differ_by_its_rounding(tmp_path: Path) -> None:
    """A component that is a small difference of large terms, beside a large one."""

    def task(points: np.ndarray) -> dict[str, np.ndarray]:
        return {"value": np.c_[1e3 + points, 1e-13 * len(points) + 0 * points]}

    how = Sweep(folder=tmp_path, shard_size=6, workers=1)
    kept = sweep(task, POINTS, how, "k")["value"]
    np.testing.assert_array_equal(sweep(task, POINTS, how, "k")["value"], kept)


# --- what a sweep cannot send, keep or take

LOCK = threading.Lock()
WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "lock": (
        lambda part: {"a": part * LOCK.locked()},
        {"workers": 2},
        TypeError,
        "the task cannot be sent to another pro",
    ),
    "objects": (
        lambda part: {"a": [LOCK] * len(part)},
        {},
        SweepError,
        "shard 0, .* 'a' holds Python objects: expected",
    ),
    "exit": (lambda part: sys.exit(3), {}, SweepError, r"shard 0, whose first point is \[-1.0\]: SystemExit: 3"),
    "exit of a worker": (lambda part: sys.exit(3), {"workers": 2}, SweepError, r"shard \d, .*: SystemExit: 3"),
    "nothing": (lambda part: {}, {}, SweepError, "shard 0, .*: the task gave no values"),
    "masked": (lambda part: {"a": np.ma.masked_less(part, 0)}, {}, SweepError, "shard 0, .*'a' is a masked array"),
    "masks": (lambda part: {"a": list(np.ma.masked_less(part, 0))}, {}, SweepError, "'a' is a masked array"),
    "kinds": (lambda p: {"a": p[:, 0] if p[0, 0] < 0 else [1] * len(p)}, {}, ValueError, r"shard 2 gave \[\('a', 'i'"),
    "shapes": (
        lambda p: {"a": p if p[0, 0] < 0 else p[:, 0]},
        {},
        ValueError,
        r"shard 2 gave \[\('a', 'f', \(\)\)\], sh",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_sent_kept_or_joined_is_named(name: str) -> None:
    task, how, kind, sentence = WRONG[name]
    with pytest.raises(kind, match=sentence):
        sweep(task, POINTS, Sweep(**{"shard_size": 2, "workers": 1, **how}), "k")


def test_masked_points_are_refused() -> None:
    for points in (np.ma.masked_less(POINTS, 0), list(np.ma.masked_less(POINTS, 0))):
        with pytest.raises(ValueError, match="points is a masked array: expected the numbers that count"):
            sweep(USUAL, points, Sweep(workers=1), "k")


@pytest.mark.parametrize("given", [{"shard_size": "2"}, {"shard_size": 2.0}, {"workers": 1.5}, {"shard_size": None}])
def test_counts_that_are_no_whole_numbers_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"shard_size=.*, workers=.*: expected at least 1 each"):
        Sweep(**given)
    assert Sweep(shard_size=np.int64(2)).shard_size == 2  # type: ignore[arg-type]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=rf"no folder can be made there \(.*\); name another: '{folder}'"):
            sweep(USUAL, POINTS, Sweep(folder=folder, workers=1), "k")


def test_an_empty_folder_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep(USUAL, POINTS, Sweep(folder="", workers=1), "k")
    assert list(tmp_path.iterdir()) == []


def test_a_key_may_be_of_several_parts(tmp_path: Path) -> None:
    how = Sweep(folder=tmp_path, workers=1)
    for _ in range(2):
        sweep(USUAL, POINTS, how, ("a", 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"is of key \['a', 1\], expected \('a', 2\); name another folder"):
        sweep(USUAL, POINTS, how, ("a", 2))  # type: ignore[arg-type]
