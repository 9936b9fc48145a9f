"""A run goes on from its own checkpoint with the same bits, and from nobody else's; what cannot go on says so."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import newest_checkpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

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

INPUTS = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(50) % 3


def network(seed: int = 0, middle: type[nn.Module] = nn.Tanh, hidden: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, hidden), middle(), nn.Linear(hidden, 3))


def whole(model: nn.Module) -> Tensor:
    return torch.cat([each.detach().flatten() for each in model.state_dict().values()])


def run(folder: Any, steps: int, **changes: Any) -> nn.Module:
    """A run of Adam with an exponential schedule; `changes` are what is different from the usual."""
    model = changes.get("model") or network(changes.get("seed", 0))
    make = changes.get("optimizer", lambda of: Adam(of, lr=0.05))
    optimizer = make(model.parameters())
    schedule = changes.get("schedule", lambda of: ExponentialLR(of, 0.99))(optimizer)
    data = changes.get("batches", MiniBatches((INPUTS, TARGETS), 8, 0))
    plan = TrainingPlan(steps, schedule, checkpoints=folder, checkpoint_every=5, run=changes.get("run", ""))
    fit(model, changes.get("loss", batch_cross_entropy), data, optimizer, plan)
    return model


def other_label() -> Tensor:
    targets = TARGETS.clone()
    targets[-1] = 0
    return targets


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "rate": (
        {"optimizer": lambda of: Adam(of, lr=0.01)},
        r"with lr of parameter group 0 0\.05 at step 12\nexpected lr of parameter group 0 0\.01\nstart in another",
    ),
    "momentum": ({"optimizer": lambda of: Adam(of, lr=0.05, betas=(0.8, 0.999))}, r"betas .* \[0\.9, 0\.999\]"),
    "decay": ({"optimizer": lambda of: Adam(of, lr=0.05, weight_decay=0.1)}, "weight_decay of parameter group 0 0 at"),
    "kind": ({"optimizer": lambda of: SGD(of, lr=0.05)}, "with optimizer Adam at step 12\nexpected optimizer SGD"),
    "kin": ({"optimizer": lambda of: AdamW(of, lr=0.05)}, "with optimizer Adam at step 12\nexpected optimizer AdamW"),
    "groups": (
        {"optimizer": lambda of: Adam([{"params": [each]} for each in of], lr=0.05)},
        r"params of parameter group 0 0\.weight, 0\.bias, 2\.weight, 2\.bias at .*\nexpected params .* 0 0\.weight\n",
    ),
    "schedule": ({"schedule": lambda of: StepLR(of, 5)}, "with scheduler ExponentialLR at step 12\nexpected .* StepLR"),
    "no schedule": ({"schedule": lambda of: None}, "scheduler ExponentialLR at step 12\nexpected scheduler NoneType"),
    "its rate": ({"schedule": lambda of: ExponentialLR(of, 0.9)}, r"gamma of the scheduler 0\.99 .*\n.* 0\.9\n"),
    "size": (
        {"model": network(hidden=9)},
        r"shape of parameter 0\.weight \(8, 6\), torch\.float32 at step 12\nexpected .* \(9, 6\), torch\.float32",
    ),
    "precision": ({"model": network().double()}, r"shape of parameter 0\.weight .*float32 at step 12\n.*float64"),
    "another layer": (
        {"model": nn.Sequential(*network(), nn.ReLU(), nn.Linear(3, 3))},
        "expected .*4.weight, 4.bias",
    ),
    "seed": ({"seed": 1}, r"with weights [0-9a-f]{64} at step 12\nexpected weights [0-9a-f]{64}\n.*by loading them"),
    "name": ({"run": "b"}, "with run '' at step 12\nexpected run 'b'"),
    "batch size": ({"batches": MiniBatches((INPUTS, TARGETS), 9, 0)}, "data .* in batches of 8 .*\n.* in batches of 9"),
    "order": ({"batches": MiniBatches((INPUTS, TARGETS), 8, 1)}, "data .* by seed 0 at step 12\n.* by seed 1"),
    "one label": ({"batches": MiniBatches((INPUTS, other_label()), 8, 0)}, "a checkpoint of another run, with data"),
    "inputs": ({"batches": MiniBatches((INPUTS + 1e-6, TARGETS), 8, 0)}, "a checkpoint of another run, with data"),
    "fewer": ({"batches": MiniBatches((INPUTS[:40], TARGETS[:40]), 8, 0)}, "a checkpoint of another run, with data"),
    "forward pass": ({"model": network(middle=nn.ReLU)}, r"loss [\d.]+ at step 0\nexpected loss [\d.]+, as it is now"),
    "loss": (
        {"loss": lambda model, batch: cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)},
        r"with loss [\d.]+ at step 0",
    ),
    "mode": ({"model": nn.Sequential(*network(), nn.Dropout(0.5))}, r"with loss [\d.]+ at step 0"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_checkpoint_of_another_run_is_refused_by_what_is_different(name: str, tmp_path: Path) -> None:
    run(tmp_path, 12)
    changes, sentence = OTHERS[name]
    before = copy.deepcopy(changes.get("model"))
    with pytest.raises(DamagedCheckpointError, match=sentence) as caught:
        run(tmp_path, 20, **changes)
    message = str(caught.value)
    assert len(message.splitlines()) == 3
    assert f"{tmp_path}/step-000000012.pt: a checkpoint of another run, with" in message
    assert f"rm -r '{tmp_path}'" in message
    if before is not None:
        assert torch.equal(whole(before), whole(changes["model"])), "the model is as it was"
    run(tmp_path, 20)  # its own run still goes on


@pytest.mark.parametrize("name", ["forward pass", "loss", "inputs"])
def test_batches_of_any_function_are_compared_by_the_first_loss(name: str, tmp_path: Path) -> None:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        return INPUTS[step % 5 :: 5], TARGETS[step % 5 :: 5]

    run(tmp_path, 12, batches=batch)
    changes = {"batches": lambda step: (batch(step)[0] + 0.1, batch(step)[1])} if name == "inputs" else OTHERS[name][0]
    with pytest.raises(DamagedCheckpointError, match=r"with loss [\d.]+ at step 0"):
        run(tmp_path, 20, **{"batches": batch} | changes)
    expected = run(None, 20, batches=batch)
    assert torch.equal(whole(run(tmp_path, 20, batches=batch)), whole(expected))


def test_fewer_steps_than_were_made_are_refused(tmp_path: Path) -> None:
    run(tmp_path, 12)
    with pytest.raises(DamagedCheckpointError, match="with step 12\nexpected at most 11 steps"):
        run(tmp_path, 11)


def test_a_finished_run_is_only_read(tmp_path: Path) -> None:
    first = run(tmp_path, 12)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert torch.equal(whole(first), whole(run(tmp_path, 12)))
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_model_with_the_checkpoints_weights_goes_on(tmp_path: Path) -> None:
    """One that was trained a moment ago, or one that is loaded by hand."""
    expected = whole(run(None, 30))
    model = network()
    optimizer = Adam(model.parameters(), lr=0.05)
    schedule, batches = ExponentialLR(optimizer, 0.99), MiniBatches((INPUTS, TARGETS), 8, 0)
    for steps in (10, 20):
        fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(steps, schedule, (), tmp_path))
    loaded = network(seed=5)
    state = torch.load(newest_checkpoint(tmp_path)[1], weights_only=True)
    loaded.load_state_dict(state["model"])
    assert torch.equal(whole(run(tmp_path, 30, model=loaded)), expected)


def test_random_numbers_of_the_forward_pass_go_on(tmp_path: Path) -> None:
    """Dropout draws from the global generator, so that the first loss is computed again from its state."""

    def noisy() -> nn.Module:
        return nn.Sequential(network(), nn.Dropout(0.5), nn.BatchNorm1d(3))

    torch.manual_seed(3)
    expected = whole(run(None, 20, model=noisy()))
    torch.manual_seed(3)
    run(tmp_path, 12, model=noisy())
    torch.manual_seed(9)
    model = noisy()
    torch.rand(100)
    assert torch.equal(whole(run(tmp_path, 20, model=model)), expected)


def test_a_forward_pass_that_draws_from_elsewhere_is_let_through(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return batch_cross_entropy(model, batch) * float(generator.uniform(0.5, 2))

    run(tmp_path, 12, loss=loss)
    run(tmp_path, 20, loss=loss)
    assert newest_checkpoint(tmp_path)[0] == 20


def unfreezing(folder: Path | None, steps: int, add: bool) -> nn.Module:
    """Train the head, and from step 6 on all layers."""
    model = network()
    model[0].requires_grad_(False)
    optimizer = SGD(model[2].parameters() if add else model.parameters(), lr=0.1)

    def unfreeze(step: int, loss: float) -> None:
        if step == 5:
            model[0].requires_grad_(True)
            if add:
                optimizer.add_param_group({"params": model[0].parameters()})

    plan = TrainingPlan(steps, None, [unfreeze], folder, 5)
    fit(model, batch_cross_entropy, MiniBatches((INPUTS, TARGETS), 8, 0), optimizer, plan)
    return model


@pytest.mark.parametrize("first", [3, 8])
def test_layers_that_a_callback_unfroze_are_trained_after_a_kill(first: int, tmp_path: Path) -> None:
    unfreezing(tmp_path, first, False)
    assert torch.equal(whole(unfreezing(tmp_path, 12, False)), whole(unfreezing(None, 12, False)))


def test_groups_that_were_added_on_the_way_are_refused(tmp_path: Path) -> None:
    unfreezing(tmp_path, 8, True)
    with pytest.raises(
        DamagedCheckpointError, match="with parameter groups that were added on the way\nexpected as many as"
    ):
        unfreezing(tmp_path, 12, True)


def test_a_run_of_fewer_layers_is_another(tmp_path: Path) -> None:
    run(tmp_path, 6)
    frozen = network()
    frozen[0].requires_grad_(False)
    with pytest.raises(
        DamagedCheckpointError, match=r"trained parameters 0\.weight, .*\nexpected .* 2\.weight, 2\.bias"
    ):
        run(tmp_path, 9, model=frozen)


def test_the_folder_knows_its_run_from_the_first_moment(tmp_path: Path) -> None:
    """A run that is killed before its first step is made leaves its name in the folder, and no more."""

    def killed(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 12, loss=killed)
    assert newest_checkpoint(tmp_path)[0] == 0
    with pytest.raises(DamagedCheckpointError, match="lr of parameter group 0"):
        run(tmp_path, 12, optimizer=lambda of: Adam(of, lr=0.01))
    assert torch.equal(whole(run(tmp_path, 12)), whole(run(None, 12)))


# --- settings in all forms

SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "multi-step": lambda of: MultiStepLR(of, [3, 8, 8], 0.5),
    "lambda": lambda of: LambdaLR(of, lambda step: 1 / (1 + step)),
    "one cycle": lambda of: OneCycleLR(of, 0.1, 30),
    "warm restarts": lambda of: CosineAnnealingWarmRestarts(of, 4),
    "cyclic": lambda of: CyclicLR(of, 0.001, 0.1, cycle_momentum=False),
    "sequential": lambda of: SequentialLR(of, [ExponentialLR(of, 0.9), StepLR(of, 3)], [6]),
    "chained": lambda of: ChainedScheduler([ExponentialLR(of, 0.9), StepLR(of, 3)]),
    "plateau": lambda of: ReduceLROnPlateau(of, patience=1, factor=0.5),
    "none": lambda of: None,
}
KINDS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "numpy rate": lambda of: Adam(of, lr=np.float64(0.05)),
    "float32 rate": lambda of: SGD(of, lr=np.float32(0.05), momentum=np.float64(0.9)),
    "tensor rate": lambda of: Adam(of, lr=torch.tensor(0.05)),
    "fused": lambda of: AdamW(of, lr=0.05, fused=True),
    "two groups": lambda of: SGD([{"params": [p], "lr": 0.1 * p.ndim} for p in of], momentum=0.9),
    "lbfgs": lambda of: torch.optim.LBFGS(of, lr=0.2, max_iter=3),
    "line search": lambda of: torch.optim.LBFGS(of, max_iter=3, line_search_fn="strong_wolfe"),
    "radam": lambda of: torch.optim.RAdam(of, lr=0.05),
    "asgd": lambda of: torch.optim.ASGD(of, lr=0.05),
}


@pytest.mark.filterwarnings("ignore:.*epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.parametrize(
    ("kind", "schedule"), [*((kind, "none") for kind in KINDS), *(("two groups", s) for s in SCHEDULES)]
)
def test_every_optimizer_and_schedule_goes_on_bit_for_bit(kind: str, schedule: str, tmp_path: Path) -> None:
    how = {"optimizer": KINDS[kind], "schedule": SCHEDULES[schedule]}
    run(str(tmp_path), 12, **how)
    assert torch.equal(whole(run(str(tmp_path), 20, **how)), whole(run(None, 20, **how)))


def test_a_changed_milestone_of_a_schedule_is_seen(tmp_path: Path) -> None:
    run(tmp_path, 6, schedule=lambda of: MultiStepLR(of, [3, 8]))
    with pytest.raises(DamagedCheckpointError, match=r'milestones of the scheduler \{"3": 1, "8": 1\} at step 6'):
        run(tmp_path, 9, schedule=lambda of: MultiStepLR(of, [3, 9]))
    with pytest.raises(DamagedCheckpointError, match=r"lr of parameter group 0 0\.05 "):
        run(tmp_path, 9, optimizer=lambda of: Adam(of, lr=0.0500001), schedule=lambda of: MultiStepLR(of, [3, 8]))


def test_a_tensor_as_rate_is_compared_in_all_its_digits(tmp_path: Path) -> None:
    run(tmp_path, 6, optimizer=lambda of: Adam(of, lr=torch.tensor(0.05)), schedule=SCHEDULES["none"])
    with pytest.raises(DamagedCheckpointError, match="lr of parameter group 0"):
        run(tmp_path, 9, optimizer=lambda of: Adam(of, lr=torch.tensor(0.050001)), schedule=SCHEDULES["none"])


def test_lbfgs_gives_the_loss_before_each_step() -> None:
    model, batches = network(), MiniBatches((INPUTS, TARGETS), 50, 0)
    optimizer = KINDS["lbfgs"](model.parameters())
    with GradientRecorder(model, optimizer, CapturePlan(range(4))) as recorder:
        losses = fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(4))
    plain = network()
    by_hand, expected = KINDS["lbfgs"](plain.parameters()), []
    for step in range(4):

        def closure(step: int = step) -> Tensor:
            by_hand.zero_grad()
            loss = batch_cross_entropy(plain, batches(step))
            loss.backward()
            return loss

        expected.append(by_hand.step(closure).item())
    assert losses.tolist() == expected
    assert len(recorder.stack().rows) == 4


def test_a_plateau_lowers_the_rate_by_the_losses() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.0)
    optimizer.param_groups[0]["lr"] = 1e-9  # the loss stays
    schedule = ReduceLROnPlateau(optimizer, patience=2, factor=0.5, eps=0, threshold=0.1)
    fit(model, batch_cross_entropy, lambda step: (INPUTS, TARGETS), optimizer, TrainingPlan(7, schedule))
    assert optimizer.param_groups[0]["lr"] == 1e-9 / 4


class Stubborn(ExponentialLR):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "helper": Path("a")}


def test_a_state_that_cannot_be_read_back_is_refused_before_any_step(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(ValueError, match="model, optimizer or scheduler hold more than tensors and plain values"):
        run(tmp_path, 5, model=model, schedule=lambda of: Stubborn(of, 0.9))
    assert torch.equal(whole(model), whole(network()))
    assert not list(tmp_path.iterdir())


def test_another_optimizers_schedule_is_refused() -> None:
    model = network()
    schedule = StepLR(SGD(model.parameters(), lr=0.1), 3)
    with pytest.raises(ValueError, match="the scheduler is that of another optimizer"):
        fit(
            model,
            batch_cross_entropy,
            lambda _: (INPUTS, TARGETS),
            SGD(model.parameters(), 0.1),
            TrainingPlan(3, schedule),
        )


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holds no parameter of the model: make it from model\.parameters\(\)"):
        fit(network(), batch_cross_entropy, lambda _: (INPUTS, TARGETS), SGD(network().parameters()), TrainingPlan(3))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (
            lambda model, batch: cross_entropy(model(batch[0]), batch[1], reduction="none"),
            r"shape \(50,\), torch\.float32: expected a sc",
        ),
        (
            lambda model, batch: batch_cross_entropy(model, batch).item(),
            "returned float: expected a scalar tensor that",
        ),
        (
            lambda model, batch: batch_cross_entropy(model, batch).detach(),
            r"shape \(\), torch\.float32: expected .* has a gradient",
        ),
        (lambda model, batch: None, "returned NoneType: expected"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss: Any, said: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=said):
        fit(model, loss, lambda _: (INPUTS, TARGETS), SGD(model.parameters(), 0.1), TrainingPlan(3))
    assert torch.equal(whole(model), whole(network()))


def test_a_loader_in_place_of_a_function_is_refused() -> None:
    model = network()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(INPUTS, TARGETS))
    with pytest.raises(ValueError, match="batches of type DataLoader: expected a function of the step"):
        fit(model, batch_cross_entropy, loader, SGD(model.parameters(), 0.1), TrainingPlan(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 2.0}, {"steps": -3}, {"steps": 3, "checkpoint_every": 0}])
def test_numbers_of_steps_are_whole(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(steps|checkpoint_every)=.*: expected at least 1, a whole number"):
        TrainingPlan(**wrong)


# --- numbers that are not finite


class Cusp(nn.Module):
    """sqrt(w) at w = 0: a finite loss with an infinite gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.unused = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x).sqrt()


