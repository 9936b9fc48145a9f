"""A rewritten network is compared with the untouched one: the loss is that of the user's own network."""

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from networks_of_others import Network, convolutional, flat, head, moved, plain_loss
from small_networks import CLASSES, examples, settle
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from descent.landscape.directions import Direction, random_direction
from descent.landscape.evaluator import Evaluator
from descent.models.folding import Folded, copy_module, fold_batch_norm

POINTS = ([0.0, 0.0], [0.4, -0.3])
B, C = nn.BatchNorm2d, nn.Conv2d


def plane(model: nn.Module) -> list[Direction]:
    return [random_direction(model, 0, name) for name in ("alpha", "beta")]


def tie(kind: str) -> nn.Module:
    """Two convolutions with one weight, each normalised by itself."""
    one, other = C(3, 3, 1), C(3, 3, 1)
    if kind == "parameter":
        other.weight = one.weight
    else:
        other.weight.data = one.weight.data
    return nn.Sequential(one, B(3), nn.ReLU(), other, B(3), head(3))


def lazy() -> nn.Module:
    model = nn.Sequential(nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES))
    model(examples()[0])
    return model


def dense_block() -> nn.Module:
    def forward(net: Network, x: Tensor) -> Tensor:
        grown = torch.cat([x, net.c1(F.relu(net.n1(x)))], 1)
        return net.h(torch.cat([grown, net.c2(F.relu(net.n2(grown)))], 1))

    return Network(forward, n1=B(3), c1=C(3, 4, 3, padding=1), n2=B(7), c2=C(7, 4, 3, padding=1), h=head(11))


def preactivation() -> nn.Module:
    def forward(net: Network, x: Tensor) -> Tensor:
        return net.h(x + net.c2(F.relu(net.n2(net.c1(F.relu(net.n1(x)))))))

    return Network(forward, n1=B(3), c1=C(3, 6, 3, padding=1), n2=B(6), c2=C(6, 3, 3, padding=1), h=head(3))


