"""Loops as people write them: late hooks, subclasses, wrappers, other contexts; the right rows, or a sentence."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_, parametrizations, parametrize
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, ExponentialLR, LambdaLR, MultiplicativeLR, SequentialLR

from descent.training import (
    CapturePlan,
    DamagedCheckpointError,
    DivergenceError,
    GradientRecorder,
    MiniBatches,
    TrainingPlan,
    batch_cross_entropy,
    fit,
    open_stack,
)

INPUTS = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(20) % 3
BATCHES = MiniBatches((INPUTS, TARGETS), 5, 0)
EVERY = CapturePlan(range(100))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


def backward(model: nn.Module) -> Tensor:
    loss = cross_entropy(model(INPUTS.to(next(model.parameters()).dtype)), TARGETS)
    loss.backward()
    return loss


def flat(tensors: Any) -> np.ndarray:
    return np.concatenate([each.detach().flatten().float().numpy() for each in tensors]).copy()


def grads(model: nn.Module) -> np.ndarray:
    return flat(each.grad for each in model.parameters())


def weights(model: nn.Module) -> np.ndarray:
    return flat(model.state_dict().values())


# --- what changes gradients after the recorder was made: of SGD with rate one, the row is the step of the weights


def loop(model: nn.Module, optimizer: Optimizer, steps: int = 3, store: Path | None = None) -> tuple[Any, np.ndarray]:
    """The stack of a loop with a recorder, and by how much the weights went down in each step."""
    moves = []
    with GradientRecorder(model, optimizer, EVERY, store) as recorder:
        change_late(model, optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            backward(model)
            before = flat(model.parameters())
            optimizer.step()
            moves.append(before - flat(model.parameters()))
        return recorder.stack(), np.stack(moves)


def change_late(model: nn.Module, optimizer: Optimizer) -> None:
    if type(optimizer) is not SGD:
        return

    def clip(*_: Any) -> None:
        clip_grad_norm_(model.parameters(), 0.01)

    def noise(*_: Any) -> None:
        for each in model.parameters():
            each.grad = each.grad + 0.25

    optimizer.register_step_pre_hook(noise)
    optimizer.register_step_pre_hook(clip)


class Clipping(SGD):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        clip_grad_norm_(self.param_groups[0]["params"], 0.01)
        return super().step(closure)


class ClippingTwice(Clipping):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        clip_grad_norm_(self.param_groups[0]["params"], 0.1)
        return super().step(closure)


class Averaging(Optimizer):
    """Without a base class of its own: the step is written out."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for each in self.param_groups[0]["params"]:
            each.sub_(each.grad)


