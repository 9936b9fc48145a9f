import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import CLASSES, examples, settle, small_resnet
from torch import Tensor, nn

from descent.landscape.directions import Direction, Scaling, direction_between, network_at, random_direction
from descent.landscape.evaluator import Evaluator
from descent.landscape.surface import LossSurface, loss_surface, plane_grid, recompute_points
from descent.models.image_networks import Shortcuts
from descent.repro import machine
from descent.repro.machine import autocast, chosen_precision, has_bfloat16
from descent.repro.records import Record

ALPHA, BETA = np.linspace(-0.5, 0.5, 5), np.linspace(-0.3, 0.6, 7)


def plane(model: nn.Module, scaling: Scaling = "filter") -> list[Direction]:
    return [random_direction(model, 0, name, scaling) for name in ("alpha", "beta")]


def evaluator(model: nn.Module | None = None, count: int = 20) -> Evaluator:
    model = model or small_resnet()
    return Evaluator(model, *examples(count), plane(model), precision="float32", batch=8)


def plain(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(inputs)
        losses = nn.functional.cross_entropy(logits, targets, reduction="none").double()
    wrong = (logits.argmax(1) != targets).double().mean()
    spread = np.std(losses.numpy(), ddof=1) / np.sqrt(len(targets))
    return {"loss": losses.mean().item(), "standard_error": spread, "error": wrong.item()}


@pytest.mark.parametrize("shortcuts", ["projection", "padding", "none"])
def test_any_point_has_the_values_of_the_moved_network(shortcuts: Shortcuts) -> None:
    model, data = small_resnet(0, shortcuts), examples()
    directions = plane(model)
    found = Evaluator(model, *data, directions, precision="float32", batch=8)([[0, 0], [0.4, -0.3], [-1, 2]])
    centre = {name: values[0] for name, values in found.items()}
    assert centre == pytest.approx(plain(model, *data), rel=1e-6)
    for row, point in ((1, [0.4, -0.3]), (2, [-1, 2])):
        expected = plain(network_at(model, directions, point), *data)
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected, rel=1e-5)
    assert len(np.unique(found["loss"])) == 3


def test_grid_keeps_its_order() -> None:
    model, data = small_resnet(), examples()
    directions = plane(model)
    found = loss_surface(Evaluator(model, *data, directions, precision="float32"), ALPHA, BETA)
    assert found.loss.shape == (5, 7)
    for i, j in ((0, 0), (1, 5), (4, 2), (4, 6)):
        expected = plain(network_at(model, directions, [ALPHA[i], BETA[j]]), *data)
        assert {name: values[i, j] for name, values in found.values.items()} == pytest.approx(expected, rel=1e-5)
    points = plane_grid([1, 2], [3, 4, 5])
    np.testing.assert_array_equal(points, [[1, 3], [1, 4], [1, 5], [2, 3], [2, 4], [2, 5]])
    np.testing.assert_array_equal(found.alpha, ALPHA)
    np.testing.assert_array_equal(found.beta, BETA)
    assert (found.images, found.precision) == (20, "float32")


def test_points_can_be_evaluated_by_another() -> None:
    seen = []

    def run(task: Evaluator, points: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(points)
        return {"loss": points[:, 0] * 10 + points[:, 1]}

    found = loss_surface(evaluator(), [1, 2], [3, 4, 5], run)
    np.testing.assert_array_equal(found.loss, [[13, 14, 15], [23, 24, 25]])
    np.testing.assert_array_equal(seen[0], plane_grid([1, 2], [3, 4, 5]))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_handed_back_untouched(training: bool) -> None:
    model = small_resnet().train(training)
    model[0].weight.grad = gradient = torch.ones_like(model[0].weight)
    before, other = copy.deepcopy(model.state_dict()), small_resnet(1)
    for directions in (plane(model), [direction_between(model, other)]):
        point = [0.5] * len(directions)
        assert np.isfinite(Evaluator(model, *examples(), directions)([point])["loss"]).all()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training == training for module in model.modules())
    assert model[0].weight.grad is gradient
    assert (gradient == 1).all()
    assert [p.grad for p in model.parameters()][1:] == [None] * (len(list(model.parameters())) - 1)
    assert all(p.requires_grad for p in model.parameters())


def test_training_the_model_further_moves_no_point() -> None:
    model = small_resnet()
    task = evaluator(model)
    before = task([[0.1, 0.2]])["loss"]
    with torch.no_grad():
        model[0].weight += 1
    np.testing.assert_array_equal(task([[0.1, 0.2]])["loss"], before)
    np.testing.assert_array_equal(task.in_float32()([[0.1, 0.2]])["loss"], before)


