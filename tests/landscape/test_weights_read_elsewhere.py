"""A surface is that of the user's own network, moved in place, or it is refused: copies that read weights elsewhere."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from descent.landscape import Evaluator, direction_between, network_at, random_direction
from descent.landscape.directions import Direction

DRAWN = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 4, generator=DRAWN), torch.randint(0, 3, (12,), generator=DRAWN)


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


class Two(nn.Module):
    """Two layers, and whatever a maker adds to them."""

    def __init__(self, add: Callable[[Any], object] = lambda net: None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.v = nn.Linear(4, 8), nn.Linear(8, 3), torch.zeros(())
        add(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh()) + torch.as_tensor(self.v).sum() * torch.arange(3.0)


def hooked() -> nn.Module:
    model = plain()
    model.A = nn.Parameter(torch.ones(8, 4))
    model[0].register_forward_hook(lambda layer, given, output: output + given[0] @ model.A.T)
    return model


def patched() -> nn.Module:
    model = plain()
    layer = model[0]
    layer.A, layer.B = nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(8, 2))
    layer.forward = lambda x, old=layer.forward: old(x) + x @ layer.A.T @ layer.B.T
    return model


class Acting(Two):
    def __init__(self) -> None:
        super().__init__()
        self.act = lambda x: torch.relu(self.a(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(x))


SHARED = nn.Linear(4, 8)


class OfAGlobal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = SHARED, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(SHARED(x).tanh())


def view(of: Callable[[Tensor], object]) -> nn.Module:
    return Two(lambda net: setattr(net, "v", of(net.a.weight)))


ELSEWHERE: dict[str, Callable[[], nn.Module]] = {
    "a hook": hooked,
    "a patched forward": patched,
    "a function as activation": Acting,
    "a global": OfAGlobal,
    "rows": partial(view, lambda w: w.detach()[:2]),
    "detached": partial(view, lambda w: w.detach()[:]),
    "data": partial(view, lambda w: w.data.view(-1)),
    "transposed": partial(view, lambda w: w.data.T),
    "numpy": partial(view, lambda w: w.detach().numpy()[:3]),
    "in a list of a dict": lambda: Two(lambda net: setattr(net, "kept", {"x": [net.a.weight.data[1:]]})),
}


def along(model: nn.Module) -> Direction:
    return random_direction(model, 0, "alpha")


@pytest.mark.filterwarnings("ignore:the values on some examples do not change")
@pytest.mark.parametrize("case", [name for name in ELSEWHERE if "dict" not in name])
def test_a_copy_that_does_not_move_as_the_network_is_refused(case: str) -> None:
    model = ELSEWHERE[case]()
    before = {name: part.clone() for name, part in model.state_dict().items()}
    with pytest.raises(ValueError, match="a moved copy differ from those of the network itself, moved alike, by 0"):
        Evaluator(model, X, Y, [along(model)], precision="float32")
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_network_elsewhere_is_not_made_of_one_whose_copy_would_not_move(case: str) -> None:
    model = ELSEWHERE[case]()
    with pytest.raises(ValueError, match=r"not move as a whole, as through '(_forward_hooks|forward|act|v|kept)'"):
        network_at(model, [along(model)], [1.0])


@pytest.mark.filterwarnings("ignore:the values on some examples do not change")
@pytest.mark.parametrize("part", ["loss", "metric"])
def test_a_loss_of_another_model_than_its_argument_is_refused(part: str) -> None:
    model = plain()
    outer = {part: lambda _, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none")}
    with pytest.raises(ValueError, match="losses that read the module which they are given"):
        Evaluator(model, X, Y, [along(model)], precision="float32", **outer)


@contextmanager
def in_place(model: nn.Module, direction: Direction, coordinate: float) -> Iterator[None]:
    parts = {name: model.get_parameter(name).data for name in direction}
    before = {name: part.clone() for name, part in parts.items()}
    for name, part in parts.items():
        part.add_(direction[name], alpha=coordinate)
    yield
    for name, part in parts.items():
        part.copy_(before[name])


class OwnState(Two):
    def state_dict(self, *args: Any, **options: Any) -> dict[str, Tensor]:
        return {name: part.clone() for name, part in super().state_dict(*args, **options).items()}


def listing() -> nn.Module:
    model, seen = plain(), []
    model[0].register_forward_hook(lambda layer, given, output: seen.append(output.shape))
    return model


class Method(Two):
    """A bound method, which copies follow."""

    def __init__(self) -> None:
        super().__init__()
        self.way = partial(self.through, scale=2.0)
        self.layers = [self.a, self.b]

    def through(self, x: Tensor, scale: float) -> Tensor:
        return self.layers[1](scale * self.layers[0](x).tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.way(x)


@pytest.mark.parametrize("make", [OwnState, listing, Method, plain, lambda: parametrizations.weight_norm(plain()[0])])
def test_what_a_copy_follows_is_moved(make: Callable[[], nn.Module]) -> None:
    model, points = make(), [0.0, 1.0, -2.0]
    direction = along(model)
    found = Evaluator(model, X, Y, [direction], precision="float32")([[point] for point in points])["loss"]
    for point, value in zip(points, found, strict=True):
        with in_place(model, direction, point), torch.no_grad():
            right = F.cross_entropy(model(X), Y).item()
        assert value == pytest.approx(right, rel=1e-5)
        with torch.no_grad():
            assert F.cross_entropy(network_at(model, [direction], [point])(X), Y).item() == pytest.approx(
                right, rel=1e-5
            )


class Keeping(Two):
    """Computes a kernel of its weights at the first call alone."""

    kernel: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is None:
            self.kernel = 2 * self.a.weight.detach()
        return self.b((x @ self.kernel.T).tanh())


@pytest.mark.filterwarnings("ignore:the values on some examples do not change")
def test_a_result_that_was_kept_is_refused_or_told() -> None:
    model = Keeping()
    with pytest.raises(ValueError, match="or in a result that was kept"):
        Evaluator(model, X, Y, [along(model)], precision="float32")
    assert model.kernel is None
    model(X)
    with pytest.warns(UserWarning, match=r"do not change with 'a.weight': right where the forward pass leaves it"):
        Evaluator(model, X, Y, [along(model)], precision="float32")


def test_rows_of_an_embedding_that_no_example_names_are_no_fault() -> None:
    model = nn.Sequential(nn.Embedding(50, 3), nn.Flatten(), nn.Linear(3, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Evaluator(model, torch.tensor([[1], [2]]), torch.tensor([0, 1]), [along(model)], precision="float32")


def test_short_directions_are_compared_as_far_as_the_weights_are_long() -> None:
    model = hooked()
    with pytest.raises(ValueError, match="as through '_forward_hooks' of '0'"), pytest.warns(UserWarning, match="'A'"):
        Evaluator(model, X, Y, [{"A": torch.full((8, 4), 1e-9)}], precision="float32")


def test_autocast_of_the_caller_does_not_keep_weights() -> None:
    model, points = plain(), [[0.0], [1.0], [5.0]]
    task = Evaluator(model, X, Y, [along(model)], precision="float32")
    right = task(points)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(task(points)["loss"], right)
        inside = Evaluator(model, X, Y, [along(model)], precision="float32")
        np.testing.assert_array_equal(inside(points)["loss"], right)
        assert inside.key() == task.key()

    def half(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(net(batch[0]).float(), batch[1], reduction="none")

    own = Evaluator(model, X, Y, [along(model)], loss=half, precision="float32")
    expected = own(points)["loss"]
    assert len(set(expected)) == 3
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(own(points)["loss"], expected)


def test_weights_kept_by_parametrize_are_refused() -> None:
    model = parametrizations.orthogonal(nn.Linear(4, 3))
    task = Evaluator(model, X, Y, [along(model)], precision="float32")
    with parametrize.cached(), pytest.raises(ValueError, match=r"parametrize.cached\(\) is on"):
        task([[0.0]])


class Drifting(Two):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls = how, 0
        self.register_buffer("mu", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "buffer":
            self.mu.mul_(1 - 1e-5).add_(1e-5)
        elif self.how == "new buffer":
            self.mu = self.mu + 1e-7
        elif self.how == "weights":
            with torch.no_grad():
                self.b.bias.mul_(1.00001)
        elif self.how == "number":
            self.calls += 1
        return super().forward(x - self.mu)


@pytest.mark.parametrize(
    ("how", "name"), [("buffer", "mu"), ("new buffer", "mu"), ("weights", "b.bias"), ("number", "calls")]
)
def test_a_forward_pass_that_changes_the_network_is_refused_by_name(how: str, name: str) -> None:
    model = Drifting(how)
    with pytest.raises(ValueError, match=f"the loss changes '{name}'"):
        Evaluator(model, X, Y, [along(model)], precision="float32")
    assert model.calls == 0


class Mixing(nn.Module):
    """Scales by the largest input of the batch, where that is above one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x / x.abs().max().clamp(min=1))