class AfterItsClosure(SGD):
    """Calls the closure itself, clips, and goes on without one."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        clip_grad_norm_(self.param_groups[0]["params"], 0.01)
        super().step()
        return loss


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("kind", [SGD, Clipping, ClippingTwice, Averaging])
def test_a_row_is_the_step_that_was_made(kind: Any, stored: bool, tmp_path: Path) -> None:
    model = network()
    stack, moves = loop(model, kind(model.parameters(), lr=1.0), 40, tmp_path if stored else None)
    assert stack.steps.tolist() == list(range(40))
    np.testing.assert_allclose(stack.rows, moves, atol=1e-6)
    if kind is not Averaging:
        np.testing.assert_allclose(np.linalg.norm(stack.rows, axis=1), 0.01, rtol=1e-4)


def test_of_two_recorders_and_a_late_hook_both_have_the_clipped_row() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=1.0)
    with GradientRecorder(model, optimizer, EVERY) as one, GradientRecorder(model, optimizer, EVERY) as two:
        change_late(model, optimizer)
        for _ in range(3):
            backward(model)
            optimizer.step()
        np.testing.assert_array_equal(one.stack().rows, two.stack().rows)
        np.testing.assert_allclose(np.linalg.norm(one.stack().rows, axis=1), 0.01, rtol=1e-4)


def test_a_late_hook_can_be_removed_and_one_that_fails_is_tried_again() -> None:
    model, fails = network(), [True]
    optimizer = SGD(model.parameters(), lr=0.1)

    def failing(*_: Any) -> None:
        if fails:
            raise ZeroDivisionError

    with GradientRecorder(model, optimizer, EVERY) as recorder:
        optimizer.register_step_pre_hook(failing)
        last = optimizer.register_step_pre_hook(lambda *_: clip_grad_norm_(model.parameters(), 0.01) and None)
        backward(model)
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
        fails.clear()
        optimizer.step()
        last.remove()
        optimizer.zero_grad()
        backward(model)
        used = grads(model)
        optimizer.step()
        stack = recorder.stack()
    assert stack.steps.tolist() == [0, 1]
    assert np.linalg.norm(stack.rows[0]) == pytest.approx(0.01, rel=1e-4)
    np.testing.assert_array_equal(stack.rows[1], used)


def test_a_late_hook_may_replace_the_closure() -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)
    seen: list[np.ndarray] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = backward(model)
        clip_grad_norm_(model.parameters(), 0.01)
        seen.append(grads(model))
        return loss

    with GradientRecorder(model, optimizer, EVERY) as recorder:
        optimizer.register_step_pre_hook(lambda _, args, kwargs: ((args[0], closure), kwargs))
        optimizer.step(lambda: None)
        np.testing.assert_array_equal(recorder.stack().rows, seen[:1])


def test_a_subclass_that_clips_after_its_closure() -> None:
    model = network()
    optimizer = AfterItsClosure(model.parameters(), lr=1.0)
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            optimizer.step(lambda: backward(model))
        assert recorder.stack().steps.tolist() == [0, 1, 2]
        np.testing.assert_allclose(np.linalg.norm(recorder.stack().rows, axis=1), 0.01, rtol=1e-4)


def test_weights_are_those_before_the_whole_step() -> None:
    model = network()
    optimizer = ClippingTwice(model.parameters(), lr=1.0)
    before = flat(model.parameters())
    with GradientRecorder(model, optimizer, CapturePlan(range(1), "weight")) as recorder:
        backward(model)
        optimizer.step()
        np.testing.assert_array_equal(recorder.stack().rows, before[None])


class TwoSteps(Optimizer):
    """Sharpness-aware minimisation in two calls, neither of which is `step`."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.base = SGD(self.param_groups, lr=lr)

    @torch.no_grad()
    def first_step(self) -> None:
        for each in self.param_groups[0]["params"]:
            self.state[each]["old"] = each.clone()
            each.add_(each.grad, alpha=0.05)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for each in self.param_groups[0]["params"]:
            each.copy_(self.state[each]["old"])
        self.base.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is not None, "two gradients are wanted"
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


def test_steps_that_are_not_calls_of_step_are_named_at_the_end() -> None:
    model = network()
    optimizer = TwoSteps(model.parameters(), 0.1)
    inner = GradientRecorder(model, optimizer.base, EVERY)
    outer, said = GradientRecorder(model, optimizer, EVERY), r"without a call of TwoSteps\.step, so nothing was"
    for call in (optimizer.first_step, optimizer.second_step):
        backward(model)
        used = grads(model)
        call()
    np.testing.assert_array_equal(inner.stack().rows, used[None])
    for end in (outer.stack, outer.close):
        with pytest.raises(ValueError, match=said):
            end()


def test_a_recorder_that_saw_no_step_of_anybody_closes_in_silence() -> None:
    model = network()
    optimizer = Adam(model.parameters())
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        model.load_state_dict(network().state_dict())
        assert len(recorder.stack().rows) == 0


def test_an_error_in_the_loop_is_not_replaced_by_that_of_the_recorder() -> None:
    model = network()
    optimizer = TwoSteps(model.parameters(), 0.1)

    def stops() -> None:
        with GradientRecorder(model, optimizer, EVERY):
            backward(model)
            optimizer.first_step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stops()


def test_a_tied_weight_has_two_names() -> None:
    model = network()
    model[2].weight = model[0].weight
    optimizer = SGD(model.parameters(), lr=0.1)
    with (
        GradientRecorder(model, optimizer, CapturePlan(range(1), parameters=["2.weight"])) as second,
        GradientRecorder(model, optimizer, CapturePlan(range(1), parameters=["0.weight"])) as first,
    ):
        backward(model)
        optimizer.step()
        assert second.layout == first.layout
        np.testing.assert_array_equal(second.stack().rows, first.stack().rows)
        np.testing.assert_array_equal(second.stack().rows[0], flat([model[0].weight.grad]))


