"""What a loss is of: the loss that was given, or cross-entropy of one class an example; all else is refused by name."""

import random
import re
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks_of_others import Batch, Loss, Network, convolutional, flat, head, moved, plain_loss
from small_networks import CLASSES, examples
from torch import Tensor, nn
from torch.nn import functional as F

from descent.landscape.directions import Direction, random_direction
from descent.landscape.evaluator import Evaluator

POINTS = ([0.0], [0.4])
REMEDY = re.compile(r"Expected loss= with loss\(model, \(x, y\)\) = (.*)$")
TOKENS = torch.arange(140).reshape(20, 7) * 5 % 9
Output = namedtuple("Output", ["logits", "hidden"])


def line(model: nn.Module) -> list[Direction]:
    return [random_direction(model, 0, "line")]


def agrees(model: nn.Module, data: Batch, loss: Loss | None = None, **settings: Any) -> Evaluator:
    task = Evaluator(model, *data, line(model), loss=loss, precision="float32", **settings)
    expected = [plain_loss(moved(model, line(model), point), data, loss) for point in POINTS]
    np.testing.assert_allclose(task(POINTS)["loss"], expected, rtol=1e-5)
    return task


def numbers(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, 20 * int(np.prod(shape))).reshape(20, *shape).sin()


def text(classes_last: bool) -> nn.Module:
    layers = {"words": nn.Embedding(9, 5), "head": nn.Linear(5, 9)}
    return Network(lambda net, x: net.head(net.words(x)) if classes_last else net.head(net.words(x)).mT, **layers)


def mask(*shape: int) -> Tensor:
    return torch.arange(20 * int(np.prod(shape))).reshape(20, *shape) ** 2 % CLASSES