def test_a_line_between_two_networks_ends_at_the_other() -> None:
    start, end, data = small_resnet(0), small_resnet(1), examples()
    task = Evaluator(start, *data, [direction_between(start, end)], precision="float32")
    found = task([[0.0], [1.0]])
    for row, model in enumerate((start, end)):
        assert {n: values[row] for n, values in found.items()} == pytest.approx(plain(model, *data), rel=1e-5)


def test_one_image_has_no_standard_error() -> None:
    found = evaluator(count=1)([[0, 0]])
    assert np.isnan(found["standard_error"][0])
    assert np.isfinite(found["loss"][0])


class Linear(nn.Module):
    """Logits of two classes are weight x input and 0."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[weight], [0.0]]))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.T


def test_losses_known_on_paper_and_those_that_are_not_finite() -> None:
    targets = torch.tensor([0, 0, 1, 1])
    inputs, direction = torch.tensor([[1.0], [2.0], [1.0], [2.0]]), {"weight": torch.tensor([[1.0], [0.0]])}
    task = Evaluator(Linear(0.0), inputs, targets, [direction], precision="float32", batch=3)
    found = task([[0.0], [1.0], [1e30], [1e300]])
    each = [np.log1p(np.exp(-1)), np.log1p(np.exp(-2)), np.log1p(np.exp(1)), np.log1p(np.exp(2))]
    np.testing.assert_allclose(found["loss"][:3], [np.log(2), np.mean(each), 0.75e30], rtol=1e-6)
    np.testing.assert_allclose(found["standard_error"][:2], [0, np.std(each, ddof=1) / 2], rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(found["error"][:3], [0.5, 0.5, 0.5])
    assert np.isnan(found["loss"][3])  # the weight is infinite in float32
    far = Evaluator(Linear(0.0), inputs[:2], targets[:2], [direction], precision="float32")([[-3e38]])
    assert far["loss"][0] == np.inf  # the second image's logit is minus infinity
    assert far["error"][0] == 1
    flipped = torch.tensor([0, 0, 0, 0])
    holes = Evaluator(Linear(0.0), inputs * 0, flipped, [direction], precision="float32")([[1e300]])
    assert np.isnan(holes["loss"][0])  # infinity times zero
    assert holes["error"][0] == 1  # argmax of NaN is class 0, which is no success


def test_bfloat16_is_within_two_per_cent() -> None:
    model = small_resnet()
    points = [[0, 0], [0.3, 0.2], [-0.4, 0.5]]
    coarse = Evaluator(model, *examples(), plane(model), precision="bfloat16")
    fine = coarse.in_float32()
    assert (coarse.precision, fine.precision) == ("bfloat16", "float32")
    np.testing.assert_allclose(coarse(points)["loss"], fine(points)["loss"], rtol=0.02)
    assert (coarse(points)["loss"] != fine(points)["loss"]).all()
    np.testing.assert_array_equal(fine(points)["loss"], evaluator(model)(points)["loss"])


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_bfloat16_where_the_machine_multiplies_in_it(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_bfloat16", lambda device: has)
    model = small_resnet()
    assert Evaluator(model, *examples(), plane(model)).precision == ("bfloat16" if has else "float32")


def test_bfloat16_is_asked_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    names = "_is_avx512_bf16_supported", "_is_amx_tile_supported"
    for answers in ((False, False), (True, False), (False, True)):
        for name, answer in zip(names, answers, strict=True):
            monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
        assert has_bfloat16(torch.device("cpu")) == any(answers)
        with autocast(torch.device("cpu")):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if any(answers) else torch.float32)
    for name in names:
        monkeypatch.delattr(torch.cpu, name)
    assert not has_bfloat16(torch.device("cpu"))


def test_an_evaluator_survives_being_sent() -> None:
    for precision in ("float32", "bfloat16"):
        model = small_resnet()
        task = Evaluator(model, *examples(), plane(model), precision=precision, batch=8)
        before = task([[0.2, 0.1]])
        again = pickle.loads(pickle.dumps(task))  # noqa: S301 (our own)
        for found in (again([[0.2, 0.1]]), task([[0.2, 0.1]])):
            assert all(np.array_equal(found[name], before[name]) for name in before)
        np.testing.assert_array_equal(again.in_float32()([[1, 1]])["loss"], task.in_float32()([[1, 1]])["loss"])


def test_a_precision_is_one_of_those_known(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    for wanted in ("half", "", "float64"):
        for ask in (chosen_precision, lambda name, where: autocast(where, name)):
            with pytest.raises(ValueError, match=f"precision='{wanted}': expected one of auto, float32, bfloat16"):
                ask(wanted, device)
    for has, auto in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(machine, "has_bfloat16", lambda device, has=has: has)
        found = [chosen_precision(wanted, device) for wanted in ("auto", "float32", "bfloat16")]
        assert found == [auto, "float32", "bfloat16"]
        for wanted, kind in zip(("auto", "float32", "bfloat16"), found, strict=True):
            with autocast(device, wanted):
                assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, kind)


def test_equal_evaluators_have_one_key_wherever_they_compute() -> None:
    task = evaluator()
    key = task.key()
    assert len(bytes.fromhex(key)) == 32
    model, (inputs, targets) = small_resnet(), examples()
    directions = [dict(reversed(part.items())) for part in plane(model)]  # the order of the names is no number
    model, inputs = model.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
    other = Evaluator(model, inputs, targets, directions, precision="float32")
    sent = pickle.loads(pickle.dumps(task))  # noqa: S301 (our own)
    task([[0.5, -0.5]])
    assert {each.key() for each in (task, task.in_float32(), other, sent)} == {key}


def test_the_key_is_the_same_in_another_process() -> None:
    code = "import torch; torch.set_num_threads(1); from test_evaluator import evaluator; print(evaluator().key())"
    place = {"PYTHONHASHSEED": "17", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **place}, capture_output=True, text=True)
    assert done.stdout.split() == [evaluator().key()], done.stderr


def one_more(tensor: Tensor) -> Tensor:
    """The tensor with its last entry the next number."""
    changed = tensor.clone()
    last = changed.reshape(-1)[-1]
    changed.view(-1)[-1] = torch.nextafter(last, last + 1) if last.is_floating_point() else last + 1
    return changed


def with_entry(model: nn.Module, name: str) -> nn.Module:
    model.load_state_dict({**model.state_dict(), name: one_more(model.state_dict()[name])})
    return model


Parts = tuple[nn.Module, Tensor, Tensor, list[Direction]]


CHANGES: dict[str, Callable[[nn.Module, Tensor, Tensor, list[Direction]], Parts]] = {
    "weight": lambda m, x, y, d: (with_entry(m, "3.conv2.weight"), x, y, d),
    "bias": lambda m, x, y, d: (with_entry(m, "8.bias"), x, y, d),
    "mean": lambda m, x, y, d: (with_entry(m, "1.running_mean"), x, y, d),
    "variance": lambda m, x, y, d: (with_entry(m, "3.norm1.running_var"), x, y, d),
    "direction": lambda m, x, y, d: (m, x, y, [d[0], {**d[1], "8.weight": one_more(d[1]["8.weight"])}]),
    "directions' order": lambda m, x, y, d: (m, x, y, d[::-1]),
    "a direction less": lambda m, x, y, d: (m, x, y, d[:1]),
    "image": lambda m, x, y, d: (m, one_more(x), y, d),
    "images' order": lambda m, x, y, d: (m, x.flip(0), y.flip(0), d),
    "an image less": lambda m, x, y, d: (m, x[:-1], y[:-1], d),
    "target": lambda m, x, y, d: (m, x, (y + 1) % CLASSES, d),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_surface_changes_the_key(change: str) -> None:
    model = small_resnet()
    parts = CHANGES[change](model, *examples(), plane(small_resnet()))
    *given, directions = parts
    assert Evaluator(*given, directions, precision="float32").key() != evaluator().key()


def test_a_line_in_two_directions_is_no_line_in_one() -> None:
    model = small_resnet()
    (whole, _), data = plane(model), examples()
    parts = [{name: part} for name, part in sorted(whole.items())]
    assert Evaluator(model, *data, parts).key() != Evaluator(model, *data, [whole]).key()


def test_a_line_beyond_two_networks_has_no_variance_below_zero() -> None:
    start, end, data = small_resnet(0), small_resnet(1), examples()
    way = direction_between(start, end)
    task = Evaluator(start, *data, [way], precision="float32")
    found = task([[-4.0], [5.0], [0.5]])
    norms = [name for name in start.state_dict() if name.endswith("running_var")]
    for row, share in enumerate((-4.0, 5.0)):
        there = network_at(start, [way], [share])
        straight = {name: start.state_dict()[name] + share * way[name] for name in norms}
        assert any((part < 0).any() for part in straight.values())
        for name in norms:
            torch.testing.assert_close(there.state_dict()[name], straight[name].clamp(min=0), rtol=1e-5, atol=1e-6)
        expected = plain(there, *data)
        assert np.isfinite(expected["loss"])
        assert {n: values[row] for n, values in found.items()} == pytest.approx(expected, rel=1e-3)
    halfway = plain(network_at(start, [way], [0.5]), *data)  # and what was clamped there is not kept
    assert found["loss"][2] == pytest.approx(halfway["loss"], rel=1e-5)


def rescale_filters(model: nn.Module, seed: int) -> nn.Module:
    """Another network of the same function: filters before a normalisation times positive factors, it along."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    children = list(model.named_modules())
    for (_, convolution), (_, norm) in pairwise(children):
        if isinstance(norm, nn.BatchNorm2d):
            assert isinstance(convolution, nn.Conv2d)
            factor = torch.rand(len(norm.running_mean), generator=generator) * 4.9 + 0.1
            convolution.weight.data *= factor[:, None, None, None]
            norm.running_mean *= factor
            norm.running_var *= factor**2
    return model


