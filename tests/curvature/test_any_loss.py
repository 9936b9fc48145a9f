"""Whatever a loss reads and however it weighs examples: the Hessian is that of the whole loss, or it is refused."""

from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from dense import dense_matrix, differenced_hessian
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from descent.curvature import extreme_eigenpairs, gauss_newton, hessian
from descent.repro import torch_generator
from descent.training import MiniBatches, batch_cross_entropy

KINDS = [hessian, gauss_newton]


def network(outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def data(n: int = 12) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(n, 3, generator=torch_generator(0, "inputs"), dtype=torch.float64)
    return inputs, torch.arange(n) % 2


def squares(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def decay(model: nn.Module) -> Tensor:
    return sum((p.square().sum() for p in model.parameters()), start=torch.zeros((), dtype=torch.float64))


# ---- what the loss reads


def test_a_penalty_on_the_weights_counts() -> None:
    """(w x - y)^2 + w^2 / 4 at x = 2 has the curvature 8 + 1/2."""
    model = nn.Linear(1, 1, bias=False).double()
    batch = torch.full((5, 1), 2.0).double(), torch.ones(5, 1).double()
    operator = hessian(model, lambda model, batch: squares(model, batch) + decay(model) / 4, [batch])
    assert operator @ np.array([1.0]) == pytest.approx([8.5], rel=1e-14)
    top = extreme_eigenpairs(operator, 1, "largest", np.random.default_rng(0))
    assert top.values == pytest.approx([8.5])


PENALTIES: dict[str, Callable[[nn.Module], Tensor]] = {
    "decay": decay,
    "by state": lambda model: sum(part.pow(4).sum() for part in dict(model.named_parameters()).values()),
    "one layer": lambda model: model[0].weight.exp().mean(),
    "spectral": lambda model: torch.linalg.matrix_norm(model[2].weight, 2),
    "between layers": lambda model: (model[2].weight @ model[0].weight).square().sum(),
}


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("size", [12, 5])
def test_any_penalty_counts_once_however_the_data_is_divided(name: str, size: int) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return batch_cross_entropy(model, batch) + PENALTIES[name](model)

    model, (inputs, targets) = network(), data()
    batches = list(zip(inputs.split(size), targets.split(size), strict=True))
    found = dense_matrix(hessian(model, loss, batches))
    np.testing.assert_allclose(found, differenced_hessian(model, loss, (inputs, targets)), atol=1e-7)
    assert not np.allclose(found, dense_matrix(hessian(model, batch_cross_entropy, batches)), atol=1e-3)


@pytest.mark.parametrize("name", PENALTIES)
def test_gauss_newton_refuses_a_penalty_by_the_name_of_what_it_reads(name: str) -> None:
    with pytest.raises(ValueError, match=r"loss reads parameter '[02]\.(weight|bias)' beside the outputs.*or hessian"):
        gauss_newton(network(), lambda model, batch: squares(model, batch) + PENALTIES[name](model), [data_pairs()])


def data_pairs() -> tuple[Tensor, Tensor]:
    inputs, _ = data()
    return inputs, inputs[:, :2].sin()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "read",
    [
        lambda model, given, batch: decay(model),
        lambda model, given, batch: model[0].weight.norm() * batch[0].sum(1).mean(),
        lambda model, given, batch: batch_cross_entropy(model, batch),
    ],
)
def test_a_loss_that_reads_the_model_itself_is_refused(kind: Callable[..., Any], read: Callable[..., Tensor]) -> None:
    """The copy that is differentiated is not what such a loss reads: the part would be left out in silence."""
    model = network()
    with pytest.raises(ValueError, match=r"loss reads parameter '\d\.(weight|bias)' from elsewhere than its argument"):
        kind(model, lambda given, batch: batch_cross_entropy(given, batch) + read(model, given, batch), [data()])


def test_a_term_computed_before_is_refused_and_a_detached_one_is_a_constant() -> None:
    model, batch = network(), data()
    term = decay(model)
    with pytest.raises(ValueError, match="from elsewhere than its argument"):
        hessian(model, lambda given, batch: batch_cross_entropy(given, batch) + term, [batch])
    teacher = model(batch[0]).detach()  # the network itself as its teacher: the Hessian of its divergence from itself

    def divergence(given: nn.Module, batch: Any) -> Tensor:
        return F.kl_div(given(batch[0]).log_softmax(1), batch[1].softmax(1), reduction="batchmean")

    fisher = dense_matrix(gauss_newton(model, batch_cross_entropy, [batch]))
    np.testing.assert_allclose(dense_matrix(hessian(model, divergence, [(batch[0], teacher)])), fisher, atol=1e-14)


def test_a_trainable_number_of_the_loss_is_refused() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_variance = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, model: nn.Module, batch: Any) -> Tensor:
            return batch_cross_entropy(model, batch) * self.log_variance.exp().mean()

    for kind in KINDS:
        with pytest.raises(ValueError, match=r"loss reads a trainable tensor of shape \(3,\) from elsewhere"):
            kind(network(), Weighted(), [data()])
        kind(network(), Weighted().requires_grad_(False), [data()])


