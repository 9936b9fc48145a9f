"""A recorded row is what the optimiser used, whatever the loop, or the step is refused by the parameter's name.

The expected rows are those of a plain loop, which reads them off `.grad` beside each step.
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import setup
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from descent.models import unflatten
from descent.training import CapturePlan, GradientRecorder, even_steps, open_stack, random_steps

EVERY = CapturePlan(range(100))
INPUTS, TARGETS = setup()[1].tensors


def row(gradients: list[Tensor | None], like: list[Tensor]) -> np.ndarray:
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, like, strict=True)]
    return torch.cat([part.detach().flatten().float() for part in parts]).numpy().copy()


def grads(parameters: Any) -> np.ndarray:
    listed = list(parameters)
    return row([p.grad for p in listed], listed)


def backward(model: nn.Module, scale: float = 1.0) -> Tensor:
    loss = cross_entropy(model(INPUTS.to(next(model.parameters()).dtype)), TARGETS)
    (loss * scale).backward()
    return loss


# --- mixed precision: what a GradScaler does before and in a step


def scaled_steps(fused: bool, clip: bool, steps: int, infinite: int | None = None) -> tuple[np.ndarray, Any, Any]:
    """Rows of a loop with a scaler, the recorder's stack, and the scale."""
    model, _ = setup()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    expected = []
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        for step in range(steps):
            optimizer.zero_grad()
            scale = scaler.get_scale()
            scaler.scale(cross_entropy(model(INPUTS), TARGETS)).backward()
            if step == infinite:
                model[0].weight.grad[0, 0] = torch.inf
            else:
                expected.append(grads(model.parameters()) / scale)
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                if step != infinite:
                    expected[-1] = grads(model.parameters())
            scaler.step(optimizer)
            scaler.update()
    return np.stack(expected), recorder.stack(), scaler


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_rows_have_no_scale_of_a_gradient_scaler(fused: bool, clip: bool) -> None:
    expected, stack, _ = scaled_steps(fused, clip, 4)
    np.testing.assert_allclose(stack.rows, expected, rtol=1e-6)
    assert np.abs(expected).max() < 10, "not 65,536 times as large"


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_none(fused: bool) -> None:
    expected, stack, scaler = scaled_steps(fused, clip=False, steps=4, infinite=1)
    assert scaler.get_scale() == 2.0**15, "an infinity was found"
    assert stack.steps.tolist() == [0, 1, 2]
    np.testing.assert_allclose(stack.rows, expected, rtol=1e-6)


def test_a_scale_of_ones_own_is_taken_off() -> None:
    model, _ = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    optimizer.grad_scale = torch.tensor(8.0)
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        backward(model, 8.0)
        expected = grads(model.parameters()) / 8
        optimizer.step()
    np.testing.assert_array_equal(recorder.stack().rows, expected[None])


class TakesTheScaler(torch.optim.SGD):
    _step_supports_amp_scaling = True

    def step(self, closure: Any = None, grad_scaler: Any = None) -> None:  # type: ignore[override]
        raise AssertionError("never reached")


@pytest.mark.filterwarnings("ignore:GradScaler is going to stop:FutureWarning")
def test_an_optimizer_that_is_handed_the_scaler_is_refused() -> None:
    model, _ = setup()
    optimizer, scaler = TakesTheScaler(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    with GradientRecorder(model, optimizer, EVERY):
        scaler.scale(backward(model)).detach()
        with pytest.raises(ValueError, match="step 0: gradients are scaled by a grad_scaler that is passed"):
            scaler.step(optimizer)


# --- which parameters: those of the optimiser's groups


def test_a_backbone_that_the_optimizer_does_not_hold_is_left_out() -> None:
    model, _ = setup()
    head = model[2]
    optimizer, expected = torch.optim.SGD(head.parameters(), lr=0.1), []
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        for _ in range(5):
            optimizer.zero_grad()  # of the head alone: the backbone's gradients grow
            backward(model)
            expected.append(grads(head.parameters()))
            optimizer.step()
    assert recorder.layout.names == ("2.weight", "2.bias")
    np.testing.assert_array_equal(recorder.stack().rows, np.stack(expected))
    with pytest.raises(ValueError, match=r"parameter '0\.bias': expected one of 2\.weight, 2\.bias, which the optim"):
        GradientRecorder(model, optimizer, CapturePlan(range(2), parameters=["0.bias"]))


def test_a_frozen_backbone_in_the_optimizer_is_left_out() -> None:
    model, _ = setup()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        backward(model)
        optimizer.step()
    assert recorder.layout.names == ("2.weight", "2.bias")


def test_one_frozen_with_a_gradient_still_moves_and_is_recorded() -> None:
    model, _ = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    backward(model)
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        optimizer.step()
    assert not torch.equal(before, model[0].weight)
    np.testing.assert_array_equal(recorder.stack().rows[0], grads(model.parameters()))


def test_two_optimizers_of_one_model_have_rows_of_their_own() -> None:
    model, _ = setup()
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters(), lr=0.1)]
    recorders = [GradientRecorder(model, optimizer, EVERY) for optimizer in optimizers]
    backward(model)
    for optimizer in optimizers:
        optimizer.step()
    for part, recorder in zip((model[0], model[2]), recorders, strict=True):
        np.testing.assert_array_equal(recorder.stack().rows[0], grads(part.parameters()))
        recorder.close()