# --- whatever the default type of torch


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stored_rows_are_float32_whatever_the_default(dtype: torch.dtype, double: None, tmp_path: Path) -> None:
    model, expected = network().to(dtype), []
    optimizer = SGD(model.parameters(), lr=0.1)
    with GradientRecorder(model, optimizer, EVERY, tmp_path) as recorder:
        for _ in range(20):
            optimizer.zero_grad()
            backward(model)
            expected.append(grads(model))
            optimizer.step()
        assert recorder.stack().rows.dtype == np.float32
    np.testing.assert_array_equal(open_stack(tmp_path).rows, np.stack(expected))


# --- `fit` and the recorders of its optimiser


@pytest.mark.parametrize("listed", [False, True])
def test_a_recorder_in_memory_cannot_go_on(listed: bool, tmp_path: Path) -> None:
    for steps in (3, 6):
        model = network()
        optimizer = SGD(model.parameters(), lr=0.1)
        goes = contextlib.nullcontext() if steps == 3 else pytest.raises(ValueError, match="in memory: 0 rows before")
        with goes, GradientRecorder(model, optimizer, EVERY) as recorder:
            recorders = [recorder] if listed else []
            fit(
                model,
                batch_cross_entropy,
                BATCHES,
                optimizer,
                TrainingPlan(steps, checkpoints=tmp_path),
                recorders=recorders,
            )


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_recorder_of_another_optimizer_is_refused(checkpoints: bool, tmp_path: Path) -> None:
    model = network()
    optimizer, other = SGD(model.parameters(), lr=0.1), SGD(model.parameters(), lr=0.1)
    plan = TrainingPlan(3, checkpoints=tmp_path if checkpoints else None)
    with (
        GradientRecorder(model, other, EVERY) as recorder,
        pytest.raises(ValueError, match="that of another optimizer"),
    ):
        fit(model, batch_cross_entropy, BATCHES, optimizer, plan, recorders=[recorder])
    with pytest.raises(ValueError, match="recorders: one is closed"):
        fit(model, batch_cross_entropy, BATCHES, other, plan, recorders=[recorder])


class Lookahead(Optimizer):
    def __init__(self, inside: Optimizer) -> None:
        super().__init__(inside.param_groups, {})
        self.inside = inside

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.inside.step(closure)


def test_the_recorder_of_the_optimizer_inside_a_wrapper_is_taken() -> None:
    model = network()
    inside = SGD(model.parameters(), lr=0.1)
    with GradientRecorder(model, inside, EVERY) as recorder:
        fit(model, batch_cross_entropy, BATCHES, Lookahead(inside), TrainingPlan(3), recorders=[recorder])
        assert recorder.stack().steps.tolist() == [0, 1, 2]


# --- the checkpoint of another run


def run(folder: Any, steps: int, optimizer: Callable[[Any], Optimizer], **how: Any) -> nn.Module:
    model = how.get("model", network)()
    made = optimizer(model)
    plan = TrainingPlan(steps, how.get("schedule", lambda _: None)(made), checkpoints=folder, checkpoint_every=2)
    fit(model, how.get("loss", batch_cross_entropy), BATCHES, made, plan)
    return model


def plain_sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.1, momentum=0.9)


def two(first: int, second: int) -> Callable[[Any], Optimizer]:
    return lambda model: SGD(
        [{"params": model[first].parameters()}, {"params": model[second].parameters(), "lr": 0.01}], 0.1
    )


def decayed(matrices: float, others: float) -> Callable[[Any], Optimizer]:
    def make(model: nn.Module) -> Optimizer:
        parts = [[p for p in model.parameters() if p.ndim == n] for n in ((2, 1) if matrices else (1, 2))]
        return AdamW([{"params": parts[0], "weight_decay": 0.5}, {"params": parts[1], "weight_decay": 0.0}])

    return make