# ---- how examples are weighed

WEIGHTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "class weights": nn.CrossEntropyLoss(torch.tensor([1.0, 9.0]).double()),
    "ignored class": nn.CrossEntropyLoss(ignore_index=1),
    "sum over a fixed size": lambda o, y: F.cross_entropy(o, y, reduction="sum") / 8,
    "root of the mean": lambda o, y: F.cross_entropy(o, y).sqrt(),
    "hardest": lambda o, y: F.cross_entropy(o, y, reduction="none").topk(max(1, len(y) // 2)).values.mean(),
    "between examples": lambda o, y: F.cross_entropy(o @ o.T, torch.arange(len(o))),
    "centred": lambda o, y: F.cross_entropy(o - o.mean(0), y),
}


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("head", ["random", "zero"])
def test_a_loss_that_weighs_or_mixes_examples_is_refused(name: str, head: str) -> None:
    """Also where all examples have one loss, as at a last layer of zeros."""
    model = network()
    if head == "zero":
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
    with pytest.raises(ValueError, match=r"expected a mean per example|of batch 0 is nan"):
        hessian(model, lambda model, batch: WEIGHTED[name](model(batch[0]), batch[1]), [data()])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_only_show_between_batches_are_found(kind: Callable[..., Any]) -> None:
    """Each batch holds one class: within it all weights are equal."""
    inputs, targets = data()
    batches = [(inputs[targets == c], targets[targets == c]) for c in (0, 1)]
    weighted = nn.CrossEntropyLoss(torch.tensor([1.0, 9.0]).double())
    with pytest.raises(ValueError, match=r"loss is .* on 6 rows up to batch 1, .* expected a mean per example"):
        kind(network(), lambda model, batch: weighted(model(batch[0]), batch[1]), batches)


@pytest.mark.parametrize("sizes", [(1, 11), (1, 1), (11, 1), (1,)])
def test_a_sum_is_found_also_in_batches_of_one_example(sizes: tuple[int, ...]) -> None:
    inputs, targets = (part[: sum(sizes)] for part in data())
    batches = list(zip(inputs.split(sizes), targets.split(sizes), strict=True))
    with pytest.raises(ValueError, match=r"loss is .* on \d+ rows up to batch 0, .* expected a mean per example"):
        hessian(network(), lambda m, batch: F.cross_entropy(m(batch[0]), batch[1], reduction="sum"), batches)


def test_an_ignored_example_is_found_in_whichever_batch_it_is() -> None:
    inputs, targets = data()
    targets[9] = -100
    batches = list(zip(inputs.split(4), targets.split(4), strict=True))
    with pytest.raises(ValueError, match=r"up to batch 2, .* expected a mean per example"):
        hessian(network(), batch_cross_entropy, batches)
    assert hessian(network(), batch_cross_entropy, batches[:2]).shape == (26, 26)


def test_weights_given_with_the_examples_are_a_mean_per_example() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (F.cross_entropy(model(batch[0]), batch[1], reduction="none") * batch[2]).mean()

    inputs, targets = data()
    weights = torch.linspace(0, 2, 12, dtype=torch.float64)
    batches = [list(parts) for parts in zip(inputs.split(5), targets.split(5), weights.split(5), strict=True)]
    expected = differenced_hessian(network(), loss, (inputs, targets, weights))
    np.testing.assert_allclose(dense_matrix(hessian(network(), loss, batches)), expected, atol=1e-8)


def test_a_saturated_network_is_not_taken_for_one_with_weights() -> None:
    """In float32 its losses are a few units of rounding, which no mean of halves gives back."""
    model, (inputs, _) = network().float(), data(800)
    with torch.no_grad():
        model[2].weight *= 90
        logits = model(inputs.float())
    clear = (logits[:, 0] - logits[:, 1]).abs() > 12
    batch = inputs.float()[clear], logits.argmax(1)[clear]
    assert clear.sum() > 20
    assert batch_cross_entropy(model, batch) < 1e-5
    operator = hessian(model, batch_cross_entropy, [batch])
    assert np.isfinite(operator @ np.ones(26)).all()


# ---- what a batch may be

Pair = namedtuple("Pair", ["inputs", "targets"])
inputs, targets = data()
BATCHES: dict[str, tuple[Any, Callable[[Any], tuple[Tensor, Tensor]]]] = {
    "dict": ({"pixels": inputs, "classes": targets}, lambda b: (b["pixels"], b["classes"])),
    "list": ([inputs, targets], lambda b: (b[0], b[1])),
    "three": ([inputs, torch.ones(12), targets], lambda b: (b[0], b[2])),
    "named": (Pair(inputs, targets), lambda b: (b.inputs, b.targets)),
    "nested": (({"pixels": inputs}, [targets]), lambda b: (b[0]["pixels"], b[1][0])),
    "alone": ((torch.cat([inputs, targets[:, None]], 1),), lambda b: (b[0][:, :3], b[0][:, 3].long())),
}


@pytest.mark.parametrize("name", BATCHES)
def test_tensors_may_be_in_tuples_lists_and_dicts(name: str) -> None:
    batch, parts = BATCHES[name]
    expected = dense_matrix(hessian(network(), batch_cross_entropy, [data()]))
    found = hessian(network(), lambda model, batch: batch_cross_entropy(model, parts(batch)), [batch])
    np.testing.assert_array_equal(dense_matrix(found), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([(inputs.numpy(), targets.numpy())], "batch 0 holds a ndarray: expected tensors, as torch.as_tensor gives"),
        ([(inputs, ["a"] * 12)], "batch 0 holds a str: expected tensors"),
        ([(inputs, None)], "batch 0 holds a NoneType: expected tensors"),
        ([inputs], "batch 0 is a Tensor: expected a tuple, list or dict of tensors"),
        ((inputs, targets), "batch 0 is a Tensor: expected a tuple, list or dict of tensors"),
        (inputs, "batches is a Tensor: expected a list of batches, or a loader"),
        ({"pixels": inputs}, "batches is a dict: expected a list of batches, or a loader"),
        (MiniBatches((inputs, targets), 4, 0), "batches is a MiniBatches: expected a list of batches, or a loader"),
        ((pair for pair in [(inputs, targets)]), "batches is a generator, spent after one pass"),
        ([(inputs, torch.zeros(2, 30), targets)], r"tensors of \[12, 2, 12\] rows: expected one row an example"),
        ([(inputs, torch.tensor(1.0))], r"batch 0 has tensors of \[12, 0\] rows"),
        ([(inputs[:0], targets[:0])], r"batch 0 has tensors of \[0, 0\] rows: .* at least one"),
        ([(inputs, targets), [inputs[:1]]], "fails: ValueError: not enough values to unpack"),
        (DataLoader(TensorDataset(inputs, targets), 4, sampler=SubsetRandomSampler(range(12))), "batch 0 differs"),
    ],
)
def test_other_batches_are_refused_by_name(kind: Callable[..., Any], batches: Any, message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=message):
        kind(network(), batch_cross_entropy, batches)