IMAGES, CHOSEN = examples()
BINARY = CHOSEN % 2
SHARES = numbers(CLASSES).softmax(1)
LABELS = (numbers(CLASSES) > 0).float()
LABELS[:, 0] = 1
# inputs, network, targets, what is said of them, and the loss of a network's outputs on all examples
Case = tuple[Callable[[], nn.Module], Tensor, Tensor, str, Callable[[Tensor, Tensor], Tensor]]
BCE, CE, MSE = F.binary_cross_entropy_with_logits, F.cross_entropy, F.mse_loss
REFUSED: dict[str, Case] = {
    "mask": (lambda: nn.Conv2d(3, CLASSES, 1), IMAGES, mask(8, 8), "a class at several places, as in a mask", CE),
    "volume": (lambda: nn.Conv3d(1, CLASSES, 1), numbers(1, 2, 3, 4), mask(2, 3, 4), "a class at several places", CE),
    "next token": (lambda: text(True), TOKENS, TOKENS.roll(-1, 1), "as in a mask or a text",
                   lambda out, y: CE(out.mT, y)),
    "next token, classes first": (lambda: text(False), TOKENS, TOKENS.roll(-1, 1), "a class at several places", CE),
    "soft labels": (flat, IMAGES, SHARES, "an example has a share of each class", CE),
    "one-hot": (flat, IMAGES, F.one_hot(CHOSEN), "an example has a share of each class",
                lambda out, y: CE(out, y.argmax(1))),
    "several labels": (flat, IMAGES, LABELS, "each target is one of two values", BCE),
    "one logit": (lambda: flat(1), IMAGES, BINARY, "each target is one of two values",
                  lambda out, y: BCE(out[:, 0], y.float())),
    "one logit, float column": (lambda: flat(1), IMAGES, BINARY[:, None].float(), "one of two values", BCE),
    "one logit, bool": (lambda: flat(1), IMAGES, BINARY.bool(), r"torch.bool: each target is one of two values",
                        lambda out, y: BCE(out[:, 0], y.float())),
    "one logit, squeezed": (lambda: Network(lambda net, x: net.l(x).squeeze(1), l=flat(1)), IMAGES, BINARY,
                            r"outputs of shape \(8,\) and targets", lambda out, y: BCE(out, y.float())),
    "regression": (lambda: flat(1), IMAGES, numbers(), "targets are numbers, as in a regression",
                   lambda out, y: MSE(out[:, 0], y)),
    "regression, column": (lambda: flat(1), IMAGES, numbers(1), "targets are numbers, as in a regression", MSE),
    "regression of four": (flat, IMAGES, numbers(CLASSES), "targets are numbers, as in a regression", MSE),
    "counts": (lambda: flat(1), IMAGES, CHOSEN, "targets are numbers", lambda out, y: MSE(out[:, 0], y.float())),
    "tuple": (lambda: Network(lambda net, x: (net.l(x), x), l=flat()), IMAGES, CHOSEN, "the network returns a tuple",
              lambda out, y: CE(out[0], y)),
    "named tuple": (lambda: Network(lambda net, x: Output(net.l(x), x), l=flat()), IMAGES, CHOSEN,
                    "the network returns a Output", lambda out, y: CE(out.logits, y)),
    "dict": (lambda: Network(lambda net, x: {"logits": net.l(x)}, l=flat()), IMAGES, CHOSEN,
             "the network returns a dict", lambda out, y: CE(out["logits"], y)),
    "probabilities": (lambda: nn.Sequential(flat(), nn.Softmax(1)), IMAGES, CHOSEN, "the network returns probabilities",
                      lambda out, y: F.nll_loss(out.log(), y)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_default_cannot_mean_is_refused_with_a_loss_that_works(case: str) -> None:
    torch.manual_seed(0)
    build, inputs, targets, said, expected = REFUSED[case]
    model = build()
    with pytest.raises(ValueError, match=said) as caught:
        Evaluator(model, inputs, targets, line(model))
    assert "the default loss is the cross-entropy of logits (b, classes) for int64 classes (n,)" in str(caught.value)
    remedy = REMEDY.search(str(caught.value))
    assert remedy is not None, caught.value

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return eval(remedy[1], {"F": F, "model": model, "x": batch[0], "y": batch[1]})

    task = agrees(model, (inputs, targets), loss, batch=8)
    with torch.no_grad():
        assert task([[0.0]])["loss"][0] == pytest.approx(expected(model(inputs), targets).item(), rel=1e-5)


TARGETS: dict[str, tuple[Tensor, str]] = {
    "int32": (CHOSEN.int(), r"targets are torch.int32.*Expected targets.long\(\)"),
    "uint8": (CHOSEN.byte(), r"targets are torch.uint8.*Expected targets.long\(\)"),
    "float": (CHOSEN.float(), r"targets are torch.float32.*Expected targets.long\(\)"),
    "column": (CHOSEN[:, None], r"more than one target.*Expected one class for each, as targets.squeeze\(1\) gives"),
    "two": (mask(2), r"targets of shape \(20, 2\), torch.int64: an example has more than one target"),
    "from one": (CHOSEN + 1, "targets run from 1 to 4.*Expected classes 0 to 3 alone"),
    "ignored": (torch.where(CHOSEN == 0, -100, CHOSEN), "targets run from -100 to 3.*Expected classes 0 to 3 alone"),
    "other data": (CHOSEN * 10, "targets run from 0 to 30.*Expected classes 0 to 3 alone"),
}


@pytest.mark.parametrize("case", TARGETS)
def test_targets_that_are_no_classes_are_named(case: str) -> None:
    targets, said = TARGETS[case]
    with pytest.raises(ValueError, match=said):
        Evaluator(flat(), IMAGES, targets, line(flat()))


def test_targets_are_looked_at_beyond_the_first_batch() -> None:
    targets = CHOSEN.clone()
    targets[-1] = CLASSES
    with pytest.raises(ValueError, match="targets run from 0 to 4"):
        Evaluator(flat(), IMAGES, targets, line(flat()), batch=4)


@pytest.mark.parametrize(("outputs", "said"), [
    (lambda net, x: net.l(x).argmax(1), "the network returns torch.int64.*Expected a network that returns logits"),
    (lambda net, x: net.l(x) + 0j, "the network returns torch.complex64.*Expected a network that returns logits"),
    (lambda net, x: net.l(x)[:, None].expand(-1, 3, -1), r"no row of logits.*Expected a network that returns \(b, cl"),
    (lambda net, x: net.l(x).mean(), r"outputs of shape .*Expected a network that returns logits"),
])  # fmt: skip
def test_outputs_that_are_no_logits_are_named(outputs: Callable[..., Tensor], said: str) -> None:
    model = Network(outputs, l=flat())
    with pytest.raises(ValueError, match=said):
        Evaluator(model, IMAGES, CHOSEN, line(model))


def test_logarithms_of_probabilities_are_logits() -> None:
    model = nn.Sequential(flat(), nn.LogSoftmax(1))
    task = agrees(model, (IMAGES, CHOSEN))
    assert task([[0.0]])["loss"][0] == pytest.approx(F.nll_loss(model(IMAGES), CHOSEN).item(), rel=1e-6)


@pytest.mark.parametrize(("inputs", "targets", "said"), [
    (IMAGES.numpy(), CHOSEN, r"inputs is a ndarray: expected a tensor of n examples, \(n, \.\.\.\)"),
    (list(IMAGES), CHOSEN, "inputs is a list: expected a tensor"),
    ({"pixels": IMAGES}, CHOSEN, "inputs is a dict: expected a tensor"),
    (IMAGES, CHOSEN.tolist(), "targets is a list: expected a tensor"),
    (IMAGES, None, "targets is a NoneType: expected a tensor"),
    (IMAGES[:0], CHOSEN[:0], "0 inputs and 0 targets: expected as many, and at least one"),
])  # fmt: skip
def test_data_of_another_kind_are_named(inputs: Any, targets: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Evaluator(flat(), inputs, targets, line(flat()))


def squares(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0])[:, 0] - batch[1]).square()


def test_a_loss_is_of_the_model_and_of_the_batch_and_a_metric_is_beside_it() -> None:
    seen = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        seen.append((type(model), model.training, tuple(type(part) for part in batch), torch.is_grad_enabled()))
        return squares(model, batch)

    def metric(model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch[0])[:, 0] - batch[1]).abs()

    model, targets = flat(1).train(), numbers()
    task = Evaluator(model, IMAGES, targets, line(model), loss=loss, metric=metric, precision="float32", batch=8)
    found = task(POINTS)
    assert set(found) == {"loss", "standard_error", "metric"}
    assert set(seen) == {(nn.Sequential, False, (Tensor, Tensor), False)}
    for row, point in enumerate(POINTS):
        with torch.no_grad():
            each = (moved(model, line(model), point)(IMAGES)[:, 0] - targets).double()
        assert found["loss"][row] == pytest.approx(each.square().mean().item(), rel=1e-5)
        assert found["metric"][row] == pytest.approx(each.abs().mean().item(), rel=1e-5)
        spread = each.square().std().item() / 20**0.5
        assert found["standard_error"][row] == pytest.approx(spread, rel=1e-5)