def graph() -> nn.Module:
    model = Network(lambda net, x: net.l((net.ties @ x.flatten(1).T).T), l=nn.Linear(192, CLASSES))
    model.register_buffer("ties", torch.eye(192).to_sparse())
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "normalisation after the ReLU": lambda: Network(
        lambda net, x: net.h(net.n1(F.relu(net.c1(x)))), c1=C(3, 6, 3), n1=B(6), h=head(6)
    ),
    "normalisation after pooling": lambda: Network(
        lambda net, x: net.h(net.n1(F.max_pool2d(net.c1(x), 2))), c1=C(3, 6, 3), n1=B(6), h=head(6)
    ),
    "one convolution twice": lambda: Network(
        lambda net, x: net.h(net.n2(net.c1(net.n1(net.c1(x))))), c1=C(3, 3, 3), n1=B(3), n2=B(3), h=head(3)
    ),
    "one convolution, normalised on one path": lambda: Network(
        lambda net, x: net.h(net.n1(net.c1(x)) + net.c1(x.flip(3))), c1=C(3, 3, 3), n1=B(3), h=head(3)
    ),
    "one normalisation after both": lambda: Network(
        lambda net, x: net.h(net.n(net.c2(net.n(net.c1(x))))), c1=C(3, 3, 3), c2=C(3, 3, 3), n=B(3), h=head(3)
    ),
    "declared in another order": lambda: Network(
        lambda net, x: net.h(net.n2(net.c2(F.relu(net.n1(net.c1(x)))))),
        n2=B(5),
        c2=C(6, 5, 3),
        n1=B(6),
        c1=C(3, 6, 3),
        h=head(5),
    ),
    "an output read twice": lambda: Network(
        lambda net, x: net.h(torch.cat([net.c1(x), net.n1(net.c1(x))], 1)), c1=C(3, 3, 3), n1=B(3), h=head(6)
    ),
    "pre-activation": preactivation,
    "a dense block": dense_block,
    "perceptron": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)
    ),
    "transposed": lambda: convolutional(nn.ConvTranspose2d(3, 6, 3)),
    "grouped": lambda: convolutional(C(3, 6, 3, groups=3)),
    "sequence": lambda: nn.Sequential(
        nn.Flatten(2), nn.Conv1d(3, 6, 5), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(360, CLASSES)
    ),
    "weight norm": lambda: convolutional(parametrizations.weight_norm(C(3, 6, 3))),
    "spectral norm": lambda: convolutional(parametrizations.spectral_norm(C(3, 6, 3)).eval()),
    "spectral norm by a hook": lambda: convolutional(nn.utils.spectral_norm(C(3, 6, 3))),
    "orthogonal": lambda: convolutional(parametrizations.orthogonal(C(3, 6, 3))),
    "pruned": lambda: convolutional(prune.l1_unstructured(C(3, 6, 3), "weight", 0.5)),
    "lazy, built": lazy,
    "without affine parameters": lambda: nn.Sequential(C(3, 6, 3), B(6, affine=False), head(6)),
    "other normalisations": lambda: nn.Sequential(
        C(3, 6, 3), nn.InstanceNorm2d(6, affine=True), C(6, 6, 3), nn.GroupNorm(2, 6), nn.LeakyReLU(), head(6)
    ),
    "a view": lambda: Network(
        lambda net, x: net.l(F.relu(net.n(net.c(x))).view(-1, 216)), c=C(3, 6, 3), n=B(6), l=nn.Linear(216, CLASSES)
    ),
    "branches on values": lambda: Network(
        lambda net, x: net.h(net.n(net.c(x)) if x.abs().sum() > 0 else x), c=C(3, 3, 3), n=B(3), h=head(3)
    ),
    "tied convolutions": lambda: tie("parameter"),
    "convolutions tied by their memory": lambda: tie("memory"),
    "a sparse buffer": graph,
    "compiled": lambda: torch.compile(convolutional(), backend="eager"),
    "in parallel": lambda: nn.DataParallel(convolutional()),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_the_loss_is_the_networks_own(case: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[case]()
    for norm in (layer for layer in settle_any(model).modules() if isinstance(layer, nn.BatchNorm1d | B)):
        if norm.weight is not None:
            norm.weight.data[::2] *= -1  # a negative factor does not commute with maxima
    data, directions = examples(), plane(model)
    found = Evaluator(model, *data, directions, precision="float32", batch=8)(POINTS)["loss"]
    expected = [plain_loss(moved(model, directions, point), data) for point in POINTS]
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert found[0] != found[1]


def settle_any(model: nn.Module) -> nn.Module:
    """As `settle`, for normalisations without affine parameters too."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | B):
            settle(nn.Sequential(norm)) if norm.affine else norm.running_var.fill_(3.0)
    return model.eval()


def test_a_normalisation_after_a_relu_on_paper() -> None:
    """Logits (2 relu(x - 1) + 1, 0), class 0: log(1 + exp(-1)) at 0.5, log(1 + exp(-3)) at 2."""
    model = Network(
        lambda net, x: torch.stack([net.n(F.relu(net.c(x))).flatten(), 0 * x.flatten()], 1),
        c=C(1, 1, 1),
        n=B(1, eps=0.0),
    ).eval()
    with torch.no_grad():
        model.c.weight.fill_(1.0)
        model.c.bias.fill_(-1.0)
        model.n.weight.fill_(2.0)
        model.n.bias.fill_(1.0)
    inputs, targets = torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1), torch.zeros(2, dtype=torch.long)
    task = Evaluator(model, inputs, targets, [{"c.weight": torch.ones(1, 1, 1, 1)}], precision="float32")
    both = np.array([[1.0, 3.0], [1.0, 7.0]])  # with a weight of 2, relu(2 x - 1) is 0 and 3
    np.testing.assert_allclose(task([[0.0], [1.0]])["loss"], np.log1p(np.exp(-both)).mean(1), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_weights_normalised_by_a_hook_are_copied_and_moved() -> None:
    """Such a network cannot be copied by copy.deepcopy: its weight is computed from two parameters in each pass."""
    model, data = convolutional(nn.utils.weight_norm(C(3, 6, 3))), examples()
    assert {"0.weight_g", "0.weight_v"} <= set(random_direction(model, 0, "alpha"))
    with pytest.raises(RuntimeError, match="deepcopy protocol"):
        copy.deepcopy(model)
    found = Evaluator(model, *data, plane(model), precision="float32")(POINTS)["loss"]
    for value, point in zip(found, POINTS, strict=True):
        there = moved(copy_module(model), plane(model), point)
        assert value == pytest.approx(plain_loss(there, data), rel=2e-5)


def test_a_network_that_keeps_its_activations_is_copied() -> None:
    def forward(net: Network, x: Tensor) -> Tensor:
        net.seen = [net.c(x)]
        return net.h(net.seen[0])

    model, data = Network(forward, c=C(3, 6, 3), h=head(6)), examples()
    model(data[0])
    found = Evaluator(model, *data, plane(model), precision="float32")([[0, 0]])["loss"]
    assert found[0] == pytest.approx(plain_loss(model, data), rel=1e-6)


def test_layers_that_are_not_built_are_named() -> None:
    model = nn.Sequential(nn.LazyConv2d(6, 3), head(6))
    with pytest.raises(ValueError, match=r"'0.weight' has no numbers yet: expected a forward pass before"):
        random_direction(model, 0, "alpha")
    with pytest.raises(ValueError, match=r"'0.weight' has no numbers yet"):
        Evaluator(model, *examples(), [{}])


def is_folded(task: Evaluator) -> bool:
    return not any(isinstance(layer, B) for layer in task._form.model.modules())


def test_a_fold_that_changes_the_values_is_dropped_with_a_word() -> None:
    """A hook of all modules makes a ReLU of a convolution's output, which no trace of the forward pass shows."""
    model, data = convolutional(), examples()
    only = model[0].kernel_size
    handle = nn.modules.module.register_module_forward_hook(
        lambda layer, given, output: output.relu() if getattr(layer, "kernel_size", None) == only else None
    )
    try:
        with pytest.warns(UserWarning, match=r"with batch normalisation folded into 0, the values change by 0\.\d+ of"):
            task = Evaluator(model, *data, plane(model), precision="float32")
        assert not is_folded(task)
        for value, point in zip(task(POINTS)["loss"], POINTS, strict=True):
            assert value == pytest.approx(plain_loss(moved(model, plane(model), point), data), rel=2e-5)
    finally:
        handle.remove()


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("way", ["forward hook", "pre-hook", "patched forward"])
def test_a_layer_that_does_more_than_its_kind_is_not_folded(layer: int, way: str) -> None:
    model, data = convolutional(), examples()
    if way == "forward hook":
        model[layer].register_forward_hook(lambda layer, given, output: output.relu())
    elif way == "pre-hook":
        model[layer].register_forward_pre_hook(lambda layer, given: (2 * given[0],))
    else:
        kind = type(model[layer])
        model[layer].forward = partial(lambda own, given: 2 * kind.forward(own, given), model[layer])
    torch.testing.assert_close(fold_batch_norm(model).model(data[0]), model.eval()(data[0]))


def test_a_fold_that_moves_otherwise_is_dropped_though_it_agrees_at_the_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    def unscaled(model: nn.Module) -> Folded:
        folded = fold_batch_norm(model)
        return Folded(folded.model, {name: torch.ones_like(part) for name, part in folded.scales.items()})

    monkeypatch.setattr("descent.landscape.evaluator.fold_batch_norm", unscaled)
    model, data = convolutional(), examples()
    with pytest.warns(UserWarning, match="with batch normalisation folded into 0, the values change by"):
        task = Evaluator(model, *data, plane(model), precision="float32")
    assert task(POINTS)["loss"][1] == pytest.approx(plain_loss(moved(model, plane(model), POINTS[1]), data), rel=2e-5)


@pytest.mark.parametrize(("off", "kept"), [(25, True), (12, False)])
def test_bfloat16_may_change_the_values_by_a_twentieth(off: int, kept: bool) -> None:
    """It takes 257 for 256, which is a change of 1 in `off`."""
    model, inputs = nn.Linear(1, 1, bias=False), torch.full((3, 1), 257.0)
    nn.init.ones_(model.weight)
    settings = {"loss": lambda model, batch: model(batch[0])[:, 0] - (257 - off), "precision": "bfloat16"}
    with (
        nullcontext() if kept else pytest.warns(UserWarning, match=f"the values change by {1 / off:.2g} of the largest")
    ):
        task = Evaluator(model, inputs, inputs, [{"weight": torch.ones(1, 1)}], **settings)
    assert task.precision == ("bfloat16" if kept else "float32")
    assert task([[0.0]])["loss"][0] == off - kept


def penalised(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    size = sum(p.square().sum() for p in model.parameters())
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none") + 0.1 * size


def test_a_loss_that_reads_the_weights_reads_those_of_the_network() -> None:
    model, data = convolutional(), examples()
    with pytest.warns(UserWarning, match="with batch normalisation folded into 0, the values change by"):
        task = Evaluator(model, *data, plane(model), loss=penalised, precision="float32")
    for value, point in zip(task(POINTS)["loss"], POINTS, strict=True):
        assert value == pytest.approx(plain_loss(moved(model, plane(model), point), data, penalised), rel=2e-5)


def test_what_agrees_is_rewritten_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = Evaluator(convolutional(), *examples(), plane(convolutional()), precision="bfloat16")
    assert is_folded(task)
    assert task.precision == "bfloat16"
    weight = task._form.model[0].weight
    assert weight.dtype == torch.bfloat16
    assert weight.is_contiguous(memory_format=torch.channels_last)


def far_off(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Squared errors of a regression whose outputs are near 1000, of which bfloat16 keeps multiples of 4."""
    return (model(batch[0]).flatten() - batch[1]).square()


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_bfloat16_that_changes_the_values_is_dropped_with_a_word(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("descent.repro.machine.has_bfloat16", lambda device: True)
    model, inputs = flat(1), examples()[0]
    model[1].bias.data.fill_(1000.0)
    targets = 1000 + torch.linspace(-1, 1, 20)
    with pytest.warns(UserWarning, match=r"with bfloat16, the values change by .* of the largest, above 0.05; the"):
        task = Evaluator(model, inputs, targets, plane(model), loss=far_off, precision=precision)
    assert task.precision == "float32"
    assert task([[0, 0]])["loss"][0] == pytest.approx(plain_loss(model, (inputs, targets), far_off), rel=1e-5)


def test_logits_far_from_zero_are_not_rounded_to_bfloat16() -> None:
    model, data = flat(), examples()
    model[1].bias.data.fill_(1000.0)  # the same for all classes: their difference is all that counts
    with pytest.warns(UserWarning, match="with bfloat16, the values change by"):
        task = Evaluator(model, *data, plane(model), precision="bfloat16")
    assert task([[0, 0]])["loss"][0] == pytest.approx(plain_loss(model, data), rel=1e-4)


def test_positions_that_bfloat16_cannot_tell_apart_are_kept_apart() -> None:
    model = Network(lambda net, x: net.words(x.long().flatten()), words=nn.Embedding(513, CLASSES))
    places = torch.arange(481.0, 512.0)[:, None]  # of which it knows every second
    targets = torch.arange(31) % CLASSES
    with pytest.warns(UserWarning, match="with bfloat16, the values change by"):
        task = Evaluator(model, places, targets, plane(model), precision="bfloat16")
    assert task([[0, 0]])["loss"][0] == pytest.approx(plain_loss(model, (places, targets)), rel=1e-6)


def test_a_network_that_does_not_run_in_bfloat16_says_so_if_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("descent.repro.machine.has_bfloat16", lambda device: True)
    model = Network(lambda net, x: net.l(x.float().flatten(1) / 255), l=nn.Linear(192, CLASSES))
    pixels, targets = examples()[0].mul(50).add(100).clamp(0, 255).byte(), examples()[1]
    task = Evaluator(model, pixels, targets, plane(model))
    assert task.precision == "float32"
    assert task([[0, 0]])["loss"][0] == pytest.approx(plain_loss(model, (pixels, targets)), rel=1e-6)
    with pytest.warns(UserWarning, match="with bfloat16, the network fails: .*; the network is evaluated without"):
        assert Evaluator(model, pixels, targets, plane(model), precision="bfloat16").precision == "float32"


class Rotary(nn.Module):
    """Turns by a buffer of complex numbers, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, CLASSES)
        self.register_buffer("turn", torch.polar(torch.ones(4), torch.arange(4.0)))

    def forward(self, inputs: Tensor) -> Tensor:
        pairs = torch.view_as_complex(inputs.float().reshape(-1, 4, 2)) * self.turn
        return self.head(torch.view_as_real(pairs).flatten(1).to(self.head.weight.dtype))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_complex_buffers_keep_their_imaginary_part(precision: str) -> None:
    model, data = Rotary(), (torch.randn(20, 8), examples()[1])
    task = Evaluator(model, *data, plane(model), precision=precision)
    assert task([[0, 0]])["loss"][0] == pytest.approx(plain_loss(model, data), rel=1e-2)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_a_network_in_another_format_is_evaluated_at_least_in_float32(kind: torch.dtype) -> None:
    model, (inputs, targets) = convolutional().to(kind), examples()
    task = Evaluator(model, inputs.to(kind), targets, plane(model), precision="float32")
    directions = [{name: part.double() for name, part in direction.items()} for direction in plane(model)]
    for value, point in zip(task(POINTS)["loss"], POINTS, strict=True):
        there = moved(copy.deepcopy(model).double(), directions, point)
        assert value == pytest.approx(plain_loss(there, (inputs.to(kind).double(), targets)), rel=1e-5)


def test_a_network_in_float64_stays_in_it() -> None:
    model, (inputs, targets) = convolutional().double(), examples()
    inputs, directions = inputs.double(), plane(model)
    task = Evaluator(model, inputs, targets, directions)
    assert task.precision == "float64"
    found = task([[0, 0], [1e-6, 0], [-1e-6, 0]])["loss"]
    expected = [plain_loss(moved(model, directions, [step, 0]), (inputs, targets)) for step in (0, 1e-6, -1e-6)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    slope = (found[1] - found[2]) / 2e-6  # which float32 would lose
    weights = {
        name: part.clone().requires_grad_() for name, part in model.state_dict().items() if name in directions[0]
    }
    value = F.cross_entropy(torch.func.functional_call(model, weights, (inputs,)), targets)
    gradients = torch.autograd.grad(value, list(weights.values()))
    exact = sum((g * directions[0][name]).sum() for name, g in zip(weights, gradients, strict=True))
    assert slope == pytest.approx(float(exact), rel=1e-6)
    assert task.in_float32().precision == "float32"


def test_buffers_and_frozen_weights_are_moved_as_any_other() -> None:
    model, data = convolutional().requires_grad_(False).train(), examples()
    directions = [{"1.running_mean": torch.linspace(-1, 1, 6), "3.2.bias": torch.linspace(0, 1, CLASSES)}]
    found = Evaluator(model, *data, directions, precision="float32")([[0.0], [0.7]])["loss"]
    expected = [plain_loss(moved(model, directions, [share]), data) for share in (0.0, 0.7)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_network_without_parameters_is_evaluated() -> None:
    inputs, targets = torch.randn(20, CLASSES, dtype=torch.float64), examples()[1]
    task = Evaluator(nn.Flatten(), inputs, targets, [{}])
    assert task.precision == "float64"
    assert task([[0.0]])["loss"][0] == pytest.approx(F.cross_entropy(inputs, targets).item(), rel=1e-12)
    scaled = nn.Flatten()
    scaled.register_buffer("scale", torch.ones(()))
    model = Network(lambda net, x: x * net.flat.scale, flat=scaled)
    found = Evaluator(model, inputs.float(), targets, [{"flat.scale": torch.ones(())}], precision="float32")(
        [[0.0], [1.0]]
    )
    np.testing.assert_allclose(found["loss"], [F.cross_entropy(k * inputs, targets).item() for k in (1, 2)], rtol=1e-6)


def test_complex_parameters_are_refused_by_name() -> None:
    model = Network(lambda net, x: (x.flatten(1) + 0j) @ net.l.weight.mT, l=nn.Linear(192, CLASSES))
    model.l.weight = nn.Parameter(model.l.weight.to(torch.complex64))
    for call in (lambda: random_direction(model, 0, "alpha"), lambda: Evaluator(model, *examples(), [{}])):
        with pytest.raises(ValueError, match=r"'l.weight' is torch.complex64, whose imaginary part would be lost"):
            call()
