import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from dense import dense_matrix
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from descent.curvature.operators import gauss_newton, hessian
from descent.models.flat_weights import Layout, flatten, unflatten
from descent.models.image_networks import mlp, small_convnet
from descent.repro.seeding import torch_generator

Batches = list[tuple[Tensor, Tensor]]
Criterion = Callable[[Tensor, Tensor], Any]


def of(criterion: Criterion) -> Callable[[nn.Module, Any], Any]:
    """The loss of a model and a batch that is this function of outputs and targets."""
    return lambda model, batch: criterion(model(batch[0]), batch[1])


CROSS = of(nn.CrossEntropyLoss())


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def data(n: int = 12, shape: tuple[int, ...] = (3,), classes: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch_generator(0, "data")
    inputs = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(classes, (n,), generator=generator)


def split(inputs: Tensor, targets: Tensor, size: int) -> Batches:
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def autograd_hessian(model: nn.Module, loss: Callable[..., Tensor], inputs: Tensor, targets: Tensor) -> np.ndarray:
    named = {name: p.detach() for name, p in model.named_parameters()}
    layout = Layout.of(named.items())

    def of_weights(vector: Tensor) -> Tensor:
        return loss(torch.func.functional_call(model, unflatten(vector, layout), (inputs,)), targets)

    return torch.autograd.functional.hessian(of_weights, flatten(named)).numpy()


class Quadratic(nn.Module):
    """Half w^T diag(values) w for every example, whatever the inputs."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.arange(1.0, len(values) + 1, dtype=torch.float64))
        self.register_buffer("values", torch.tensor(values, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.w**2 @ self.values / 2).expand(len(inputs))


def mean(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(batch[0]).mean()


def test_quadratic_of_known_spectrum() -> None:
    values = [-3.0, 0.0, 0.5, 7.0]
    np.testing.assert_allclose(dense_matrix(hessian(Quadratic(values), mean, [data()])), np.diag(values), atol=1e-14)
    np.testing.assert_array_equal(dense_matrix(gauss_newton(Quadratic(values), mean, [data()])), np.zeros((4, 4)))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), lambda outputs, y: ((outputs.T - y) ** 2).mean()])
@pytest.mark.parametrize("size", [12, 5])
def test_equals_the_dense_hessian(loss: Callable[..., Tensor], size: int) -> None:
    model, (inputs, targets) = small_net(), data()
    expected = autograd_hessian(model, loss, inputs, targets)
    operator = hessian(model, of(loss), split(inputs, targets, size))
    np.testing.assert_allclose(operator @ np.eye(len(expected)), expected, atol=1e-13)
    vector = np.arange(1.0, len(expected) + 1)
    for _ in range(2):  # the second product reuses the graph
        np.testing.assert_allclose(operator @ vector, expected @ vector, atol=1e-11)


def test_equals_the_dense_hessian_of_a_convnet() -> None:
    model = small_convnet((1, 4, 4), 2, 0).double()
    with torch.no_grad():
        model[2].weight[:, 1:] = 0  # keep the check small: only the last layers are differentiated by
    inputs, targets = data(6, (1, 4, 4))
    operator = hessian(model, CROSS, [(inputs, targets)], ["5.weight", "5.bias"])
    linear = nn.Linear(16, 2).double()
    linear.load_state_dict(model[5].state_dict())
    features = model[:5](inputs).detach()
    np.testing.assert_allclose(
        dense_matrix(operator), autograd_hessian(linear, nn.CrossEntropyLoss(), features, targets), atol=1e-13
    )


def test_gauss_newton_is_j_h_j_and_of_a_linear_net_the_hessian() -> None:
    model, (inputs, targets) = small_net(), data()
    matrix = dense_matrix(gauss_newton(model, CROSS, split(inputs, targets, 5)))
    np.testing.assert_allclose(matrix, jacobian_form(model, inputs, targets), atol=1e-13)
    linear = nn.Linear(3, 2).double()
    both = (dense_matrix(kind(linear, CROSS, [data()])) for kind in (hessian, gauss_newton))
    np.testing.assert_allclose(*both, atol=1e-14)


@pytest.mark.parametrize("kind", [hessian, gauss_newton])
def test_batches_do_not_change_the_scale(kind: Callable[..., Any]) -> None:
    model, loss = small_net(), CROSS
    inputs, targets = data()
    spectra = [
        np.linalg.eigvalsh(dense_matrix(kind(model, loss, split(inputs, targets, size)))) for size in (12, 6, 3, 5)
    ]
    for other in spectra[1:]:
        np.testing.assert_allclose(other, spectra[0], atol=1e-13)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=5)
    np.testing.assert_allclose(np.linalg.eigvalsh(dense_matrix(kind(model, loss, loader))), spectra[0], atol=1e-13)


class Tied(nn.Module):
    """Two layers with one weight between them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.outer.weight = self.inner.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outer(self.inner(inputs).tanh())


class Attention(nn.Module):
    """One layer of attention, mean over four positions of two features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, 2, dropout=0.0, batch_first=True, activation="gelu")

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).mean(1)


def jacobian_form(model: nn.Module, inputs: Tensor, targets: Tensor) -> np.ndarray:
    """J^T (d^2 loss / d outputs^2) J of cross-entropy, written out."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    layout = Layout.of(named.items())

    def outputs(vector: Tensor) -> Tensor:
        return torch.func.functional_call(model, unflatten(vector, layout), (inputs,))

    J = torch.autograd.functional.jacobian(outputs, flatten(named))
    p = outputs(flatten(named)).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return (torch.einsum("nap,nab,nbq->pq", J, middle, J) / len(inputs)).detach().numpy()


@pytest.mark.parametrize(("make", "shape"), [(Tied, (3,)), (Attention, (4, 2))])
def test_tied_weights_and_attention(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model, (inputs, targets) = make().double().eval(), data(shape=shape)
    with sdpa_kernel(SDPBackend.MATH):
        exact = autograd_hessian(model, nn.CrossEntropyLoss(), inputs, targets), jacobian_form(model, inputs, targets)
    for kind, expected in zip((hessian, gauss_newton), exact, strict=True):
        with torch.no_grad():
            operator = kind(model, CROSS, split(inputs, targets, 5))
            product = operator @ np.eye(len(expected))
        np.testing.assert_allclose(product, expected, atol=1e-13)
        np.testing.assert_allclose(product, product.T, atol=1e-14)
        np.testing.assert_array_equal(operator.T @ product[0], operator @ product[0])


def test_named_parameters_give_the_block_in_the_models_order() -> None:
    model, loss = small_net(), CROSS
    whole = dense_matrix(hessian(model, loss, [data()]))
    rows = Layout.of(model.named_parameters()).slices()
    block = np.r_[rows["0.bias"], rows["2.weight"]]
    model.get_parameter("0.bias").requires_grad_(False)
    found = dense_matrix(hessian(model, loss, [data()], ["2.weight", "0.bias"]))
    np.testing.assert_allclose(found, whole[np.ix_(block, block)], atol=1e-14)
    assert hessian(model, loss, [data()]).shape == (26 - 4,) * 2  # None: those that are trained


def test_model_is_handed_back_untouched_and_training_it_does_not_move_the_operator() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    model[0].weight.grad = torch.ones(4, 3, dtype=torch.float64)
    model[2].bias.requires_grad_(False)
    before, grads = copy.deepcopy(model.state_dict()), [p.grad for p in model.parameters()]
    operators = [kind(model, CROSS, [data()]) for kind in (hessian, gauss_newton)]
    first = [dense_matrix(operator) for operator in operators]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]
    assert not model.training
    assert (model[0].weight.grad == 1).all()
    with torch.no_grad():
        model[0].weight += 1
    for operator, matrix in zip(operators, first, strict=True):
        np.testing.assert_array_equal(dense_matrix(operator), matrix)


def test_float32_weights_take_float64_vectors() -> None:
    model, (inputs, targets) = small_net(), data()
    exact = autograd_hessian(model, nn.CrossEntropyLoss(), inputs, targets)
    operator = hessian(copy.deepcopy(model).float(), CROSS, [(inputs.float(), targets)])
    product = operator @ np.ones(len(exact))
    assert product.dtype == np.float64
    np.testing.assert_allclose(product, exact.sum(1), atol=1e-5)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(inputs))


