"""Networks trained side by side: against each of them trained alone by torch's own optimiser."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from descent.models import mlp
from descent.training import DivergenceError, MiniBatches, ModelStack, StackPlan, stack_accuracy, train_stack

K, SHAPE = 4, (1, 3, 5)


def data(seed: int, n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *SHAPE, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def networks() -> list[nn.Sequential]:
    return [mlp(SHAPE, [7], 3, seed, activation=nn.Tanh) for seed in range(K)]


def side_by_side(n: int = 40):
    each = [MiniBatches(data(seed, n), 8, seed) for seed in range(K)]
    return each, lambda step: tuple(torch.stack(parts) for parts in zip(*(one(step) for one in each), strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9, [0.0, 0.5, 0.9, 0.0]])
def test_each_network_goes_as_if_it_were_alone(momentum) -> None:
    models, (each, batches) = networks(), side_by_side()
    rates, momenta = [0.0, 0.05, 0.1, 0.3], np.broadcast_to(momentum, K).tolist()
    stack = ModelStack(models)
    trained = train_stack(stack, batches, StackPlan(30, rates, momentum, sampled=[0, 7, 29]))
    for number, model in enumerate(models):
        optimizer = torch.optim.SGD(model.parameters(), rates[number], momenta[number])
        for step in range(30):
            optimizer.zero_grad()
            inputs, targets = each[number](step)
            cross_entropy(model(inputs), targets).backward()
            flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
            if step in (0, 7, 29):
                at = [0, 7, 29].index(step)
                np.testing.assert_allclose(trained.gradients[number, at], flat, rtol=1e-4, atol=1e-6)
            optimizer.step()
        own = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        torch.testing.assert_close(trained.weights[number], own, rtol=1e-4, atol=1e-6)
    assert torch.equal(trained.weights[0], stack.weights[0])  # a rate of zero


def test_the_models_and_the_stack_are_left_as_they_were() -> None:
    models, (_, batches) = networks(), side_by_side()
    before = [parameter.clone() for parameter in models[0].parameters()]
    stack = ModelStack(models)
    weights = stack.weights.clone()
    train_stack(stack, batches, StackPlan(3, 0.1, 0.9))
    assert torch.equal(stack.weights, weights)
    assert all(torch.equal(old, new) for old, new in zip(before, models[0].parameters(), strict=True))


def test_rows_are_the_parameters_in_order() -> None:
    models = networks()
    stack = ModelStack(models)
    named = stack.parameters(stack.weights)
    assert stack.names == [name for name, _ in models[0].named_parameters()]
    for number, model in enumerate(models):
        for name, parameter in model.named_parameters():
            assert torch.equal(named[name][number], parameter)
    inputs = torch.randn(K, 6, *SHAPE)
    for number, model in enumerate(models):
        torch.testing.assert_close(stack.outputs(stack.weights, inputs)[number], model(inputs[number]))


def test_a_projection_moves_weights_and_leaves_the_kept_gradients() -> None:
    _, batches = side_by_side()
    stack = ModelStack(networks())
    seen = []

    def none_of_it(gradients: Tensor, step: int) -> Tensor:
        seen.append(step)
        return torch.zeros_like(gradients)

    trained = train_stack(stack, batches, StackPlan(4, 0.5, sampled=[11], project=none_of_it, first=10))
    assert seen == [10, 11, 12, 13]
    assert torch.equal(trained.weights, stack.weights)
    expected = stack.gradients(stack.weights, *batches(11))
    np.testing.assert_array_equal(trained.gradients[:, 0], expected)


def test_a_training_in_two_parts_is_one() -> None:
    _, batches = side_by_side()
    stack = ModelStack(networks())
    whole = train_stack(stack, batches, StackPlan(12, 0.2)).weights
    half = train_stack(stack, batches, StackPlan(5, 0.2)).weights
    assert torch.equal(train_stack(stack, batches, StackPlan(7, 0.2, first=5), half).weights, whole)


def test_accuracy_is_the_share_of_right_answers() -> None:
    models = networks()
    stack, (inputs, targets) = ModelStack(models), data(9, 2500)
    found = stack_accuracy(stack, stack.weights, inputs.expand(K, *inputs.shape), targets.expand(K, -1))
    expected = [(model(inputs).argmax(1) == targets).double().mean().item() for model in models]
    np.testing.assert_allclose(found, expected)


def test_a_loss_of_ones_own_and_targets_of_any_shape() -> None:
    models = [nn.Linear(2, 3, dtype=torch.float64) for _ in range(2)]
    stack = ModelStack(models, loss=lambda outputs, targets: ((outputs - targets) ** 2).sum())
    inputs, targets = torch.randn(2, 4, 2).double(), torch.randn(2, 4, 3).double()
    found = stack.gradients(stack.weights, inputs, targets)
    for number, model in enumerate(models):
        loss = ((functional_call(model, dict(model.named_parameters()), inputs[number]) - targets[number]) ** 2).sum()
        own = torch.autograd.grad(loss, list(model.parameters()))
        torch.testing.assert_close(found[number], torch.cat([each.flatten() for each in own]))


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ([], "0 models: expected at least one"),
        ([nn.ReLU()], "1 models: expected at least one, with parameters"),
        ([nn.Linear(2, 3), nn.Linear(3, 3)], "model 1 differs from the first in weight"),
        ([nn.Linear(2, 3), nn.Linear(2, 3).double()], "model 1 differs from the first in weight"),
        ([nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 3))], "model 1 differs from the first in 0.weight"),
        ([nn.Linear(2, 3), nn.Linear(2, 3, bias=False)], "model 1 differs from the first"),
        ([nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))], r"model 0: 1 \(BatchNorm1d\) has buffers"),
        ([nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.1))], "model 0: 1 draws random numbers"),
        ([nn.Linear(2, 3).requires_grad_(False)], "model 0: weight is not trained"),
        ([mlp(SHAPE, [7], 3, 0, activation=nn.Tanh), mlp(SHAPE, [7], 3, 1)], r"model 1 differs.*ReLU\(\), not.*Tanh"),
        ([nn.Sequential(nn.RNN(2, 3))], r"model 0: 0 \(RNN\) cannot be stacked"),
        ([nn.Linear(2, 3).bfloat16()], "model 0 has parameters of .*bfloat16.*: expected float32 or float64"),
        ([nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2).double())], "model 0 has parameters of .*float32.*float64"),
    ],
)
def test_what_a_stack_cannot_train_is_refused_by_name(models: list[nn.Module], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ModelStack(models)


def test_dropout_that_draws_nothing_is_taken() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)).eval()
    assert ModelStack([model]).outputs(ModelStack([model]).weights, torch.ones(1, 4, 2)).shape == (1, 4, 3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps=0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0: expected a number of at least 0"),
        ({"learning_rate": [0.1, float("nan")]}, "learning_rate=.*nan"),
        ({"momentum": float("inf")}, "momentum=inf"),
        ({"sampled": [3, 10]}, r"sampled=\[ 3 10\]: expected steps from 0 to 9"),
        ({"sampled": [3, 3]}, "each to be larger"),
        ({"sampled": [0.5]}, "expected steps from 0 to 9"),
        ({"sampled": [2], "first": 3}, "expected steps from 3 to 12"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(settings, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        StackPlan(**{"steps": 10, "learning_rate": 0.1, **settings})


def test_numbers_for_another_number_of_networks_are_refused_before_any_step() -> None:
    stack, (_, batches) = ModelStack(networks()), side_by_side()
    with pytest.raises(ValueError, match="learning_rate for 3 networks: expected a number, or 4"):
        train_stack(stack, batches, StackPlan(3, [0.1, 0.1, 0.1]))
    with pytest.raises(ValueError, match="weights of shape"):
        train_stack(stack, batches, StackPlan(3, 0.1), stack.weights[:2])
    with pytest.raises(ValueError, match="of 1 inputs, 1 targets: expected 4 networks"):
        train_stack(stack, lambda step: tuple(part[:1] for part in batches(step)), StackPlan(3, 0.1))


def test_a_divergence_names_the_networks() -> None:
    stack, (_, batches) = ModelStack([mlp(SHAPE, [7], 3, seed) for seed in range(K)]), side_by_side()
    with pytest.raises(DivergenceError, match=r"networks \[2\] of the stack"):
        train_stack(stack, batches, StackPlan(60, [0.1, 0.1, 1e30, 0.1]))


def test_recorded_operations_are_those_of_each_shape_and_type() -> None:
    stack = ModelStack(networks())
    for n in (5, 8, 5):
        inputs, targets = torch.randn(K, n, *SHAPE), torch.randint(0, 3, (K, n))
        assert torch.equal(
            stack.gradients(stack.weights, inputs, targets), stack._gradients(stack.weights, inputs, targets)
        )
    wide = stack.weights.double()
    found = stack.gradients(wide, inputs.double(), targets)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), stack.gradients(stack.weights, inputs, targets))


class Scaled(nn.Module):
    """A layer with a number and a mask that are no parameters and are not printed."""

    def __init__(self, factor: float, mask: list[float]) -> None:
        super().__init__()
        self.layer, self.factor, self.mask = nn.Linear(2, 2), factor, torch.tensor(mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.factor * self.mask


def test_networks_that_differ_in_what_is_not_printed_are_refused() -> None:
    assert ModelStack([Scaled(2.0, [1, 0]), Scaled(2.0, [1, 0])]).weights.shape == (2, 6)
    with pytest.raises(ValueError, match="model 1 differs from the first in factor"):
        ModelStack([Scaled(2.0, [1, 0]), Scaled(3.0, [1, 0])])
    with pytest.raises(ValueError, match="model 1 differs from the first in mask"):
        ModelStack([Scaled(2.0, [1, 0]), Scaled(2.0, [0, 1])])


def test_a_hook_on_a_gradient_is_refused() -> None:
    model = nn.Linear(2, 3)
    model.weight.register_hook(lambda gradient: gradient * 0)
    with pytest.raises(ValueError, match="model 0: weight has a hook"):
        ModelStack([model])


def test_what_happens_to_the_models_afterwards_does_not_reach_the_stack() -> None:
    models, inputs = networks(), torch.randn(K, 6, *SHAPE)
    stack = ModelStack(iter(models))  # type: ignore[arg-type]  # also a generator
    before = stack.outputs(stack.weights, inputs)
    models[0][2] = nn.Identity()
    assert torch.equal(stack.outputs(stack.weights, inputs), before)


def test_a_stack_in_two_threads_is_that_in_one() -> None:
    (_, batches), plan = side_by_side(), StackPlan(10, 0.1)
    expected = train_stack(ModelStack(networks()), batches, plan).weights
    for _ in range(3):
        stack = ModelStack(networks())
        with ThreadPoolExecutor(2) as pool:
            found = [each.result() for each in [pool.submit(train_stack, stack, batches, plan) for _ in range(2)]]
        assert all(torch.equal(each.weights, expected) for each in found)


def test_batches_in_another_layout_of_memory_give_the_same() -> None:
    stack, (_, batches) = ModelStack(networks()), side_by_side()

    def turned(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = batches(step)
        return (inputs.mT.contiguous().mT if step else inputs), targets

    expected = train_stack(stack, batches, StackPlan(3, 0.1)).weights
    assert torch.equal(train_stack(stack, turned, StackPlan(3, 0.1)).weights, expected)


@pytest.mark.parametrize(
    ("project", "sentence"),
    [
        (lambda gradients, step: gradients.mean(0), r"project gave \(\d+,\) at step 0: expected gradients of shape"),
        (lambda gradients, step: torch.tensor(1.0), r"project gave \(\) at step 0"),
        (lambda gradients, step: None, "project gave NoneType at step 0"),
    ],
)
def test_a_projection_that_gives_something_else_is_refused(project, sentence: str) -> None:
    stack, (_, batches) = ModelStack(networks()), side_by_side()
    with pytest.raises(ValueError, match=sentence):
        train_stack(stack, batches, StackPlan(3, 0.1, project=project))
    with pytest.raises(DivergenceError, match="project gave numbers that are not finite at step 0"):
        train_stack(stack, batches, StackPlan(3, 0.1, project=lambda gradients, step: gradients * torch.nan))
    with pytest.raises(ValueError, match="project=3: expected a function"):
        StackPlan(3, 0.1, project=3)  # type: ignore[arg-type]


def test_weights_to_begin_with_are_checked_and_left_alone() -> None:
    stack, (_, batches) = ModelStack(networks()), side_by_side()
    given = stack.weights.clone().requires_grad_()
    trained = train_stack(stack, batches, StackPlan(3, 0.1), given)
    assert not trained.weights.requires_grad
    assert torch.equal(given.detach(), stack.weights)
    broken = stack.weights.clone()
    broken[2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"weights of networks \[2\] are not finite before the first step"):
        train_stack(stack, batches, StackPlan(3, 0.1), broken)
    with pytest.raises(ValueError, match=r"int64.*expected .*float32 or float64"):
        train_stack(stack, batches, StackPlan(3, 0.1), stack.weights.long())


def test_autocast_and_empty_batches_are_refused() -> None:
    stack, (_, batches) = ModelStack(networks()), side_by_side()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"stands in torch\.autocast"):
        train_stack(stack, batches, StackPlan(3, 0.1))
    with pytest.raises(ValueError, match="expected at least one example"):
        train_stack(stack, lambda step: tuple(part[:, :0] for part in batches(step)), StackPlan(3, 0.1))


def test_a_gradient_that_float32_cannot_hold_is_refused() -> None:
    stack = ModelStack([nn.Linear(1, 1).double()], loss=lambda outputs, targets: 1e50 * (outputs - targets).sum())
    batch = torch.ones(1, 2, 1).double(), torch.zeros(1, 2, 1).double()
    with pytest.raises(ValueError, match=r"step 0: the largest gradient is 2e\+50, and rows are float32"):
        train_stack(stack, lambda step: batch, StackPlan(1, 0.1, sampled=[0]))


def test_accuracy_of_what_is_not_a_number_is_none() -> None:
    stack, (inputs, targets) = ModelStack(networks()), data(9, 30)
    weights = stack.weights.clone()
    weights[1] = torch.nan
    found = stack_accuracy(stack, weights, inputs.expand(K, *inputs.shape), targets.expand(K, -1))
    assert np.isnan(found).tolist() == [False, True, False, False]
    for wrong in (targets[:1].expand(K, -1), targets.repeat(2).expand(K, -1)):
        with pytest.raises(ValueError, match=r"targets .*expected"):
            stack_accuracy(stack, stack.weights, inputs.expand(K, *inputs.shape), wrong)


def test_unsigned_steps_that_fall_are_refused() -> None:
    with pytest.raises(ValueError, match="each to be larger"):
        StackPlan(10, 0.1, sampled=np.array([5, 3], np.uint8))
    assert StackPlan(np.int8(100), 0.1, first=np.int8(100), sampled=[150]).first == 100
