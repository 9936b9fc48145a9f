"""Small networks drawn at random from layers that people use: each function of the library agrees with plain torch.

A run draws `RANDOM_NETWORKS` networks for each property, 20 unless the environment says otherwise, always the same:

    RANDOM_NETWORKS=2000 python -m pytest tests/house/test_random_networks.py
"""

import copy
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations

from descent.curvature import gauss_newton, hessian
from descent.landscape import Evaluator, direction_between, network_at, random_direction
from descent.training import CapturePlan, GradientRecorder, batch_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")
drawn = settings(
    max_examples=int(os.environ.get("RANDOM_NETWORKS", "20")),
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
ROWS, CLASSES, WORDS = 8, 3, 5
SMOOTH = [nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Sigmoid, nn.Mish]
KINKED = [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.ELU]
Shape = tuple[int, ...]
Draw = Callable[..., Any]
Step = tuple[nn.Module, Shape]


class Residual(nn.Module):
    """What a module gives, added to its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.inner(inputs)


class Twice(Residual):
    """One module after itself."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(self.inner(inputs))


class OverTime(Residual):
    """A recurrent layer or a layer of attention along the last dimension of `(b, c, t)`."""

    def forward(self, inputs: Tensor) -> Tensor:
        series = inputs.mT
        outputs = self.inner(series) if isinstance(self.inner, nn.TransformerEncoderLayer) else self.inner(series)[0]
        return outputs.mT


class Transposed(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mT


class Mean(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(2).mean(2)


class Network(NamedTuple):
    """A network in evaluation mode, inputs `(8, ...)`, and classes."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        return self.inputs, self.targets

    def has(self, *kinds: type[nn.Module]) -> bool:
        return any(isinstance(module, kinds) for module in self.model.modules())

    def double(self) -> "Network":
        inputs = self.inputs.double() if self.inputs.is_floating_point() else self.inputs
        return Network(copy.deepcopy(self.model).double(), inputs, self.targets)


def activation(draw: Draw, shape: Shape, smooth: bool) -> Step:
    return draw(st.sampled_from(SMOOTH if smooth else [*SMOOTH, *KINKED]))(), shape


def linear_or_convolution(draw: Draw, shape: Shape, smooth: bool) -> Step:
    out = draw(st.integers(2, 4))
    return layer(shape, out), (out, *shape[1:])


def layer(shape: Shape, out: int) -> nn.Module:
    if len(shape) == 1:
        return nn.Linear(shape[0], out)
    return (nn.Conv1d if len(shape) == 2 else nn.Conv2d)(shape[0], out, 3, padding=1)


def norm(draw: Draw, shape: Shape, smooth: bool) -> Step:
    width = shape[0]
    batch_norm = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d][len(shape) - 1]
    choices = [batch_norm(width), nn.GroupNorm(1, width)]
    if len(shape) > 1 and max(shape[1:]) > 1:  # of one value there is no norm
        choices.append(nn.GroupNorm(width, width))
    if len(shape) == 1:
        choices = [batch_norm(width), nn.LayerNorm(width), nn.RMSNorm(width)]
    elif shape[-1] > 1:
        choices.append((nn.InstanceNorm1d if len(shape) == 2 else nn.InstanceNorm2d)(width, affine=True))
    return draw(st.sampled_from(choices)), shape


def pool(draw: Draw, shape: Shape, smooth: bool) -> Step:
    if len(shape) == 1 or min(shape[1:]) < 2:
        return nn.Identity(), shape
    names = ["AvgPool"] if smooth else ["AvgPool", "MaxPool"]
    kind = getattr(nn, draw(st.sampled_from(names)) + f"{len(shape) - 1}d")
    return kind(2), (shape[0], *(side // 2 for side in shape[1:]))


def parametrised(draw: Draw, shape: Shape, smooth: bool) -> Step:
    plain, after = linear_or_convolution(draw, shape, smooth)
    names = ["spectral_norm", "weight_norm"] + ["orthogonal"] * (len(shape) == 1)
    return getattr(parametrizations, draw(st.sampled_from(names)))(plain), after


def tied(draw: Draw, shape: Shape, smooth: bool) -> Step:
    first, second = layer(shape, shape[0]), layer(shape, shape[0])
    second.weight = first.weight
    return nn.Sequential(first, activation(draw, shape, smooth)[0], second), shape


def over_time(draw: Draw, shape: Shape, smooth: bool) -> Step:
    if len(shape) != 2:
        return dropout(draw, shape, smooth)
    width = shape[0]
    name = draw(st.sampled_from(["LSTM", "GRU", "both ways", "attention"]))
    if name == "attention":
        inner: nn.Module = nn.TransformerEncoderLayer(width, 1, 3, 0.1, "gelu", batch_first=True)
    else:
        kind = nn.GRU if name == "GRU" else nn.LSTM
        inner = kind(width, 2, batch_first=True, bidirectional=name == "both ways")
    return OverTime(inner), (width if name == "attention" else 4 if name == "both ways" else 2, shape[1])


def dropout(draw: Draw, shape: Shape, smooth: bool) -> Step:
    return nn.Dropout(0.2), shape


def residual(draw: Draw, shape: Shape, smooth: bool) -> Step:
    inner, after = sequence(draw, shape, smooth, [activation, norm, linear_or_convolution])
    back = nn.Identity() if after == shape else layer(after, shape[0])
    return Residual(nn.Sequential(inner, back)), shape


def twice(draw: Draw, shape: Shape, smooth: bool) -> Step:
    kinds = [nn.Sequential(layer(shape, shape[0]), activation(draw, shape, smooth)[0]), norm(draw, shape, smooth)[0]]
    return Twice(draw(st.sampled_from(kinds))), shape


RULES = [linear_or_convolution, activation, norm, pool, parametrised, tied, over_time, dropout, residual, twice]


def sequence(draw: Draw, shape: Shape, smooth: bool, rules: list[Callable[..., Step]]) -> Step:
    steps = []
    for rule in draw(st.lists(st.sampled_from(rules), min_size=1, max_size=3)):
        step, shape = rule(draw, shape, smooth)
        steps.append(step)
    return nn.Sequential(*steps), shape


@st.composite
def networks(draw: Draw, smooth: bool = False) -> Network:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    start: Shape = draw(st.sampled_from([(3,), (2, 4), (2, 4, 4), ()]))
    inputs = torch.randn(ROWS, *start) if start else torch.randint(WORDS, (ROWS, 4))
    first = [] if start else [nn.Embedding(WORDS, 3, padding_idx=draw(st.sampled_from([None, 0]))), Transposed()]
    body, shape = sequence(draw, start or (3, 4), smooth, RULES)
    classes, last = CLASSES, [Mean()] if len(shape) > 1 else []
    head = nn.Linear(shape[0], classes)
    if not start and shape[0] == 3 and first[0].padding_idx is None and draw(st.booleans()):
        head, classes = nn.Linear(3, WORDS), WORDS
        head.weight = first[0].weight
    model = nn.Sequential(*first, body, *last, head)
    with torch.no_grad():
        for _ in range(3):  # batch statistics and power iterations
            model(inputs)
    return Network(model.eval(), inputs, torch.randint(classes, (ROWS,)))


def multiply(kind: Callable[..., Any], network: Network, batches: list[Any] | None = None) -> Any:
    """The operator; None where it is refused, by a sentence that names a layer whose derivatives torch gets wrong."""
    try:
        return kind(network.model, batch_cross_entropy, batches or [network.batch])
    except ValueError as error:
        refusal = str(error)
    assert "second derivative by parameter '" in refusal, refusal
    assert "is not that of the loss" in refusal
    assert any(name.endswith("original1") for name, _ in network.model.named_parameters()), refusal  # weight_norm
    return None


# ---- surfaces


def plane(network: Network, seed: int, everything: bool) -> list[dict[str, Tensor]]:
    """Two directions: over the weights of more than one dimension, or over all parameters, each once."""
    if not everything:
        return [random_direction(network.model, seed, stream) for stream in ("alpha", "beta")]
    generator = torch.Generator().manual_seed(seed)
    named = dict(network.model.named_parameters())
    return [{n: 0.3 * torch.randn(p.shape, generator=generator) for n, p in named.items()} for _ in range(2)]


def plainly_moved(network: Network, directions: list[dict[str, Tensor]], point: tuple[float, float]) -> nn.Module:
    moved = copy.deepcopy(network.model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            for coordinate, direction in zip(point, directions, strict=True):
                if name in direction:
                    parameter += coordinate * direction[name]
    return moved


POINTS = [(0.0, 0.0), (0.5, -0.25)]


@drawn
@given(networks(), st.integers(0, 100), st.booleans())
def test_an_evaluator_gives_the_loss_of_the_network(network: Network, seed: int, everything: bool) -> None:
    directions = plane(network, seed, everything)
    found = Evaluator(network.model, *network.batch, directions, precision="float32", batch=5)(POINTS)
    for number, point in enumerate(POINTS):
        with torch.no_grad():
            outputs = plainly_moved(network, directions, point)(network.inputs)
        assert found["loss"][number] == pytest.approx(
            cross_entropy(outputs, network.targets).item(), rel=2e-4, abs=2e-5
        )
        wrong = (outputs.argmax(1) != network.targets).double().mean().item()
        top = outputs.topk(2).values
        if (top[:, 0] - top[:, 1]).min() > 1e-3:
            assert found["error"][number] == wrong


@drawn
@given(networks(), st.integers(0, 100), st.booleans())
def test_a_network_at_a_point_has_the_weights_of_plain_arithmetic(
    network: Network, seed: int, everything: bool
) -> None:
    directions = plane(network, seed, everything)
    before = copy.deepcopy(network.model.state_dict())
    found = network_at(network.model, directions, POINTS[1])
    expected = plainly_moved(network, directions, POINTS[1]).state_dict()
    for name, part in found.state_dict().items():
        torch.testing.assert_close(part, expected[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(network.model.state_dict()[name], before[name])


@drawn
@given(networks(), st.integers(0, 100))
def test_half_way_between_two_networks_lie_their_means(network: Network, seed: int) -> None:
    other = plainly_moved(network, plane(network, seed, True), (1.0, 0.0))
    middle = network_at(network.model, [direction_between(network.model, other)], [0.5]).state_dict()
    for name, part in network.model.state_dict().items():
        mean = (part + other.state_dict()[name]) / 2 if part.is_floating_point() else part
        torch.testing.assert_close(middle[name], mean, rtol=1e-5, atol=1e-6)


# ---- curvature


def plain_gradient(network: Network, along: Tensor | None = None, step: float = 0.0) -> Tensor:
    """The gradient by `backward` at weights + step x along, flat."""
    model = copy.deepcopy(network.model)
    weights = list(model.parameters())
    if along is not None:
        with torch.no_grad():
            for weight, part in zip(weights, along.split([w.numel() for w in weights]), strict=True):
                weight += step * part.view_as(weight)
    batch_cross_entropy(model, network.batch).backward()
    return torch.cat([torch.zeros(w.numel()).to(w) if w.grad is None else w.grad.flatten() for w in weights])


def held_fast(network: Network) -> Tensor:
    """Numbers that the forward pass uses and no gradient moves: the row of a padding token, signs of a rotation."""
    free = [torch.ones_like(p) for p in network.model.parameters()]
    names = [name for name, _ in network.model.named_parameters()]
    for name, module in network.model.named_modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            free[names.index(f"{name}.weight")][module.padding_idx] = 0
    for number, name in enumerate(names):
        if name.endswith("parametrizations.weight.original") and "orthogonal" in str(type_of(network.model, name)):
            free[number].diagonal().zero_()
    return torch.cat([part.flatten() for part in free])


def type_of(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])[0]


@drawn
@given(networks(smooth=True), st.integers(0, 100))
def test_products_are_symmetric_and_those_of_differences(network: Network, seed: int) -> None:
    exact = network.double()
    size = sum(p.numel() for p in exact.model.parameters())
    u, w = torch.randn(2, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    operator = multiply(hessian, exact)
    if operator is None:
        return
    hu, hw = operator @ u.numpy(), operator @ w.numpy()
    assert u.numpy() @ hw == pytest.approx(w.numpy() @ hu, rel=1e-8, abs=1e-9 * np.linalg.norm(hu) * size**0.5)
    along = u * held_fast(exact)
    ends = [plain_gradient(exact, along, step) for step in (1e-5, -1e-5)]
    difference = ((ends[0] - ends[1]) / 2e-5).numpy()
    expected = operator @ along.numpy()
    scale = np.linalg.norm(expected) + 1e-3 * float(ends[0].norm())
    if "Orthogonal" in str(exact.model) and float((ends[0] - ends[1]).norm()) > 0.01 * float(ends[0].norm()):
        return  # its reflections change sign at this very point, so that no difference is a derivative
    assert np.linalg.norm(difference - expected) < 1e-4 * scale


@drawn
@given(networks(), st.integers(0, 100))
def test_products_are_symmetric_in_float32_and_by_kinks(network: Network, seed: int) -> None:
    size = sum(p.numel() for p in network.model.parameters())
    u, w = np.random.default_rng(seed).standard_normal((2, size))
    for kind in (hessian, gauss_newton):
        operator = multiply(kind, network)
        if operator is None:
            continue
        hu, hw = operator @ u, operator @ w
        scale = np.linalg.norm(u) * np.linalg.norm(hw) + np.linalg.norm(w) * np.linalg.norm(hu)
        assert abs(u @ hw - w @ hu) < 1e-4 * scale
        if kind is gauss_newton:
            assert u @ hu > -1e-5 * np.linalg.norm(u) * np.linalg.norm(hu)


@drawn
@given(networks(), st.integers(1, ROWS - 1))
def test_batches_do_not_change_products(network: Network, cut: int) -> None:
    exact = network.double()
    vector = np.random.default_rng(cut).standard_normal(sum(p.numel() for p in exact.model.parameters()))
    parts = list(zip(exact.inputs.split([cut, ROWS - cut]), exact.targets.split([cut, ROWS - cut]), strict=True))
    operators = [multiply(gauss_newton, exact, batches) for batches in ([exact.batch], parts)]
    if None in operators:
        return
    whole, divided = (operator @ vector for operator in operators)
    np.testing.assert_allclose(divided, whole, atol=1e-9 * (1 + np.abs(whole).max()))


# ---- training


@drawn
@given(networks(), st.booleans(), st.sampled_from([1, 2]))
def test_rows_are_the_gradients_that_a_plain_loop_sees(network: Network, momentum: bool, accumulate: int) -> None:
    def train(model: nn.Module, seen: list[np.ndarray] | None) -> np.ndarray:
        torch.manual_seed(0)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9 if momentum else 0.0)
        with GradientRecorder(model, optimizer, CapturePlan(range(3))) as recorder:
            for _ in range(3):
                optimizer.zero_grad()
                for _ in range(accumulate):
                    batch_cross_entropy(model, network.batch).backward()
                if seen is not None:
                    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
                    seen.append(torch.cat([part.flatten() for part in parts]).numpy().copy())
                optimizer.step()
            return np.array(recorder.stack().rows)

    plain: list[np.ndarray] = []
    rows = train(copy.deepcopy(network.model), plain)
    np.testing.assert_array_equal(rows, np.stack(plain))
    np.testing.assert_array_equal(train(copy.deepcopy(network.model), None), rows)
