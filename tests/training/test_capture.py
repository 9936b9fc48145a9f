import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import record, setup
from torch import nn

from descent.training.capture import CapturePlan, GradientRecorder, even_steps, open_stack, random_steps
from descent.training.gradient_store import StoredRows
from descent.training.loop import TrainingPlan, batch_cross_entropy, fit

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def plain_rows(what: str, make: Any, steps: int) -> np.ndarray:
    """The rows that a loop without any of our code reads off `.grad` or the weights before each update."""
    model, batches = setup()
    optimizer, rows = make(model.parameters()), []
    for step in range(steps):
        optimizer.zero_grad()
        inputs, targets = batches(step)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        parts = [p.grad if what == "gradient" else p.detach() for p in model.parameters()]
        rows.append(torch.cat([part.flatten().clone() for part in parts]).numpy())
        optimizer.step()
    return np.stack(rows)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("what", ["gradient", "weight"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_equal_those_of_a_plain_loop(name: str, what: Any, stored: bool, tmp_path: Path) -> None:
    model, batches = setup()
    optimizer = OPTIMIZERS[name](model.parameters())
    with GradientRecorder(model, optimizer, CapturePlan(range(9), what), tmp_path if stored else None) as recorder:
        fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(9))
    stack = recorder.stack()
    assert np.array_equal(stack.rows, plain_rows(what, OPTIMIZERS[name], 9))
    assert stack.steps.tolist() == list(range(9))
    assert stack.rows.dtype == np.float32


def test_works_on_a_loop_that_is_not_ours_and_stops_when_closed() -> None:
    model, _ = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = GradientRecorder(model, optimizer, CapturePlan(range(100)))
    for _ in range(3):
        model(torch.ones(1, 6)).sum().backward()
        optimizer.step()
    recorder.close()
    optimizer.step()
    assert len(recorder.stack().rows) == 3
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (range(10), list(range(10))),
        (range(0, 10**12, 4), [0, 4, 8]),
        (np.array([7, 2]), [2, 7]),
        (even_steps(10, 4), [0, 3, 6, 9]),
    ],
)
def test_steps_of_the_plan_are_recorded(steps: Any, expected: list[int], tmp_path: Path) -> None:
    model, batches = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientRecorder(model, optimizer, CapturePlan(steps), tmp_path):
        fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(10))
    stack = open_stack(tmp_path)
    assert stack.steps.tolist() == expected
    assert np.array_equal(stack.rows, plain_rows("gradient", OPTIMIZERS["sgd"], 10)[expected])


def test_chosen_parameters_keep_their_place_in_the_layout() -> None:
    model, batches = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = CapturePlan(range(2), parameters=["2.bias", "0.weight"])
    with GradientRecorder(model, optimizer, plan) as recorder:
        fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(2))
    assert recorder.layout.names == ("0.weight", "2.bias")
    assert recorder.stack().rows.shape == (2, 30 + 3)


def test_missing_gradient_counts_as_zero() -> None:
    model, _ = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientRecorder(model, optimizer, CapturePlan(range(1))) as recorder:
        optimizer.step()
    assert not recorder.stack().rows.any()


def test_bad_plans_name_the_value_and_the_choices() -> None:
    model, _ = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"parameter '0\.wieght': expected one of 0\.weight, 0\.bias"):
        GradientRecorder(model, optimizer, CapturePlan(range(2), parameters=["0.wieght"]))
    with pytest.raises(ValueError, match="what='grad': expected one of gradient, weight"):
        CapturePlan(range(2), "grad")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count=11: expected 1 to 10"):
        random_steps(10, 11, np.random.default_rng(0))
    assert not optimizer._optimizer_step_pre_hooks


def test_random_steps_are_sorted_distinct_and_repeatable() -> None:
    steps = random_steps(50, 20, np.random.default_rng(3))
    assert np.array_equal(steps, random_steps(50, 20, np.random.default_rng(3)))
    assert (np.diff(steps) > 0).all()
    assert steps.min() >= 0
    assert steps.max() < 50


def test_store_is_not_overwritten_but_goes_on_from_a_named_step(tmp_path: Path) -> None:
    record(tmp_path, 6)
    before = np.array(open_stack(tmp_path).rows)
    with pytest.raises(ValueError, match="holds 6 rows: choose another folder, or go on by resume"):
        record(tmp_path, 6)
    record(tmp_path, 5, first=4)
    stack = open_stack(tmp_path)
    assert stack.steps.tolist() == list(range(9))
    assert np.array_equal(stack.rows[:6], before)


@pytest.mark.parametrize("stored", [False, True])
def test_a_gap_before_the_first_step_is_refused_and_nothing_is_dropped(stored: bool, tmp_path: Path) -> None:
    model, _ = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientRecorder(model, optimizer, CapturePlan(range(100)), tmp_path if stored else None) as recorder:
        for _ in range(3):
            optimizer.step()
        place = str(tmp_path) if stored else "a recorder in memory"
        with pytest.raises(ValueError, match=f"{place}: 3 rows before step 5, expected 5; record anew elsewhere"):
            recorder.resume(5)
        assert recorder.stack().steps.tolist() == [0, 1, 2]
        recorder.resume(1)
        optimizer.step()
        assert recorder.stack().steps.tolist() == [0, 1]