@pytest.mark.parametrize("batch", [1, 2, 3, 10, 125])
def test_rows_that_are_mixed_only_late_in_the_data_are_found(batch: int) -> None:
    inputs = torch.rand(200, 2, generator=DRAWN)
    inputs[50:] *= 20
    model, targets = Mixing(), torch.arange(200) % 3
    with pytest.raises(ValueError, match="the loss of an example changes with the others of its batch"):
        Evaluator(model, inputs, targets, [along(model)], precision="float32", batch=batch)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_small_sets_in_small_batches_are_the_mean_of_their_examples(n: int, batch: int) -> None:
    model = plain()
    found = Evaluator(model, X[:n], Y[:n], [along(model)], precision="float32", batch=batch)([[0.0]])["loss"]
    assert found[0] == pytest.approx(F.cross_entropy(model(X[:n]), Y[:n]).item(), rel=1e-6)


def test_numbers_that_bfloat16_confuses_late_in_the_data_are_kept_apart() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.l = nn.Embedding(3000, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.l(self.e(x[:, 0].long()))

    model, inputs, targets = Words(), torch.arange(0, 2000, 10.0)[:, None], torch.arange(200) % 3
    with pytest.warns(UserWarning, match="with bfloat16, the values change"):
        found = Evaluator(model, inputs, targets, [along(model)], precision="bfloat16")([[0.0]])["loss"]
    assert found[0] == pytest.approx(F.cross_entropy(model(inputs), targets).item(), rel=1e-6)


def test_masks_of_infinity_stay_where_they_are_between_two_networks() -> None:
    class Masked(Two):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, 0, -torch.inf]))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.mask

    start, end = Masked(), Masked()
    with torch.no_grad():
        end.a.weight.add_(1.0)
    middle = network_at(start, [direction_between(start, end)], [0.5])
    assert torch.equal(middle.mask, start.mask)
    torch.testing.assert_close(middle.a.weight.data, start.a.weight.data + 0.5)