def test_a_metric_stands_beside_the_default_loss_too() -> None:
    model = flat()
    found = Evaluator(model, IMAGES, CHOSEN, line(model), metric=lambda m, b: m(b[0]).amax(1), precision="float32")(
        [[0]]
    )
    assert set(found) == {"loss", "standard_error", "error", "metric"}
    assert found["metric"][0] == pytest.approx(model(IMAGES).amax(1).mean().item(), rel=1e-6)
    assert found["error"][0] == (model(IMAGES).argmax(1) != CHOSEN).double().mean().item()


WRONG: dict[str, tuple[Any, str]] = {
    "of outputs and targets": (lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
                               r"loss\(model, \(inputs, targets\)\) fails on some examples.*TypeError"),
    "a layer": (nn.CrossEntropyLoss(reduction="none"), r"loss\(model, \(inputs, targets\)\) fails.*TypeError"),
    "of the batch alone": (lambda batch: batch, r"loss\(model, \(inputs, targets\)\) fails.*TypeError"),
    "a mean": (lambda m, b: F.cross_entropy(m(b[0]), b[1]), r"loss returned shape \(\), torch.float32: expected"),
    "a number": (lambda m, b: 1.5, "loss returned float: expected"),
    "a column": (lambda m, b: m(b[0])[:, :1], r"loss returned shape \(8, 1\), .*, one number per example"),
    "complex": (lambda m, b: m(b[0])[:, 0] + 0j, r"loss returned shape \(8,\), torch.complex64: expected"),
    "every pair": (lambda m, b: (m(b[0])[:, :1] - b[1]).square().mean(1), "changes with the others of its batch"),
    "contrastive": (lambda m, b: (m(b[0]) @ m(b[0]).T).logsumexp(1), "changes with the others of its batch"),
    "a mean, repeated": (lambda m, b: squares(m, b).mean().expand(len(b[1])), "changes with the others of its batch"),
    "sampling": (lambda m, b: m(b[0] + torch.randn_like(b[0]))[:, 0], "draws random numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_loss_of_another_form_is_refused(case: str) -> None:
    loss, said = WRONG[case]
    with pytest.raises(ValueError, match=said):
        Evaluator(flat(), IMAGES, CHOSEN, line(flat()), loss=loss)


def test_a_metric_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metric returned shape \(\), torch.float32: expected \(8,\), one number"):
        Evaluator(flat(), IMAGES, CHOSEN, line(flat()), metric=lambda m, b: m(b[0]).sum())([[0]])


class Depth(nn.Module):
    """Skips its layer at random, seldom, whether it is being trained or not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(192, 192), nn.Linear(192, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        return self.head(flat + self.layer(flat) if torch.rand(()) > 1e-6 else flat)


class Counting(nn.Module):
    """Another answer each time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = flat(), 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(inputs) * self.calls


def attention(net: Network, x: Tensor) -> Tensor:
    words = x.flatten(2).mT
    return net.h(F.scaled_dot_product_attention(words, words, words, dropout_p=0.1).mean(1))


RANDOM: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "functional dropout": (lambda: Network(lambda net, x: F.dropout(net.l(x), 0.5), l=flat()), "draws random numbers"),
    "dropout in attention": (lambda: Network(attention, h=nn.Linear(3, CLASSES)), "draws random numbers"),
    "noise": (lambda: Network(lambda net, x: net.l(x + 1e-6 * torch.randn_like(x)), l=flat()), "draws random numbers"),
    "a layer that is seldom skipped": (Depth, "draws random numbers"),
    "Python's generator": (lambda: Network(lambda net, x: net.l(x) * (1 + random.random()), l=flat()),
                           "gives other values when it is evaluated again"),
    "NumPy's generator": (lambda: Network(lambda net, x: net.l(x) * np.random.rand(), l=flat()),  # noqa: NPY002
                          "gives other values when it is evaluated again"),
    "a state of its own": (Counting, "gives other values when it is evaluated again"),
}  # fmt: skip


@pytest.mark.parametrize("case", RANDOM)
def test_a_random_forward_pass_is_refused(case: str) -> None:
    build, said = RANDOM[case]
    model = build()
    with pytest.raises(ValueError, match=f"the network, or its loss, {said} in evaluation mode, so that no point"):
        Evaluator(model, IMAGES, CHOSEN, line(model))


def test_a_hundredth_more_each_time_is_another_value() -> None:
    calls = []

    def drifting(model: nn.Module, batch: Batch) -> Tensor:
        calls.append(1)
        return torch.full((len(batch[1]),), 1 + 0.01 * len(calls))

    with pytest.raises(ValueError, match="gives other values when it is evaluated again"):
        Evaluator(flat(), IMAGES, CHOSEN, line(flat()), loss=drifting)


def test_layers_that_are_random_in_training_alone_are_not() -> None:
    model = nn.Sequential(nn.Dropout2d(0.3), flat(8), nn.RReLU(), nn.AlphaDropout(0.5), nn.Linear(8, CLASSES)).train()
    state = torch.get_rng_state()
    agrees(model, (IMAGES, CHOSEN))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(layer.training for layer in model.modules())


def test_a_normalisation_over_the_batch_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), head(6))
    said = "the loss of an example changes with the others of its batch, as '1' has no running statistics"
    with pytest.raises(ValueError, match=said):
        Evaluator(model, IMAGES, CHOSEN, line(model))


