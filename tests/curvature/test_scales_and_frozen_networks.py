"""Operators of any scale, eigenpairs of another operator, and losses that read frozen weights from elsewhere."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from descent.curvature import estimate_trace, extreme_eigenpairs, gauss_newton, hessian, spectral_density
from descent.curvature.eigen import saddle_free_step

A = np.random.default_rng(0).standard_normal((60, 60))
A = (A + A.T) / 2
VALUES, VECTORS = np.linalg.eigh(A)
SQUARE = A @ A
SCALES = [1e-300, 1e-200, 1e-170, 1e-20, 1e-12, 1.0, 1e20, 1e200, 1e300]
DRAWN = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 4, generator=DRAWN), torch.randint(0, 3, (12,), generator=DRAWN)


def draws() -> np.random.Generator:
    return np.random.default_rng(5)


def mean(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("scale", SCALES)
def test_eigenpairs_and_densities_have_the_scale_of_the_operator(scale: float) -> None:
    for which, expected in (("largest", VALUES[-3:]), ("smallest", VALUES[:3])):
        pairs = extreme_eigenpairs(A * scale, 3, which, draws())
        assert pairs.converged
        np.testing.assert_allclose(pairs.values / scale, expected, rtol=1e-6)
    np.testing.assert_allclose(extreme_eigenpairs(-SQUARE * scale, 2, "largest", draws()).values[1] / scale,
                               -np.linalg.eigvalsh(SQUARE)[0], rtol=1e-2)  # fmt: skip
    plain, scaled = (spectral_density(A * by, 20, 10, draws()).moment(1) for by in (1.0, scale))
    assert scaled.value / scale == pytest.approx(plain.value, rel=1e-6)
    assert estimate_trace(A * scale, 5, draws()).value / scale == pytest.approx(estimate_trace(A, 5, draws()).value)


@pytest.mark.parametrize("scale", SCALES)
def test_steps_have_the_scale_of_the_gradient(scale: float) -> None:
    gradient = np.random.default_rng(2).standard_normal(60)
    right = -(VECTORS / np.abs(VALUES)) @ (VECTORS.T @ gradient)
    np.testing.assert_allclose(saddle_free_step(A, gradient * scale, 60) / scale, right, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(saddle_free_step(np.eye(60), gradient * scale, 60), -gradient * scale, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-50, 1e200])
def test_products_in_float32_take_vectors_of_any_scale(scale: float) -> None:
    operator = hessian(network(), mean, [(X, Y)])
    vector = draws().standard_normal(operator.shape[0])
    np.testing.assert_allclose(operator @ (vector * scale) / scale, operator @ vector, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(operator @ (vector * 2.0**40), (operator @ vector) * 2.0**40)


@pytest.mark.parametrize("form", [list, torch.tensor, lambda rows: torch.tensor(rows, requires_grad=True)])
def test_lists_and_tensors_are_operators(form: Any) -> None:
    np.testing.assert_allclose(extreme_eigenpairs(form(A.tolist()), 2, "largest", draws()).values, VALUES[-2:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: extreme_eigenpairs(A, 2.0, "largest", draws()), r"count=2.0: expected 1 to 60, .*, a whole number"),
        (lambda: extreme_eigenpairs(A, 2, "largest", draws(), max_matvecs=2.5), "max_matvecs=2.5: expected at least 0"),
        (lambda: extreme_eigenpairs(A, 2, "largest", None), "generator is a .*NoneType.*: expected one of numpy"),
        (lambda: spectral_density(A, 2, 2, torch.Generator()), "generator is a .*torch.*: expected one of numpy"),
        (lambda: extreme_eigenpairs(np.ma.masked_greater(A, 1), 2, "largest", draws()), "operator is a masked array"),
        (lambda: spectral_density(A, 2.5, 3, draws()), "steps=2.5: expected at least 1"),
        (lambda: estimate_trace(A, 2.5, draws()), "samples=2.5: expected at least 2"),
        (lambda: saddle_free_step(A, np.ones(60), 2.5), "vectors=2.5: expected at least 1"),
        (lambda: spectral_density(A, 2, 3, draws(), grid=np.array([0, 1j])), "grid is of type complex128"),
        (lambda: hessian(lambda x: x, mean, [(X, Y)]), "model is a function: expected a torch.nn.Module"),
    ],
)
def test_other_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_known_pairs_are_those_of_the_operator() -> None:
    values, vectors = np.linalg.eigh(SQUARE)
    pairs = extreme_eigenpairs(SQUARE, 3, "largest", draws())
    for known in (pairs, (pairs.values, pairs.vectors), (values[:2], vectors[:, :2]), (values[-5:], vectors[:, -5:])):
        found = spectral_density(SQUARE, 20, 30, draws(), known=known).moment(1)
        assert abs(found.value - np.trace(SQUARE) / 60) < 4 * found.standard_error
    for wrong in (
        (values[-5:][::-1], vectors[:, -5:]),
        (values[-5:] * 3, vectors[:, -5:]),
        (np.arange(55.0, 60), np.eye(60)[:, -5:]),
        (np.zeros(1), vectors[:, -1:]),
    ):
        with pytest.raises(ValueError, match="known pairs are not the operator's"):
            spectral_density(SQUARE, 20, 30, draws(), known=wrong)


@pytest.mark.parametrize("matrix", [hessian, gauss_newton])
def test_frozen_weights_that_are_read_from_elsewhere_are_named(matrix: Any) -> None:
    model, batch = network().double().requires_grad_(False), [(X.double(), Y)]

    def outer(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return mean(net, batch) + model[0].weight.square().sum()

    with pytest.raises(ValueError, match=r"loss reads parameter '0.weight' from elsewhere than its argument"):
        matrix(model, outer, batch, ["0.weight"])
    hooked = network().requires_grad_(False)
    hooked[0].register_forward_hook(lambda layer, given, output: output + given[0] @ hooked[0].weight.T)
    with pytest.raises(ValueError, match=r"loss reads parameter '0.weight' from elsewhere"):
        matrix(hooked, mean, [(X, Y)], ["0.weight"])
    assert not any(part.requires_grad for part in [*model.parameters(), *hooked.parameters()])


def test_a_penalty_on_frozen_weights_counts_where_it_reads_the_argument() -> None:
    model, batch = network().double().requires_grad_(False), [(X.double(), Y)]
    plain = hessian(model, mean, batch, ["0.weight"])
    more = hessian(model, lambda net, b: mean(net, b) + net[0].weight.square().sum(), batch, ["0.weight"])
    np.testing.assert_allclose(more @ np.eye(32), plain @ np.eye(32) + 2 * np.eye(32), atol=1e-12)


def test_parameters_that_overlap_in_memory_are_named() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(4, 3)
            self.w = nn.Parameter(self.l.weight.data[1:])

        def forward(self, x: Tensor) -> Tensor:
            return self.l(x) + (x @ self.w.T).sum(1, keepdim=True)

    with pytest.raises(ValueError, match=r"parameters 'w' and 'l.weight' share memory"):
        hessian(Sliced(), mean, [(X, Y)])
    flat, apart = torch.zeros(12), nn.Linear(4, 2)
    apart.weight.data, apart.bias.data = flat[:8].view(2, 4), flat[8:10]
    assert hessian(apart, mean, [(X, Y % 2)]).shape == (10, 10)


def test_weights_kept_by_parametrize_are_refused() -> None:
    model = parametrizations.orthogonal(nn.Linear(4, 3))
    with parametrize.cached(), pytest.raises(ValueError, match=r"parametrize.cached\(\) is on"):
        hessian(model, mean, [(X, Y)])


def test_a_relu_at_zero_everywhere_is_told_as_a_kink() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(ValueError, match="of a kink at a value that comes often, such as zero behind weights"):
        hessian(model, mean, [(X, Y)])