def test_a_loop_of_ones_own_resumes_with_its_checkpoint(tmp_path: Path) -> None:
    plan = CapturePlan(range(0, 10, 2))

    def run(folder: Path, first: int, last: int, state: dict[str, Any] | None = None) -> dict[str, Any]:
        model, batches = setup()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with GradientRecorder(model, optimizer, plan, folder) as recorder:
            if state is not None:
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
                recorder.resume(first)
            for step in range(first, last):
                optimizer.zero_grad()
                batch_cross_entropy(model, batches(step)).backward()
                optimizer.step()
            return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})

    run(tmp_path / "whole", 0, 10)
    state = run(tmp_path / "parts", 0, 5)
    run(tmp_path / "parts", 5, 8, state)  # these steps are lost, as by a kill after the checkpoint
    run(tmp_path / "parts", 5, 10, state)
    whole, parts = open_stack(tmp_path / "whole"), open_stack(tmp_path / "parts")
    assert parts.steps.tolist() == [0, 2, 4, 6, 8]
    assert np.array_equal(whole.rows, parts.rows)


@pytest.mark.parametrize("named", [True, False])
def test_fit_resumes_the_recorders_of_its_optimizer(named: bool, tmp_path: Path) -> None:
    def run(folder: Path, steps: int) -> None:
        model, batches = setup()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        training = TrainingPlan(steps, checkpoints=folder / "states", checkpoint_every=4)
        with GradientRecorder(model, optimizer, CapturePlan(range(20)), folder / "rows") as recorder:
            fit(model, batch_cross_entropy, batches, optimizer, training, recorders=[recorder] if named else [])

    run(tmp_path / "whole", 10)
    run(tmp_path / "parts", 7)
    run(tmp_path / "parts", 10)
    whole, parts = open_stack(tmp_path / "whole" / "rows"), open_stack(tmp_path / "parts" / "rows")
    assert parts.steps.tolist() == list(range(10))
    assert np.array_equal(whole.rows, parts.rows)


def test_other_layout_is_refused(tmp_path: Path) -> None:
    record(tmp_path, 2)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="another layout"):
        GradientRecorder(model, optimizer, CapturePlan(range(2)), tmp_path)


@pytest.mark.promise("R3")
@pytest.mark.parametrize("torn", [1, 100, 211, 212])
def test_torn_row_is_left_out_and_mended(tmp_path: Path, torn: int) -> None:
    """A kill in the middle of a write leaves part of the last row, or the row without its step."""
    record(tmp_path, 4)
    rows, width = tmp_path / "rows.f32", 4 * 53
    whole = rows.read_bytes()
    assert len(whole) == 4 * width
    rows.write_bytes(whole[: 3 * width + torn])
    (tmp_path / "steps.i64").write_bytes((tmp_path / "steps.i64").read_bytes()[: 3 * 8 + 3])
    assert open_stack(tmp_path).steps.tolist() == [0, 1, 2]
    record(tmp_path, 2, first=3)
    assert open_stack(tmp_path).steps.tolist() == [0, 1, 2, 3, 4]
    assert rows.read_bytes()[: 4 * width] == whole


def test_memory_is_bounded_by_the_ring_not_by_the_steps(tmp_path: Path) -> None:
    model = nn.Linear(10_000, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with GradientRecorder(model, optimizer, CapturePlan(range(1000)), tmp_path) as recorder:
        sink = recorder._sink
        assert isinstance(sink, StoredRows)
        assert sink._blocks.nbytes <= 16 * 2**20
        for _ in range(300):
            optimizer.step()
    assert open_stack(tmp_path).rows.nbytes > 2 * sink._blocks.nbytes
    assert len(open_stack(tmp_path).rows) == 300


def test_checkpoint_waits_for_the_rows(tmp_path: Path) -> None:
    model, batches = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = GradientRecorder(model, optimizer, CapturePlan(range(100)), tmp_path)
    for step in range(50):
        optimizer.zero_grad()
        batch_cross_entropy(model, batches(step)).backward()
        optimizer.step()
        optimizer.state_dict()
        assert len(open_stack(tmp_path).steps) == step + 1
    recorder.close()


@pytest.mark.promise("R4")
def test_full_disk_stops_the_loop_with_the_folders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any, data: Any) -> None:
        raise OSError(28, "No space left on device")

    model, batches = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = GradientRecorder(model, optimizer, CapturePlan(range(1000)), tmp_path)
    monkeypatch.setattr("descent.training.gradient_store._write_all", full)
    with pytest.raises(OSError, match=f"{tmp_path.name}: recording stopped: .*No space left"):
        fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(1000))
    with pytest.raises(OSError, match="recording stopped"):
        recorder.close()


@pytest.mark.parametrize("keyword", [True, False])
@pytest.mark.parametrize("what", ["gradient", "weight"])
def test_with_a_closure_the_first_gradient_of_each_step_is_recorded(what: Any, keyword: bool) -> None:
    """LBFGS calls its closure several times in a step, and moves the weights between."""
    model, batches = setup()
    inputs, targets = batches.tensors
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    expected, calls = [], 0

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    with GradientRecorder(model, optimizer, CapturePlan([0, 2], what)) as recorder:
        for step in range(3):
            if step != 1:
                closure()
                parts = [p.grad if what == "gradient" else p.detach() for p in model.parameters()]
                expected.append(torch.cat([part.flatten().clone() for part in parts]).numpy())
            optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert calls > 3 + 2  # more than one call in a step
    assert recorder.stack().steps.tolist() == [0, 2]
    assert np.array_equal(recorder.stack().rows, np.stack(expected))