def test_an_optimizer_of_another_model_is_refused() -> None:
    model, _ = setup()
    other = torch.optim.SGD(setup()[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no parameter to record: the optimizer trains none of the model's"):
        GradientRecorder(model, other, EVERY)


def test_groups_and_their_order_do_not_matter() -> None:
    model, _ = setup()
    groups = [{"params": [model[2].bias]}, {"params": [model[2].weight, model[0].weight], "lr": 0.5}]
    optimizer = torch.optim.SGD([*groups, {"params": [model[0].bias]}], lr=0.1)
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        backward(model)
        optimizer.step()
    assert recorder.layout.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    np.testing.assert_array_equal(recorder.stack().rows[0], grads(model.parameters()))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(tokens))
        return logits


def test_a_tied_weight_has_one_name_and_its_whole_gradient() -> None:
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.arange(7)
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        cross_entropy(model(tokens), tokens).backward()
        expected = grads([model.embed.weight])
        optimizer.step()
    assert recorder.layout.names == ("embed.weight",)
    np.testing.assert_array_equal(recorder.stack().rows[0], expected)


# --- parameters that change on the way


def unfreeze(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model[0].requires_grad_(True)  # type: ignore[index]


def unfreeze_and_add(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model[1].extra = nn.Linear(2, 2)  # type: ignore[index]
    optimizer.add_param_group({"params": model[1].extra.parameters()})  # type: ignore[index]


def replace_layer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model[2] = nn.Linear(5, 3)  # type: ignore[operator]


def replace_and_swap(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model[2] = nn.Linear(5, 3)  # type: ignore[operator]
    optimizer.param_groups[0]["params"][-2:] = list(model[2].parameters())  # type: ignore[index]


def assign_parameter(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model[2].weight = nn.Parameter(torch.zeros(3, 5))  # type: ignore[index]


def load_by_assignment(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


def resize(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model[2].weight.data, model[2].weight.grad = torch.zeros(4, 5), None  # type: ignore[index]


def resize_to_one(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model[2].bias.data, model[2].bias.grad = torch.zeros(1), None  # type: ignore[index]


def take_out(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    del optimizer.param_groups[0]["params"][-1]


def parametrise(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.parametrizations.weight_norm(model[2])  # type: ignore[index]


CHANGES = {
    unfreeze: r"parameter '0\.weight' is trained from step 3 on: make a new GradientRecorder",
    unfreeze_and_add: r"parameter '1\.extra\.weight' is trained from step 3 on",
    replace_layer: r"parameter '2\.weight' was replaced in the model, was resized or left the optimizer before step 3",
    replace_and_swap: r"parameter '2\.weight' was replaced .* before step 3",
    assign_parameter: r"parameter '2\.weight' was replaced .* before step 3",
    load_by_assignment: r"parameter '2\.weight' was replaced .* before step 3",
    resize: r"parameter '2\.weight' was replaced in the model, was resized or left the optimizer before step 3",
    resize_to_one: r"parameter '2\.bias' was replaced in the model, was resized or left the optimizer before step 3",
    take_out: r"parameter '2\.bias' was replaced in the model, was resized or left the optimizer before step 3",
    parametrise: r"parameter '2\.weight' was replaced .* before step 3",
}


@pytest.mark.parametrize("what", ["gradient", "weight"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_on_the_way_is_named_with_its_step(change: Callable[..., None], what: Any) -> None:
    model, _ = setup()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientRecorder(model, optimizer, CapturePlan([0, 1, 3], what)) as recorder:
        for step in range(4):
            if step == 2:
                change(model, optimizer)  # the step between is not recorded
            optimizer.zero_grad()
            if step < 2:
                backward(model)
            before = [p.clone() for p in model.parameters()]
            if step == 3:
                with pytest.raises(ValueError, match=CHANGES[change]):
                    optimizer.step()
                assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            else:
                optimizer.step()
    assert recorder.stack().steps.tolist() == [0, 1], "the rows before are kept"


@pytest.mark.parametrize("change", [unfreeze, unfreeze_and_add, replace_layer])
def test_changes_of_what_is_not_recorded_do_not_matter(change: Callable[..., None]) -> None:
    model, _ = setup()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if change is replace_layer:
        model.append(nn.Linear(3, 3)), model.append(nn.Linear(3, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = CapturePlan(range(9), parameters=["2.bias"] if change is not replace_layer else ["3.bias"])
    with GradientRecorder(model, optimizer, plan) as recorder:
        for step in range(3):
            if step == 1:
                change(model, optimizer)
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
    assert recorder.stack().steps.tolist() == [0, 1, 2]


def test_a_layer_that_is_swapped_around_its_weights_is_watched_from_then_on() -> None:
    model, _ = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        for step in range(3):
            if step:
                weights = model[0].weight, model[0].bias
                model[0] = nn.Linear(6, 5)
                if step == 1:
                    model[0].weight, model[0].bias = weights
            optimizer.zero_grad()
            backward(model)
            if step == 2:
                with pytest.raises(ValueError, match=r"parameter '0\.weight' was replaced .* before step 2"):
                    optimizer.step()
            else:
                expected = grads(model.parameters())
                optimizer.step()
    np.testing.assert_array_equal(recorder.stack().rows[1], expected)


def test_layers_frozen_on_the_way_have_zero_gradients() -> None:
    model, _ = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        for step in range(3):
            model[0].requires_grad_(step == 0)
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
    rows = recorder.stack().rows
    assert [bool(each[:35].any()) for each in rows] == [True, False, False]
    assert [bool(each[35:].any()) for each in rows] == [True, True, True]


# --- optimisers of all kinds


class InnerStep(torch.optim.SGD):
    """As many optimisers of one's own: a change of the gradients, and then the step of the base class."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for _ in range(self.param_groups[0]["lr"] > 0):
            super().step(closure)
        return super().step(closure)


def test_a_step_that_calls_that_of_its_base_class_counts_once() -> None:
    model, _ = setup()
    torch.optim.SGD(model.parameters(), lr=0.1)  # from then on the base class calls hooks, too
    optimizer = InnerStep(model.parameters(), lr=0.1)
    expected = []
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        for step in range(3):
            optimizer.zero_grad()
            backward(model)
            expected.append(grads(model.parameters()))
            if step == 1:  # a step that fails, and is tried again
                weight = model[0].weight.grad
                model[0].weight.grad = None
                model[0].weight.grad = weight
            optimizer.step()
    assert recorder.stack().steps.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(recorder.stack().rows, np.stack(expected))


def test_an_inner_step_after_one_that_failed_counts_once() -> None:
    model, _ = setup()
    torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = InnerStep(model.parameters(), lr=0.1)

    def fails() -> float:
        raise ZeroDivisionError

    with GradientRecorder(model, optimizer, EVERY) as recorder:
        with pytest.raises(ZeroDivisionError):
            optimizer.step(fails)
        backward(model)
        optimizer.step()
        optimizer.step()
    assert recorder.stack().steps.tolist() == [1, 2], "the failed call is step 0, and has no gradient"


class Lookahead(torch.optim.Optimizer):
    """As it is often written: not initialised as an optimiser, but with its attributes."""

    def __init__(self, inside: torch.optim.Optimizer, hooks: bool) -> None:
        self.optimizer, self.param_groups, self.steps = inside, inside.param_groups, 0
        if hooks:
            self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.steps += 1
        return self.optimizer.step(closure)


@pytest.mark.parametrize("hooks", [False, True])
def test_a_wrapper_without_hooks_is_refused_and_the_one_inside_works(hooks: bool) -> None:
    model, _ = setup()
    inside = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = Lookahead(inside, hooks)
    with pytest.raises(ValueError, match=r"Lookahead calls no hooks of torch\.optim\.Optimizer: pass the optimizer in"):
        GradientRecorder(model, wrapper, EVERY)
    with GradientRecorder(model, inside, EVERY) as recorder:
        backward(model)
        wrapper.step()
    assert len(recorder.stack().rows) == 1


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021), as it is usually written: the closure gives both gradients."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.base = torch.optim.SGD(self.param_groups, lr=lr)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        closure = torch.enable_grad()(closure)
        loss = closure()
        moved = [(p, 0.05 * p.grad / (p.grad.norm() + 1e-12)) for p in self.param_groups[0]["params"]]
        for parameter, change in moved:
            parameter.add_(change)
        self.zero_grad()
        closure()
        for parameter, change in moved:
            parameter.sub_(change)
        self.base.step()
        return loss


def test_of_sharpness_aware_minimisation_both_gradients_can_be_had() -> None:
    model, _ = setup()
    optimizer = Sam(model.parameters(), 0.1)
    seen: list[np.ndarray] = []

    def closure() -> Tensor:
        loss = backward(model)
        seen.append(grads(model.parameters()))
        return loss

    with GradientRecorder(model, optimizer, EVERY) as outer, GradientRecorder(model, optimizer.base, EVERY) as inner:
        for _ in range(3):
            optimizer.zero_grad()
            optimizer.step(closure)
    np.testing.assert_array_equal(outer.stack().rows, np.stack(seen[::2]))
    np.testing.assert_array_equal(inner.stack().rows, np.stack(seen[1::2]))
    assert not np.array_equal(seen[0], seen[1])


class IgnoresItsClosure(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


def test_a_closure_that_is_never_called_is_named() -> None:
    model, _ = setup()
    optimizer = IgnoresItsClosure(model.parameters(), lr=0.1)
    recorder, said = GradientRecorder(model, optimizer, EVERY), "step 0: IgnoresItsClosure did not call its closure"
    optimizer.step(lambda: backward(model))
    for use in (lambda: optimizer.step(lambda: backward(model)), recorder.stack, recorder.close):
        with pytest.raises(ValueError, match=said):
            use()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "one by one": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False, amsgrad=True),
    "differentiable": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "maximise": lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "a tensor as rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
}


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("none", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accumulated_and_clipped_gradients_of_any_optimizer(name: str, none: bool, scheduled: bool) -> None:
    model, _ = setup()
    optimizer, expected = OPTIMIZERS[name](model.parameters()), []
    recorder = GradientRecorder(model, optimizer, EVERY)
    if scheduled:  # replaces `optimizer.step` by a function of its own
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=none)
        for half in (slice(0, 20), slice(20, 40)):
            (cross_entropy(model(INPUTS[half]), TARGETS[half]) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        expected.append(grads(model.parameters()))
        optimizer.step()
        if scheduled:
            schedule.step()
    recorder.close()
    np.testing.assert_array_equal(recorder.stack().rows, np.stack(expected))
    assert np.linalg.norm(expected[0]) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("stored", [False, True])
def test_a_sparse_gradient_is_made_dense(stored: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(6, 3, sparse=True))
    optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=0.1)
    with GradientRecorder(model, optimizer, EVERY, tmp_path if stored else None) as recorder:
        model(torch.tensor([4, 1, 4])).sum().backward()
        optimizer.step()
        expected = np.repeat([0, 1, 0, 0, 2, 0], 3).astype(np.float32)  # row 4 twice
        np.testing.assert_array_equal(recorder.stack().rows, expected[None])


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_become_float32(dtype: torch.dtype, stored: bool, tmp_path: Path) -> None:
    model, _ = setup()
    model.to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientRecorder(model, optimizer, EVERY, tmp_path if stored else None) as recorder:
        backward(model)
        expected = grads(model.parameters())
        optimizer.step()
        assert recorder.stack().rows.dtype == np.float32
        np.testing.assert_array_equal(recorder.stack().rows, expected[None])


@pytest.mark.parametrize(
    ("scale", "sentence"),
    [
        (1e45, r"step 1: the row's largest number is .*e\+4\d, and rows are float32"),
        (1e-40, r"step 1: the row's largest number is .*e-4\d, and rows are float32"),
        (1e-33, r"step 1: the row's largest number is .*e-3\d, and rows are float32"),
    ],
)
def test_numbers_that_float32_cannot_hold_are_refused(scale: float, sentence: str) -> None:
    model = nn.Linear(6, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        backward(model)
        optimizer.step()
        optimizer.zero_grad()
        backward(model, scale)
        with pytest.raises(ValueError, match=sentence):
            optimizer.step()
        optimizer.zero_grad()
        optimizer.step()  # nothing but zeros is no underflow
    assert not recorder.stack().rows[-1].any()


def test_small_numbers_beside_large_ones_may_vanish() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False)).double()
    model.other = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        model[0].weight.grad, model.other.grad = (
            torch.full((1, 1), 1e-60).double(),
            torch.tensor([1.0, torch.nan]).double(),
        )
        optimizer.step()
    np.testing.assert_array_equal(recorder.stack().rows, [[1.0, np.nan, 0.0]])


def test_complex_parameters_are_refused_by_name() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="parameter 'weight' is complex, and rows are real"):
        GradientRecorder(model, optimizer, EVERY)


def test_layers_in_channels_last_have_their_logical_order(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stored = GradientRecorder(model, optimizer, EVERY, str(tmp_path / "rows"))
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        model(torch.rand(2, 3, 4, 4)).square().mean().backward()
        optimizer.step()
    stored.close()
    part = unflatten(torch.from_numpy(recorder.stack().rows[0]), recorder.layout)["0.weight"]
    assert torch.equal(part, model[0].weight.grad)
    np.testing.assert_array_equal(recorder.stack().rows, open_stack(str(tmp_path / "rows")).rows)


WRAPPERS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "compiled": (lambda model: torch.compile(model, backend="eager"), "_orig_mod."),  # type: ignore[return-value]
    "parallel": (nn.DataParallel, "module."),
    "scripted": (torch.jit.script, ""),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_models_have_the_names_of_the_wrapper(name: str) -> None:
    wrap, prefix = WRAPPERS[name]
    model, _ = setup()
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    with GradientRecorder(wrapped, optimizer, EVERY) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            backward(wrapped)
            expected = grads(model.parameters())
            optimizer.step()
    assert recorder.layout.names == tuple(prefix + each for each, _ in model.named_parameters())
    np.testing.assert_array_equal(recorder.stack().rows[1], expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_compiled_step_is_recorded() -> None:
    model, _ = setup()
    optimizer, expected = torch.optim.SGD(model.parameters(), lr=0.1), []
    step = torch.compile(optimizer.step, backend="eager")
    with GradientRecorder(model, optimizer, CapturePlan(range(0, 9, 2))) as recorder:
        for number in range(5):
            optimizer.zero_grad()
            backward(model)
            expected += [grads(model.parameters())] if number % 2 == 0 else []
            step()
    assert recorder.stack().steps.tolist() == [0, 2, 4]
    np.testing.assert_array_equal(recorder.stack().rows, np.stack(expected))


class Layers(nn.Module):
    """One layer used twice under two names, and weights in lists and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.list, self.dict = nn.ParameterList([torch.ones(3)]), nn.ParameterDict({"x": torch.ones(3)})
        self.empty, self.scale = nn.Parameter(torch.zeros(0, 4)), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.second(self.first(x)) * self.list[0] + self.dict["x"]


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "layers": lambda: (Layers(), torch.ones(2, 3)),
    "lstm": lambda: (nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2), torch.ones(5, 2, 3)),
    "encoder": lambda: (
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2, enable_nested_tensor=False
        ),
        torch.rand(2, 5, 8),
    ),
    "batch norm": lambda: (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU()), torch.rand(4, 1, 5, 5)),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_people_use(name: str) -> None:
    model, inputs = NETWORKS[name]()
    optimizer, expected = torch.optim.AdamW(model.parameters(), lr=0.1), []
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            outputs = model(inputs)
            (outputs[0] if isinstance(outputs, tuple) else outputs).square().sum().backward()
            expected.append(grads(model.parameters()))
            optimizer.step()
    assert recorder.layout.names == tuple(each for each, _ in model.named_parameters())
    np.testing.assert_array_equal(recorder.stack().rows, np.stack(expected))


def test_an_optimizer_for_each_parameter_that_steps_in_the_backward_pass() -> None:
    model, _ = setup()
    optimizers = {each: torch.optim.SGD([each], lr=0.1) for each in model.parameters()}
    recorders = [GradientRecorder(model, each, EVERY) for each in optimizers.values()]
    expected: dict[nn.Parameter, list[np.ndarray]] = {each: [] for each in optimizers}

    def update(parameter: nn.Parameter) -> None:
        expected[parameter].append(grads([parameter]))
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for each in model.parameters():
        each.register_post_accumulate_grad_hook(update)
    for _ in range(2):
        backward(model)
    for rows, recorder in zip(expected.values(), recorders, strict=True):
        np.testing.assert_array_equal(recorder.stack().rows, np.stack(rows))


def test_the_average_of_a_models_weights_is_not_what_the_optimizer_trains() -> None:
    model, _ = setup()
    average = torch.optim.swa_utils.AveragedModel(model)
    with pytest.raises(ValueError, match="no parameter to record: the optimizer trains none of the model's"):
        GradientRecorder(average, torch.optim.SGD(model.parameters(), lr=0.1), EVERY)


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_layers(norm: str) -> None:
    model, _ = setup()
    getattr(nn.utils.parametrizations, norm)(model[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientRecorder(model, optimizer, EVERY) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            backward(model)
            expected = grads(model.parameters())
            optimizer.step()
    assert any(each.startswith("0.parametrizations.weight") for each in recorder.layout.names)
    np.testing.assert_array_equal(recorder.stack().rows[1], expected)


# --- the steps of a plan


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (np.array([True, False, True]), r"steps \[.*\] \(bool\): expected whole numbers from 0, .* turns a mask into"),
        ([False, True], r"steps \[False, True\] \(bool\)"),
        (torch.tensor([True, False]), r"\(bool\)"),
        ([0.0, 2.7], r"steps \[0\.0, 2\.7\] \(float64\): expected whole numbers"),
        (np.linspace(0, 10, 5), r"\(float64\): expected whole numbers"),
        ([-1, 3], r"steps \[-1, 3\]"),
        (range(-3, 3), r"steps \[-3, 2\]"),
        (range(3, -3, -1), r"steps \[3, -2\]"),
        ([1, 2, 1], r"steps \[1, 2, 1\] .* each once; .* np\.unique removes doubles"),
        (np.linspace(0, 9, 20).astype(int), r"steps \.\.\. \(int64\): .* each once"),
        ("12", r"steps \['1', '2'\]"),
        (5, r"steps 5 \(int64\)"),
        ([[1, 2], [3, 4]], r"steps \[\[1, 2\], \[3, 4\]\]"),
        ([], r"steps \[\]"),
        (range(5, 5), r"steps \[\]"),
        ([None], r"steps \[None\] \(object\)"),
        ([10**30], r"\(object\)"),
    ],
)
def test_steps_that_are_no_steps_are_refused(steps: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CapturePlan(steps)


@pytest.mark.parametrize(
    "steps",
    [range(0, 8, 3), [6, 0, 3], {0, 3, 6}, np.array([0, 3, 6], np.uint8), torch.tensor([3, 0, 6]), iter([0, 3, 6]),
     range(6, -1, -3), (0, np.int64(3), 6)],
)  # fmt: skip
def test_steps_in_any_form(steps: Any) -> None:
    model, _ = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with GradientRecorder(model, optimizer, CapturePlan(steps)) as recorder:
        for _ in range(8):
            optimizer.step()
    assert recorder.stack().steps.tolist() == [0, 3, 6]


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100, 101, 1877])
def test_even_and_random_steps_of_odd_sizes_are_different_steps(total: int) -> None:
    for count in {1, 2, 3, total // 2, total - 1, total} & set(range(1, total + 1)):
        even = even_steps(total, count)
        drawn = random_steps(total, count, np.random.default_rng(0))
        for steps in (even, drawn):
            assert len(set(steps.tolist())) == count
            assert 0 <= steps.min() <= steps.max() < total
        assert (even[0], even[-1]) == (0, total - 1 if count > 1 else 0)
        assert np.ptp(np.diff(even)) <= 1 if count > 2 else True
        assert len(CapturePlan(even).steps) == count  # type: ignore[arg-type]


@pytest.mark.parametrize(("total", "count"), [(10, 0), (10, 11), (0, 1), (10, 2.5), (10, 3.0), (10, -1)])
def test_a_count_that_is_none_is_refused(total: int, count: Any) -> None:
    for choose in (even_steps, lambda *of: random_steps(*of, np.random.default_rng(0))):
        with pytest.raises(ValueError, match=rf"count={count}: expected 1 to {total}, the number of steps, and no"):
            choose(total, count)