def test_filter_normalised_surfaces_do_not_change_with_the_filters_scale() -> None:
    model, data = small_resnet(), examples()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 0.0
    other = rescale_filters(model, 0)
    assert plain(other, *data) == pytest.approx(plain(model, *data), rel=1e-5)
    losses = {
        scaling: [
            loss_surface(Evaluator(m, *data, plane(m, scaling), precision="float32"), ALPHA, BETA).loss
            for m in (model, other)
        ]
        for scaling in ("filter", "none")
    }
    np.testing.assert_allclose(*losses["filter"], rtol=1e-4)
    assert np.abs(losses["none"][0] / losses["none"][1] - 1).max() > 0.1


def test_what_does_not_fit_is_refused_by_name() -> None:
    model, (inputs, targets) = small_resnet(), examples()
    good = plane(model)
    bad: list[tuple[list[Direction], str]] = [
        ([], "directions is empty or one alone: expected a list of one for a line, of two for a plane"),
        ([good[0], {"9.weight": torch.zeros(1)}], "direction 1 moves '9.weight', which the model lacks"),
        ([{"8.weight": torch.zeros(1, 8)}], r"0 has '8.weight' of shape \(1, 8\); the model's is \(4, 8\)"),
    ]
    for directions, message in bad:
        with pytest.raises(ValueError, match=message):
            Evaluator(model, inputs, targets, directions)
    with pytest.raises(ValueError, match="20 inputs and 19 targets: expected as many"):
        Evaluator(model, inputs, targets[:19], good)
    with pytest.raises(ValueError, match="0 inputs and 0 targets: expected as many, and at least one"):
        Evaluator(model, inputs[:0], targets[:0], good)
    with pytest.raises(ValueError, match="precision='float16': expected one of auto, float32, bfloat16"):
        Evaluator(model, inputs, targets, good, precision="float16")
    with pytest.raises(ValueError, match="batch=0: expected at least 1 example at a time"):
        Evaluator(model, inputs, targets, good, batch=0)
    for points in ([[0.0]], [[0.0, 0.0, 0.0]], np.zeros((1, 1, 2))):
        with pytest.raises(ValueError, match=r"points of shape .*: expected \(s, 2\)"):
            Evaluator(model, inputs, targets, good)(points)