def test_tokens_a_recurrent_network_and_tied_words() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.cell, self.head = nn.Embedding(9, 6), nn.LSTM(6, 6, 2, batch_first=True), nn.Linear(6, 9)
            self.head.weight = self.words.weight

        def forward(self, inputs: Tensor) -> tuple[Tensor, Any]:
            hidden, state = self.cell(self.words(inputs))
            return self.head(hidden), state

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0])[0].mT, batch[1], reduction="none").mean(1)

    model = Recurrent()
    agrees(model, (TOKENS, TOKENS.roll(-1, 1)), loss, batch=6)
    task = Evaluator(model, TOKENS, TOKENS.roll(-1, 1), line(model), loss=loss, precision="bfloat16")
    assert task.precision == "bfloat16"
    assert task([[0]])["loss"][0] == pytest.approx(plain_loss(model, (TOKENS, TOKENS.roll(-1, 1)), loss), rel=0.01)


def test_what_a_network_returns_in_bfloat16_reaches_a_loss_as_float32() -> None:
    model = Network(lambda net, x: {"logits": net.l(x), "others": [net.l(x), x.long()]}, l=flat())
    seen = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        found = model(batch[0])
        seen.append((batch[0].dtype, found["logits"].dtype, *(part.dtype for part in found["others"])))
        return F.cross_entropy(found["logits"], batch[1], reduction="none")

    task = Evaluator(model, IMAGES, CHOSEN, line(model), loss=loss, precision="bfloat16")
    seen.clear()
    task([[0.0]])
    assert seen == [(torch.bfloat16, torch.float32, torch.float32, torch.int64)]