GROUPS: dict[str, tuple[Any, Any, str]] = {
    "another layer": (
        lambda model: SGD(model[0].parameters(), lr=0.1),
        lambda model: SGD(model[2].parameters(), lr=0.1),
        r"params of parameter group 0 0\.weight, 0\.bias at step 4\nexpected .* 2\.weight, 2\.bias",
    ),
    "with names": (
        lambda model: SGD(model[0].named_parameters(), lr=0.1),
        lambda model: SGD(model[2].named_parameters(), lr=0.1),
        r"params of parameter group 0 0\.weight, 0\.bias",
    ),
    "swapped": (
        two(0, 2),
        two(2, 0),
        r"params of parameter group 0 0\.weight, 0\.bias at step 4\nexpected .* 2\.weight",
    ),
    "swapped decay": (
        decayed(0.5, 0),
        decayed(0, 0.5),
        r"params of parameter group 0 0\.weight, 2\.weight, 4\.weight at",
    ),
    "order": (
        lambda model: SGD(list(model.parameters()), lr=0.1),
        lambda model: SGD(list(model.parameters())[::-1], lr=0.1),
        r"expected params of parameter group 0 4\.bias, 4\.weight",
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_known_by_the_names_of_their_parameters(name: str, tmp_path: Path) -> None:
    first, second, said = GROUPS[name]
    run(tmp_path, 4, first)
    with pytest.raises(DamagedCheckpointError, match=said):
        run(tmp_path, 8, second)
    np.testing.assert_array_equal(weights(run(tmp_path, 8, first)), weights(run(None, 8, first)))


def sequential(factor: float) -> Callable[[Any], Any]:
    return lambda of: SequentialLR(of, [ConstantLR(of, 0.5, 1), LambdaLR(of, lambda step: factor**step)], [1])


SCHEDULES: dict[str, tuple[Any, Any]] = {
    "lambda": (lambda of: LambdaLR(of, lambda step: 1.0), lambda of: LambdaLR(of, lambda step: 0.5**step)),
    "last step": (lambda of: LambdaLR(of, lambda step: 1.0), lambda of: LambdaLR(of, lambda step: 1.0 + (step == 4))),
    "multiplicative": (
        lambda of: MultiplicativeLR(of, lambda step: 1.0),
        lambda of: MultiplicativeLR(of, lambda step: 0.5),
    ),
    "inside": (sequential(1.0), sequential(0.5)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_functions_of_a_scheduler_are_known_by_what_they_gave(name: str, tmp_path: Path) -> None:
    first, second = SCHEDULES[name]
    run(tmp_path, 4, plain_sgd, schedule=first)
    with pytest.raises(DamagedCheckpointError, match="a function of the scheduler of other values before step 4"):
        run(tmp_path, 8, plain_sgd, schedule=second)
    whole = run(None, 8, plain_sgd, schedule=first)
    np.testing.assert_array_equal(weights(run(tmp_path, 8, plain_sgd, schedule=first)), weights(whole))


def test_a_function_that_changes_later_only_goes_on(tmp_path: Path) -> None:
    def later(of: Optimizer) -> LambdaLR:
        return LambdaLR(of, lambda step: 1.0 if step < 5 else 0.1)

    run(tmp_path, 4, plain_sgd, schedule=lambda of: LambdaLR(of, lambda step: 1.0))
    np.testing.assert_array_equal(
        weights(run(tmp_path, 8, plain_sgd, schedule=later)), weights(run(None, 8, plain_sgd, schedule=later))
    )


def scaled(model: nn.Module, batch: Any) -> Tensor:
    loss = batch_cross_entropy(model, batch)
    return loss.detach() + 0.1 * (loss - loss.detach())


def stopped(model: Any, batch: Any) -> Tensor:
    return cross_entropy(model[1:](model[0](batch[0]).detach()), batch[1])


@pytest.mark.parametrize("loss", [scaled, stopped])
def test_a_loss_of_the_same_value_and_another_gradient_is_another(loss: Any, tmp_path: Path) -> None:
    run(tmp_path, 4, plain_sgd)
    with pytest.raises(
        DamagedCheckpointError, match=r"with gradient norm [\d.]+ at step 0\nexpected gradient norm [\d.]+"
    ):
        run(tmp_path, 8, plain_sgd, loss=loss)


class Counts(nn.Linear):
    """Its factor depends on the number of calls, which is kept in one of three places."""

    def __init__(self, where: str) -> None:
        super().__init__(4, 3)
        self.calls, self.where = 0, where
        self.register_buffer("count", torch.zeros(()), persistent=where == "persistent")

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        return super().forward(x) * (1 + 0.1 * (self.calls if self.where == "attribute" else self.count))


@pytest.mark.parametrize("where", ["persistent", "not persistent", "attribute"])
def test_what_modules_count_goes_on(where: str, tmp_path: Path) -> None:
    def model() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(Counts(where))

    for steps in (3, 6, 9):  # three processes
        parts = run(tmp_path, steps, plain_sgd, model=model)
    np.testing.assert_array_equal(weights(parts), weights(run(None, 9, plain_sgd, model=model)))


def test_what_a_callback_sets_goes_on(tmp_path: Path) -> None:
    def trained(folder: Path | None, steps: int) -> np.ndarray:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        torch.manual_seed(2)

        def callback(step: int, _: float) -> None:
            if step == 3:
                model[1].p = 0.0

        plan = TrainingPlan(steps, callbacks=[callback], checkpoints=folder, checkpoint_every=2)
        fit(model, batch_cross_entropy, BATCHES, plain_sgd(model), plan)
        return weights(model)

    trained(tmp_path, 6)
    np.testing.assert_array_equal(trained(tmp_path, 10), trained(None, 10))


# --- contexts, models and optimisers that do not fit together


def test_autocast_around_the_whole_of_fit_is_refused_and_in_the_loss_it_is_right() -> None:
    def cast(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return batch_cross_entropy(model, batch)

    model, plan = network(), TrainingPlan(6)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"stands in torch\.autocast, which keeps"),
    ):
        fit(model, batch_cross_entropy, BATCHES, plain_sgd(model), plan)
    np.testing.assert_array_equal(weights(model), weights(network()))
    inside = fit(model, cast, BATCHES, plain_sgd(model), plan)
    other = network()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        outside = fit(other, batch_cross_entropy, BATCHES, plain_sgd(other), plan)
    np.testing.assert_array_equal(inside, outside)
    assert len(set(inside.tolist())) == 6


def test_a_cache_of_parametrisations_around_fit_is_refused() -> None:
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 3)))
    with (
        parametrize.cached(),
        pytest.raises(ValueError, match=r"stands in parametrize\.cached\(\), which keeps weights"),
    ):
        fit(model, batch_cross_entropy, BATCHES, plain_sgd(model), TrainingPlan(2))