class Backwards(nn.Sequential):
    """Runs its layers in another order than that in which they are listed."""

    def forward(self, inputs: Tensor) -> Tensor:
        convolution, norm, head = self
        return head(convolution(norm(inputs)))


def test_normalisation_that_cannot_be_folded_is_moved_as_it_is() -> None:
    model = settle(Backwards(nn.Conv2d(3, 3, 8), nn.BatchNorm2d(3), nn.Sequential(nn.Flatten(), nn.Linear(3, CLASSES))))
    assert evaluator(model)([[0, 0]])["loss"][0] == pytest.approx(plain(model, *examples())["loss"], rel=1e-6)
    model = settle(nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.BatchNorm1d(3), nn.Linear(3, CLASSES)))
    away = network_at(model, plane(model), [0.4, -0.3])
    assert evaluator(model)([[0.4, -0.3]])["loss"][0] == pytest.approx(plain(away, *examples())["loss"], rel=1e-5)
    way = direction_between(model, settle(copy.deepcopy(model), 1))
    found = Evaluator(model, *examples(), [way], precision="float32")([[1.0]])["loss"]
    assert found[0] == pytest.approx(plain(settle(copy.deepcopy(model), 1), *examples())["loss"], rel=1e-5)


def made(loss: np.ndarray) -> LossSurface:
    return LossSurface(
        np.arange(loss.shape[0], dtype=float), np.arange(loss.shape[1], dtype=float), {"loss": loss}, 3, "x"
    )