def test_batches_of_several_lengths_are_taken_and_one_that_changes_later_is_refused() -> None:
    class Growing:
        size = 12

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield tuple(part[: self.size] for part in data())

    batches = Growing()
    operator = hessian(network(), batch_cross_entropy, batches)
    assert np.isfinite(operator @ np.ones(26)).all()
    batches.size = 7
    with pytest.raises(ValueError, match="batches held 12 examples and now 7: expected the same each time"):
        operator @ np.ones(26)


def test_a_loader_whose_workers_stay_is_read_twice_as_any_other() -> None:
    loader = DataLoader(TensorDataset(*data()), 5, num_workers=1, persistent_workers=True)
    expected = dense_matrix(hessian(network(), batch_cross_entropy, [data()]))
    np.testing.assert_allclose(dense_matrix(hessian(network(), batch_cross_entropy, loader)), expected, atol=1e-14)


# ---- what is not a loss of a model and a batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(), r"loss\(model, batch\) fails: TypeError: .* such as lambda model, batch"),
        (lambda outputs, targets: (outputs - targets).square().mean(), r"fails: TypeError: .* a function of both"),
        (lambda batch: batch[0].mean(), "fails: TypeError: .* takes 1 positional argument but 2 were given"),
        (lambda model, batch: model.accuracy(batch), "fails: AttributeError: .*accuracy"),
        (
            lambda model, batch: batch_cross_entropy(model, batch).item(),
            "loss returned float: expected a scalar tensor",
        ),
        (lambda model, batch: batch_cross_entropy(model, batch)[None], r"loss returned shape \(1,\)"),
        (lambda model, batch: batch_cross_entropy(model, batch).log().log(), "loss of batch 0 is nan"),
        (lambda model, batch: batch_cross_entropy(model, batch).detach(), "loss has no gradient in the outputs"),
    ],
)
def test_what_is_no_loss_is_refused(kind: Callable[..., Any], loss: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(network(), loss, [data()])


def test_an_accuracy_beside_a_penalty_has_no_hessian() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]).argmax(1) != batch[1]).double().mean() + decay(model)

    with pytest.raises(ValueError, match="loss has no gradient in the outputs, as an accuracy has none"):
        hessian(network(), loss, [data()])


PIECEWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "smooth l1 without smoothness": lambda o, y: F.smooth_l1_loss(o, y, beta=0.0),
    "quantile": lambda o, y: torch.maximum(0.3 * (o - y), -0.7 * (o - y)).mean(),
    "hinge": lambda o, y: (1 - o * y.sign()).clamp(min=0).mean(),
    "largest": lambda o, y: (o - y).abs().amax(1).mean(),
}


@pytest.mark.parametrize("name", PIECEWISE)
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_piecewise_linear_losses_are_refused_also_beside_a_penalty(name: str, penalty: float) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return PIECEWISE[name](model(batch[0]), batch[1]) + penalty * decay(model)

    with pytest.raises(ValueError, match="loss is piecewise linear in the outputs: it has no second derivative"):
        hessian(network(), loss, [data_pairs()])


SMOOTH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squares": F.mse_loss,
    "Huber": lambda o, y: F.huber_loss(o, y, delta=0.3),
    "log cosh": lambda o, y: (o - y).cosh().log().mean(),
    "Gauss": lambda o, y: F.gaussian_nll_loss(o[:, 0], y[:, 0], o[:, 1].exp()),
    "Poisson": lambda o, y: F.poisson_nll_loss(o, y.abs()),
    "logistic": lambda o, y: F.binary_cross_entropy_with_logits(o, y.sigmoid()),
    "soft labels": lambda o, y: F.cross_entropy(o, y.softmax(1)),
    "smoothed labels": lambda o, y: F.cross_entropy(o, y.argmax(1), label_smoothing=0.1),
    "cosine": lambda o, y: 1 - F.cosine_similarity(o, y).mean(),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_losses_have_the_hessian_of_differences(name: str) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return SMOOTH[name](model(batch[0]), batch[1])

    found = dense_matrix(hessian(network(), loss, [data_pairs()]))
    np.testing.assert_allclose(found, differenced_hessian(network(), loss, data_pairs()), atol=1e-7)