class Changing:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.rand(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.long)


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data()), **options)


def one_hot(y: Tensor) -> Tensor:
    return nn.functional.one_hot(y, 2).double()


BAD: dict[str, tuple[Any, Any, Any, str]] = {
    "shuffle": (None, CROSS, loader(batch_size=4, shuffle=True), "order with a RandomSampler: expected shuffle=False"),
    "drop": (None, CROSS, loader(batch_size=5, drop_last=True), "drops the last 2 of 12 examples"),
    "changing": (None, CROSS, Changing(), "batch 0 differs between two passes"),
    "iterator": (None, CROSS, iter([data()]), "batches is a list_iterator, spent after one pass"),
    "empty": (None, CROSS, [], "batches is empty"),
    "dropout": (nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)), CROSS, None, "Dropout '1' is in training mode"),
    "norm": (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), CROSS, None, "BatchNorm1d '1' uses each batch's own"),
    "no statistics": (nn.BatchNorm1d(3, track_running_stats=False).eval(), CROSS, None, "uses each batch's own"),
    "noise": (Noisy(), CROSS, None, r"loss of batch 0 is .*, then .*: products would be random"),
    "number": (
        None,
        lambda model, batch: model(batch[0])[0, 0].item(),
        None,
        "loss returned float: expected a scalar tensor",
    ),
    "nan": (None, lambda model, batch: CROSS(model, batch) * float("nan"), None, "loss of batch 0 is nan: expected"),
}
BAD_CRITERIA: dict[str, tuple[Criterion, str]] = {
    "sum": (nn.CrossEntropyLoss(reduction="sum"), "on 12 rows up to batch 0, .* expected a mean per example"),
    "summed": (lambda o, y: nn.functional.cross_entropy(o, y) * len(y), "on 12 rows .* expected a mean per example"),
    "weighted": (nn.CrossEntropyLoss(torch.tensor([1.0, 9.0]).double()), "expected a mean per example"),
    "vector": (lambda o, y: o.sum(1), r"loss returned shape \(12,\), torch.float64: expected a scalar"),
    "accuracy": (lambda o, y: (o.argmax(1) == y).double().mean(), "loss has no gradient in the outputs"),
    "detached": (lambda o, y: nn.functional.cross_entropy(o.detach(), y), "loss has no gradient in the outputs"),
    "none": (nn.CrossEntropyLoss(reduction="none"), r"loss returned shape \(12,\), torch.float64"),
    "l1": (lambda o, y: nn.functional.l1_loss(o, one_hot(y)), "loss is piecewise linear in the outputs"),
    "margin": (nn.MultiMarginLoss(), "cannot be differentiated twice: .*multi_margin_loss_backward"),
    "own l1": (lambda o, y: (o - one_hot(y)).abs().mean(), "loss is piecewise linear in the outputs"),
    "own hinge": (lambda o, y: (1 - o.T * y).relu().mean(), "loss is piecewise linear in the outputs"),
}
BAD |= {name: (None, of(criterion), None, message) for name, (criterion, message) in BAD_CRITERIA.items()}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("kind", [hessian, gauss_newton])
def test_what_has_no_hessian_is_refused_by_name(case: str, kind: Callable[..., Any]) -> None:
    model, loss, batches, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        kind((model or small_net()).double(), loss, [data()] if batches is None else batches)