def test_a_transformer_encoder() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    layers = {"words": nn.Embedding(9, 8), "body": nn.TransformerEncoder(layer, 2), "head": nn.Linear(8, CLASSES)}
    agrees(Network(lambda net, x: net.head(net.body(net.words(x)).mean(1)), **layers), (TOKENS, CHOSEN))


def test_a_loss_may_take_derivatives_of_the_network() -> None:
    """(u' - cos x)^2 of u = w x: the residual of a differential equation."""

    def residual(model: nn.Module, batch: Batch) -> Tensor:
        with torch.enable_grad():
            x = batch[0].requires_grad_()
            (slope,) = torch.autograd.grad(model(x).sum(), x)
        return (slope - x.cos())[:, 0].square()

    x, model = torch.linspace(0, 1, 20)[:, None], nn.Linear(1, 1, bias=False)
    task = Evaluator(model, x, x, [{"weight": torch.ones(1, 1)}], loss=residual, precision="float32")
    found = task([[0.0], [2.0]])["loss"]
    w = model.weight.item()
    expected = [((w + step - x.cos()) ** 2).mean().item() for step in (0.0, 2.0)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_last_batch_of_one_is_as_any_other() -> None:
    agrees(convolutional(), (IMAGES[:9], CHOSEN[:9]), batch=4)
    agrees(flat(1), (IMAGES[:9], numbers()[:9]), squares, batch=4)
    squeezed = Network(lambda net, x: net.l(x).squeeze(), l=flat())
    agrees(squeezed, (IMAGES[:8], CHOSEN[:8]), batch=4)
    task = Evaluator(squeezed, IMAGES[:9], CHOSEN[:9], line(squeezed), batch=4)
    with pytest.raises(ValueError, match=r"returned shape \(4,\) for a batch of 1: expected \(1, classes\), or"):
        task([[0.0]])


def test_logits_that_are_not_numbers_make_no_number() -> None:
    model, holes = flat(), IMAGES.clone()
    holes[3] = torch.nan
    found = Evaluator(model, holes, CHOSEN, line(model), precision="float32")([[0.0]])
    assert np.isnan(found["loss"][0])
    assert np.isnan(found["standard_error"][0])
    wrong = model(IMAGES).argmax(1) != CHOSEN
    wrong[3] = True
    assert found["error"][0] == wrong.double().mean().item()


def test_a_network_that_fails_is_refused_with_its_own_words() -> None:
    model = flat()
    with pytest.raises(ValueError, match=r"the network fails on some examples, in float32 .*cannot be mul"):
        Evaluator(model, IMAGES[:, :1], CHOSEN, line(model))
    words = text(True)
    with pytest.raises(ValueError, match="the network fails on some examples, in float32 and evaluation mode"):
        Evaluator(words, TOKENS.float(), CHOSEN, line(words))
    with pytest.raises(ValueError, match=r"the network fails on some examples.*IndexError: index out of range"):
        Evaluator(words, TOKENS + 5, CHOSEN, line(words))