@pytest.mark.parametrize("last", [True, False])
def test_a_finite_loss_with_a_gradient_that_is_not_stops(last: bool, tmp_path: Path) -> None:
    model = Cusp()
    batches = [torch.ones(1), torch.ones(1), torch.zeros(1), torch.ones(1)]
    plan = TrainingPlan(3 if last else 4, checkpoints=tmp_path, checkpoint_every=1 if last else 4)
    sentence = "parameter 'w' after step 2: not finite" if last else "loss=nan at step 3: not finite; try a smaller"
    with pytest.raises(DivergenceError, match=sentence):
        fit(model, lambda m, b: m(b).sum(), lambda step: batches[step], SGD(model.parameters(), 0.1), plan)  # type: ignore[arg-type, return-value]
    assert newest_checkpoint(tmp_path)[0] == (2 if last else 0), "none with what is not finite is written"


def test_weights_that_are_not_finite_and_do_not_reach_the_loss_are_found_at_the_end() -> None:
    model = Cusp()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        part: Tensor = model.unused[0] * 0
        part.register_hook(lambda gradient: gradient * torch.inf)
        return model(batch).sum() + part

    with pytest.raises(DivergenceError, match="parameter 'unused' after step 0: not finite; try a smaller learning"):
        fit(model, loss, lambda _: torch.ones(1), SGD(model.parameters(), 0.1), TrainingPlan(1))  # type: ignore[arg-type, return-value]