@pytest.mark.parametrize("width", [4, 3])
def test_an_optimizer_from_before_a_layer_was_replaced_is_refused(width: int) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    optimizer = plain_sgd(model)
    model[0] = nn.Linear(4, 3, bias=width == 4)
    with pytest.raises(ValueError, match=r"parameter '0\.weight': the optimizer does not hold it, but others"):
        fit(model, batch_cross_entropy, BATCHES, optimizer, TrainingPlan(2))


def test_a_parameter_of_the_loss_may_be_trained_beside_the_model() -> None:
    model, temperature = network(), nn.Parameter(torch.tensor(1.0))
    optimizer = SGD([*model.parameters(), temperature], lr=0.1)
    fit(model, lambda m, b: cross_entropy(m(b[0]) / temperature, b[1]), BATCHES, optimizer, TrainingPlan(3))
    assert temperature.item() != 1


def test_running_statistics_that_are_not_finite_are_no_success() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    batches = MiniBatches((INPUTS * 1e22, TARGETS), 5, 0)
    with pytest.raises(DivergenceError, match=r"buffer '1\.running_var' after step 2: not finite"):
        fit(model, batch_cross_entropy, batches, plain_sgd(model), TrainingPlan(3))


def test_a_mask_with_infinities_is_none_of_them() -> None:
    model = network()
    model.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    assert len(fit(model, batch_cross_entropy, BATCHES, plain_sgd(model), TrainingPlan(3))) == 3