def test_a_loss_of_gradients_has_a_hessian() -> None:
    """A penalty on the slope by the inputs, whether the loss or the batch asks for it."""

    def slope(outputs: Tensor, inputs: Tensor) -> Tensor:
        return torch.autograd.grad(outputs.sum(), inputs, create_graph=True)[0].square().sum(1).mean()

    def own(model: nn.Module, batch: Any) -> Tensor:
        inputs = batch[0].clone().requires_grad_()
        return F.cross_entropy(outputs := model(inputs), batch[1]) + slope(outputs, inputs)

    def given(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(outputs := model(batch[0]), batch[1]) + slope(outputs, batch[0])

    inputs, targets = data()
    found = dense_matrix(hessian(network(), own, [(inputs, targets)]))
    np.testing.assert_allclose(found, differenced_hessian(network(), own, (inputs, targets)), atol=1e-7)
    leaf = inputs.clone().requires_grad_()
    np.testing.assert_allclose(dense_matrix(hessian(network(), given, [(leaf, targets)])), found, atol=1e-12)
    with pytest.raises(
        ValueError, match=r"loss\(model, batch\) fails: RuntimeError: .* not have been used in the graph"
    ):
        gauss_newton(network(), own, [(inputs, targets)])


def test_gauss_newton_needs_one_call_that_gives_one_tensor() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(inputs), inputs

    def first(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0])[0], batch[1])

    expected = dense_matrix(hessian(network(), batch_cross_entropy, [data()]))
    np.testing.assert_array_equal(dense_matrix(hessian(Two(), first, [data()])), expected)
    with pytest.raises(ValueError, match="the model returned tuple: expected one tensor of real numbers, or hessian"):
        gauss_newton(Two(), first, [data()])
    with pytest.raises(ValueError, match="loss calls the model 2 times: expected"):
        gauss_newton(network(), lambda m, batch: F.cross_entropy(m(batch[0]) - m(-batch[0]), batch[1]), [data()])
    with pytest.raises(ValueError, match="loss calls the model 0 times: expected"):
        gauss_newton(network(), lambda m, batch: F.cross_entropy(m[2](m[1](m[0](batch[0]))), batch[1]), [data()])
    with pytest.raises(ValueError, match=r"the model returned torch.complex128: expected one tensor of real numbers"):
        gauss_newton(Spectrum(), lambda m, batch: m(batch[0]).abs().square().mean(), [data()])


class Spectrum(nn.Module):
    """A Fourier transform of what a layer gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 4).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.fft.rfft(self.layer(inputs).tanh())


def test_complex_numbers_within_are_differentiated_and_complex_weights_and_vectors_refused() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]).abs().square().sum(1)).mean()

    operator = hessian(Spectrum(), loss, [data()])
    np.testing.assert_allclose(dense_matrix(operator), differenced_hessian(Spectrum(), loss, data()), atol=1e-7)
    for vector in (np.ones(16) * 1j, np.ones((16, 2), complex)):
        with pytest.raises(
            ValueError, match="complex128: expected real numbers, the real and the imaginary part apart"
        ):
            operator @ vector
    complex_layer = nn.Linear(3, 2, dtype=torch.complex128)
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"parameter 'weight' is torch.complex128: expected float32 or float64"):
            kind(complex_layer, lambda m, batch: m(batch[0].cdouble()).abs().mean(), [data()])