def test_a_surface_refuses_values_that_are_not_its_own() -> None:
    with pytest.raises(ValueError, match=r"loss of shape \(3, 2\): expected \(len\(alpha\), len\(beta\)\) = \(2, 3\)"):
        LossSurface(np.zeros(2), np.zeros(3), {"loss": np.zeros((3, 2))}, 1, "float32")
    with pytest.raises(ValueError, match="values error: expected loss among them"):
        LossSurface(np.zeros(2), np.zeros(3), {"error": np.zeros((2, 3))}, 1, "float32")


def test_a_surface_comes_back_from_the_disk(tmp_path: Path) -> None:
    found = loss_surface(evaluator(), ALPHA, BETA)
    found.values["loss"][1, 2] = np.nan
    found.record("plane", {"network": "tiny"}, {"seed": 0}).save(tmp_path / "plane.npz")
    record = Record.load(tmp_path / "plane.npz")
    back = LossSurface.of(record)
    assert record.settings == {"network": "tiny", "images": 20, "precision": "float32"}
    assert (back.images, back.precision) == (20, "float32")
    assert back.values.keys() == found.values.keys()
    for name in found.values:
        np.testing.assert_array_equal(back.values[name], found.values[name])
    np.testing.assert_array_equal(back.alpha, ALPHA)
    np.testing.assert_array_equal(back.beta, BETA)
    with pytest.raises(ValueError, match="record 'other' holds loss: expected alpha, beta, loss and more"):
        LossSurface.of(Record("other", {"loss": np.zeros(1)}, {"images": 1, "precision": "float32"}))
    with pytest.raises(ValueError, match="record 'plane' holds alpha, beta, loss"):
        LossSurface.of(Record("plane", {"alpha": ALPHA, "beta": BETA, "loss": found.loss}))


def test_a_recheck_finds_a_planted_error_and_nothing_else() -> None:
    task = evaluator()
    found = loss_surface(task, ALPHA, BETA)
    np.testing.assert_array_equal(recompute_points(task, found, 0, share=1), np.zeros(35))
    assert recompute_points(task, found, 0).shape == (1,)
    assert recompute_points(task, found, 0, share=0.1).shape == (4,)
    found.loss[3, 4] *= 1.25
    differences = recompute_points(task, found, 0, share=1)
    assert (differences > 0).sum() == 1
    assert differences.max() == pytest.approx(0.25, rel=1e-12)


@pytest.mark.parametrize(
    ("before", "anew", "expected"),
    [
        (np.nan, np.nan, 0),
        (np.inf, np.inf, 0),
        (np.inf, 1.0, np.inf),
        (1.0, np.inf, np.inf),
        (np.nan, 1.0, np.inf),
        (1.0, np.nan, np.inf),
        (np.nan, np.inf, np.inf),
        (0.0, 0.0, 0),
        (1.0, 0.0, np.inf),
        (3.0, 2.0, 0.5),
    ],
)
def test_a_recheck_of_what_is_not_finite(
    before: float, anew: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = evaluator()
    monkeypatch.setattr(Evaluator, "in_float32", lambda self: lambda points: {"loss": np.full(len(points), anew)})
    np.testing.assert_array_equal(
        recompute_points(task, made(np.full((2, 2), before)), 0, share=1), np.full(4, expected)
    )


class Words(nn.Module):
    """Predicts each word of four from its embedding, whose weights the last layer shares."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 3), nn.Linear(3, 9, bias=False)
        self.head.weight = self.words.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.words(inputs))


def word_losses(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    inputs, targets = batch
    return nn.functional.cross_entropy(model(inputs).mT, targets, reduction="none").mean(1)


def test_a_loss_of_ones_own_over_integers_and_tied_weights() -> None:
    model = Words()
    words = torch.arange(20).reshape(5, 4) % 9
    task = Evaluator(model, words, words.flip(1), plane(model), loss=word_losses, precision="float32", batch=2)
    values = task([[0, 0], [0.5, -1]])
    assert sorted(values) == ["loss", "standard_error"]
    for row, point in enumerate([[0, 0], [0.5, -1]]):
        losses = word_losses(network_at(model, plane(model), point), (words, words.flip(1))).detach().double()
        assert values["loss"][row] == pytest.approx(losses.mean().item(), rel=1e-6)
        assert values["standard_error"][row] == pytest.approx(losses.std().item() / 5**0.5, rel=1e-5)
    assert task.key() == task.in_float32().key()