def test_an_optimizer_that_asserts_a_closure_is_told_so_before_any_step() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"TwoSteps\.step\(\) fails without a closure \(two gradients are wanted"):
        fit(model, batch_cross_entropy, BATCHES, TwoSteps(model.parameters(), 0.1), TrainingPlan(3))
    np.testing.assert_array_equal(weights(model), weights(network()))

    class Own(TwoSteps):  # as the sentence says
        def step(self, closure: Any) -> Any:  # type: ignore[override]
            closure()
            return super().step(closure)

    plain, optimizer = network(), TwoSteps((expected := network()).parameters(), 0.1)
    fit(plain, batch_cross_entropy, BATCHES, Own(plain.parameters(), 0.1), TrainingPlan(3))
    for step in range(3):
        for call in (optimizer.first_step, optimizer.second_step):
            batch_cross_entropy(expected, BATCHES(step)).backward()
            call()
    np.testing.assert_array_equal(weights(plain), weights(expected))


# --- plans, batches and losses that are none


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"callbacks": print}, "expected callbacks as a list of functions, found <built-in function print>"),
        ({"callbacks": [None]}, r"expected callbacks as a list of functions, found \[None\]"),
        ({"scheduler": ConstantLR}, "expected scheduler made from an optimizer, found <class"),
        ({"scheduler": lambda step: 1.0}, "expected scheduler made from an optimizer, found <function"),
        ({"progress": True}, "expected progress as a text, found True"),
        ({"checkpoints": 3}, "expected checkpoints as a folder, found 3"),
        ({"checkpoints": __file__}, "expected checkpoints as a folder, found '.*py'"),
        ({"steps": True}, "steps=True: expected at least 1, a whole number"),
        ({"checkpoint_every": 2.0}, r"checkpoint_every=2\.0: expected at least 1, a whole number"),
    ],
)
def test_arguments_of_a_plan_are_looked_at_before_any_step(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainingPlan(**{"steps": 3, **wrong})


def test_a_plan_takes_what_it_took() -> None:
    optimizer = SGD(network().parameters(), lr=0.1)
    TrainingPlan(np.int64(3), ExponentialLR(optimizer, 0.9), (print,), "new", np.int32(2), progress="fit")


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (((INPUTS, torch.tensor(1.0)), 5, 0), "a tuple of tensors with a row for each example"),
        (((INPUTS.to_sparse(), TARGETS), 5, 0), "a tuple of tensors with a row for each example"),
        (((INPUTS, TARGETS), 2.0, 0), r"batch_size=2\.0: expected at least 1, a whole number"),
        (((INPUTS, TARGETS), True, 0), "batch_size=True"),
        (((INPUTS, TARGETS), 5, 1.5), r"seed=1\.5: expected at least 0, a whole number"),
        (((INPUTS, TARGETS), 5, -1), "seed=-1"),
    ],
)
def test_batches_are_looked_at_when_they_are_made(of: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MiniBatches(*of)


@pytest.mark.parametrize("step", [1.0, "a", True, None, -1])
def test_a_step_is_a_whole_number(step: Any) -> None:
    with pytest.raises(ValueError, match=f"step={step}: expected at least 0, a whole number"):
        BATCHES(step)


def test_no_batch_and_a_complex_loss_are_named() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"batches\(0\) is None: expected the batch of the step"):
        fit(model, batch_cross_entropy, lambda _: None, plain_sgd(model), TrainingPlan(3))  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=r"loss returned shape \(\), torch\.complex64: expected a scalar tensor"):
        fit(model, lambda m, b: batch_cross_entropy(m, b) * (1 + 0j), BATCHES, plain_sgd(model), TrainingPlan(3))


def test_a_layer_without_a_shape_is_named_where_checkpoints_want_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(
        ValueError, match=r"parameter '0\.weight' has no shape yet, so no checkpoint: call the model on"
    ):
        fit(model, batch_cross_entropy, BATCHES, plain_sgd(model), TrainingPlan(2, checkpoints=tmp_path))
    assert len(fit(model, batch_cross_entropy, BATCHES, plain_sgd(model), TrainingPlan(2))) == 2