def test_what_is_not_trained_may_be_infinite() -> None:
    model = network()
    model.register_parameter("mask", nn.Parameter(torch.tensor([-torch.inf]), requires_grad=False))
    model.register_buffer("limit", torch.tensor(torch.inf))
    fit(model, batch_cross_entropy, lambda _: (INPUTS, TARGETS), SGD(model.parameters(), 0.1), TrainingPlan(2))


# --- recorded rows beside checkpoints


def recorded(folder: Path, steps: int, plan: CapturePlan, loss: Any = batch_cross_entropy) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    training = TrainingPlan(steps, checkpoints=folder / "states", checkpoint_every=4)
    with GradientRecorder(model, optimizer, plan, str(folder / "rows")) as recorder:
        fit(model, loss, MiniBatches((INPUTS, TARGETS), 8, 0), optimizer, training, recorders=[recorder])


def test_an_empty_folder_of_checkpoints_does_not_empty_a_store(tmp_path: Path) -> None:
    recorded(tmp_path, 7, CapturePlan(range(20)))
    before = np.array(open_stack(tmp_path / "rows").rows)
    for path in (tmp_path / "states").iterdir():
        path.unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match="rows holds 7 rows: choose another folder"):
            recorded(tmp_path, 7, CapturePlan(range(20)))
    assert np.array_equal(open_stack(tmp_path / "rows").rows, before)


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    calls = []

    def killed(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return batch_cross_entropy(model, batch)

    with pytest.raises(KeyboardInterrupt):
        recorded(tmp_path, 7, CapturePlan(range(20)), killed)
    assert open_stack(tmp_path / "rows").steps.tolist() == [0, 1]
    recorded(tmp_path, 7, CapturePlan(range(20)))
    assert open_stack(tmp_path / "rows").steps.tolist() == list(range(7))


def test_rows_of_as_many_other_steps_are_refused(tmp_path: Path) -> None:
    recorded(tmp_path, 8, CapturePlan([0, 2, 4]))
    with pytest.raises(ValueError, match=r"rows of steps \[0, 2, 4\] \.\.\., expected \[1, 3, 5\] \.\.\.; record anew"):
        recorded(tmp_path, 9, CapturePlan([1, 3, 5]))
    recorded(tmp_path, 9, CapturePlan([0, 2, 4]))


def test_weights_do_not_follow_gradients(tmp_path: Path) -> None:
    recorded(tmp_path, 8, CapturePlan(range(20)))
    with pytest.raises(
        ValueError, match="rows holds rows of kind 'gradient', expected 'weight'; choose another folder"
    ):
        recorded(tmp_path, 9, CapturePlan(range(20), "weight"))


def test_another_layout_is_named_by_its_first_difference(tmp_path: Path) -> None:
    recorded(tmp_path, 3, CapturePlan(range(20)))
    for parameters, said in (
        (["0.weight", "2.weight"], r"with \('0\.bias', \(8,\)\) for \('2\.weight', \(3, 8\)\); choose another folder"),
        (["0.weight", "0.bias"], r"with \('2\.weight', \(3, 8\)\) for None"),
    ):
        with pytest.raises(ValueError, match=f"holds rows of another layout, {said}"):
            recorded(tmp_path, 3, CapturePlan(range(20), parameters=parameters))


@pytest.mark.parametrize("opened", [False, True])
def test_rows_that_were_handed_out_stay_as_they_are(opened: bool, tmp_path: Path) -> None:
    """A memory map of a file that is cut ends the process when it is read."""
    model = nn.Linear(4000, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    with GradientRecorder(model, optimizer, CapturePlan(range(100), "weight"), tmp_path) as recorder:
        for _ in range(10):
            model(torch.ones(1, 4000)).sum().backward()
            optimizer.step()
        optimizer.state_dict()  # waits for the disk
        handed = open_stack(tmp_path) if opened else recorder.stack()
        before = np.array(handed.rows)
        recorder.resume(2)
        assert np.array_equal(handed.rows, before)
        with torch.no_grad():
            model.weight.fill_(7.0)
        for _ in range(4):
            optimizer.zero_grad()
            optimizer.step()
        assert np.array_equal(handed.rows, before), "and what is recorded anew is not in them"
        assert recorder.stack().steps.tolist() == [0, 1, 2, 3, 4, 5]
        assert np.array_equal(recorder.stack().rows[:2], before[:2])
        assert (recorder.stack().rows[2:, :4000] == 7).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layout.json", "rows.f32", "steps.i64", "sums.u32"]


def test_a_half_written_copy_of_rows_is_removed(tmp_path: Path) -> None:
    recorded(tmp_path, 3, CapturePlan(range(20)))
    (tmp_path / "rows" / ".rows.f32.x.tmp.f32").write_bytes(b"half")
    recorded(tmp_path, 5, CapturePlan(range(20)))
    assert not list((tmp_path / "rows").glob(".*"))


# --- mini-batches


@pytest.mark.parametrize("used", [False, True])
def test_mini_batches_can_be_sent_to_another_process(used: bool) -> None:
    batches = MiniBatches((INPUTS, TARGETS), 8, 0)
    if used:
        batches(9)
    sent = pickle.loads(pickle.dumps(batches))  # noqa: S301
    for step in (0, 9, 100):
        assert all(torch.equal(*pair) for pair in zip(batches(step), sent(step), strict=True))
    assert torch.equal(copy.deepcopy(batches)(3)[0], replace(batches)(3)[0])


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ((INPUTS, 8, 0), r"tensors: expected a tuple of tensors with a row for each example, as \(inputs, targets\)"),
        (((INPUTS.numpy(), TARGETS.numpy()), 8, 0), "tensors: expected a tuple of tensors"),
        (((INPUTS, TARGETS[:49]), 8, 0), r"tensors of \[50, 49\] rows: expected equal numbers"),
        (((), 8, 0), "tensors"),
        (((INPUTS, TARGETS), 51, 0), "batch_size=51: expected 1 to 50"),
    ],
)
def test_mini_batches_of_something_else_are_refused(of: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MiniBatches(*of)


def test_a_step_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="step=-1: expected at least 0"):
        MiniBatches((INPUTS, TARGETS), 8, 0)(-1)