def test_structure_is_refused_before_the_model_runs() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match="Dropout '1'"):
        hessian(model, CROSS, [data()])


@pytest.mark.parametrize("loss", [nn.HuberLoss(delta=0.01), nn.SmoothL1Loss(), nn.MSELoss()])
def test_smooth_losses_are_taken(loss: nn.Module) -> None:
    inputs, targets = data()
    hessian(small_net(), of(loss), [(inputs, one_hot(targets))])


def test_saturated_and_bounded_losses_are_taken() -> None:
    model = small_net()
    with torch.no_grad():
        model[2].bias += torch.tensor([1e4, -1e4])  # every probability is 0 or 1: the Hessian vanishes to rounding
    inputs, targets = data()
    assert not dense_matrix(hessian(model, CROSS, [(inputs, torch.zeros_like(targets))])).any()
    hessian(nn.Sequential(small_net(), nn.Sigmoid()), of(nn.BCELoss()), [(inputs, one_hot(targets))])


def test_log_likelihood_is_linear_in_its_outputs_and_taken() -> None:
    model = nn.Sequential(small_net(), nn.LogSoftmax(1))
    both = dense_matrix(hessian(model, of(nn.NLLLoss()), [data()])), dense_matrix(hessian(model[0], CROSS, [data()]))
    np.testing.assert_allclose(*both, atol=1e-14)


def test_bad_parameters_are_named() -> None:
    model = mlp((3,), [4], 2, 0).double()
    with pytest.raises(ValueError, match=re.escape("parameter '9.bias': expected one of 1.weight, 1.bias, 3.weight")):
        hessian(model, CROSS, [data()], ["9.bias"])
    with pytest.raises(ValueError, match="expected a list of names"):
        hessian(model, CROSS, [data()], "1.bias")
    with pytest.raises(ValueError, match="expected at least one"):
        hessian(model, CROSS, [data()], [])
    model[1].float()
    with pytest.raises(ValueError, match=r"torch.float32 on cpu and torch.float64 on cpu: expected one dtype"):
        hessian(model, CROSS, [data()])


def test_one_example_with_one_output_has_a_hessian() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    batch = [(torch.full((1, 1), 3.0).double(), torch.zeros(1, 1).double())]
    assert (hessian(model, of(nn.functional.mse_loss), batch) @ np.eye(1)).tolist() == [[18.0]]