def test_regression_and_dictionaries_train_as_well(tmp_path: Path) -> None:
    """A batch is what the loss makes of it."""
    expected = None
    for folder in (None, tmp_path, tmp_path):
        torch.manual_seed(0)
        model = nn.Linear(6, 1)
        fit(
            model,
            lambda model, batch: mse_loss(model(batch["x"])[:, 0], batch["y"]),  # type: ignore[call-overload]
            lambda step: {"x": INPUTS[step::3], "y": INPUTS[step::3, 0]},  # type: ignore[arg-type, return-value]
            SGD(model.parameters(), lr=0.1),
            TrainingPlan(4, checkpoints=folder, checkpoint_every=2),
        )
        expected = whole(model) if expected is None else expected
        assert torch.equal(whole(model), expected)


@pytest.mark.parametrize("stored", [True, False])
def test_the_rows_of_another_run_are_not_gone_on_with(tmp_path: Path, stored: bool) -> None:
    """Two runs record the same steps into stores of their own; one is resumed with the rows of the other."""
    kept: dict[str, Any] = {}

    def run(name: str, seed: int, rows: str, steps: int) -> np.ndarray:
        torch.manual_seed(seed)
        model = network()
        optimizer = SGD(model.parameters(), lr=0.1)
        plan = TrainingPlan(steps, checkpoints=tmp_path / name, checkpoint_every=2, run=name)
        recorder = GradientRecorder(
            model, optimizer, CapturePlan(range(9)), tmp_path / f"{rows}-rows" if stored else None
        )
        if not stored and rows in kept:
            recorder._sink = kept[rows]
        with recorder:
            fit(
                model,
                batch_cross_entropy,
                MiniBatches((INPUTS, TARGETS), 8, seed),
                optimizer,
                plan,
                recorders=[recorder],
            )
            kept[rows] = recorder._sink
            return np.array(recorder.stack().rows)

    first, second = run("a", 0, "a", 4), run("b", 1, "b", 4)
    with pytest.raises(ValueError, match="the row of step 3 is that of another run; record anew elsewhere"):
        run("a", 0, "b", 6)
    np.testing.assert_array_equal(run("a", 0, "a", 6)[:4], first)
    np.testing.assert_array_equal(run("b", 1, "b", 4), second)
