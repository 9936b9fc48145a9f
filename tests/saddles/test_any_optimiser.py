"""Optimisers of torch that call the function themselves, and numbers that are none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import ASGD, LBFGS, SGD, Adadelta, Adafactor, Adam, Muon, RAdam, Rprop

from descent.repro import torch_generator
from descent.saddles import (
    classic_saddle,
    find_critical_points,
    follow_optimiser,
    monkey_saddle,
    quadratic,
    scalar_field,
)

ROSENBROCK = scalar_field(lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2, 2, "Rosenbrock")


def test_lbfgs_descends_as_a_plain_loop_does() -> None:
    """The loop of torch's own documentation, in which autograd gives the gradients."""
    point = torch.tensor([-1.0, 1.5], dtype=torch.float64, requires_grad=True)
    plain, expected = LBFGS([point], lr=0.5, max_iter=3), [[-1.0, 1.5]]

    def closure() -> Tensor:
        plain.zero_grad()
        loss = ROSENBROCK.value(point)
        loss.backward()
        return loss

    for _ in range(12):
        plain.step(closure)
        expected.append(point.tolist())
    path = follow_optimiser(ROSENBROCK, [-1.0, 1.5], lambda tensors: LBFGS(tensors, lr=0.5, max_iter=3), 12)
    np.testing.assert_allclose(path.points, expected, rtol=1e-12)
    np.testing.assert_allclose(
        path.values, [float(ROSENBROCK.value(torch.tensor(p, dtype=torch.float64))) for p in expected], rtol=1e-12
    )


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_finds_the_minimum_of_a_narrow_valley(search: str | None) -> None:
    path = follow_optimiser(ROSENBROCK, [-1.0, 1.5], lambda t: LBFGS(t, lr=1, line_search_fn=search), 30)
    np.testing.assert_allclose(path.points[-1], [1, 1], atol=1e-5)
    assert path.points.shape == (31, 2)
    assert path.gradient_norms[-1] < 1e-3


def test_lbfgs_on_a_quadratic_takes_newtons_step_in_its_second() -> None:
    """In one dimension its estimate of the curvature is the curvature: the second step ends at the minimum."""
    path = follow_optimiser(quadratic([4.0]), [3.0], lambda t: LBFGS(t, lr=1, max_iter=1), 3)
    # the first step has length min(1, 1 / |g|) |g| = 1
    np.testing.assert_allclose(path.points[:, 0], [3, 2, 0, 0], atol=1e-12)


@pytest.mark.parametrize("make", [lambda t: LBFGS(t, max_iter=1), LBFGS, lambda t: Muon(t), lambda t: Adafactor(t)])
def test_an_optimiser_that_mixes_runs_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"(LBFGS|Muon|Adafactor) would mix 2 runs: expected a call for each start"):
        follow_optimiser(ROSENBROCK, [[-1.0, 1.5], [0.0, 0.0]], make, 3)
    if make is LBFGS:
        assert follow_optimiser(ROSENBROCK, [[-1.0, 1.5]], make, 3).points.shape == (4, 1, 2)


@pytest.mark.parametrize("make", [SGD, Adam, RAdam, Rprop, ASGD, Adadelta])
def test_optimisers_that_treat_coordinates_alone_take_many_runs(make: Callable[..., Any]) -> None:
    starts = np.random.default_rng(0).standard_normal((4, 2))
    together = follow_optimiser(classic_saddle(), starts, lambda t: make(t, lr=1e-3), 5).points
    for number, start in enumerate(starts):
        alone = follow_optimiser(classic_saddle(), start, lambda t: make(t, lr=1e-3), 5).points
        np.testing.assert_allclose(together[:, number], alone, rtol=1e-12)


def test_an_optimiser_of_another_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="SGD does not hold the tensor that `optimiser` was given"):
        follow_optimiser(ROSENBROCK, [0.0, 0.0], lambda _: SGD([torch.ones(2, requires_grad=True)], lr=0.1), 3)


def test_noise_within_a_step_of_lbfgs_is_drawn_anew_for_each_evaluation() -> None:
    flat, seen = quadratic([0.0, 0.0]), []

    class Watched(LBFGS):
        def step(self, closure: Any) -> Any:
            for _ in range(3):
                closure()
                seen.append(self.param_groups[0]["params"][0].grad.clone())

    follow_optimiser(flat, [0.0, 0.0], Watched, 2, noise=0.5, generator=torch_generator(0, "noise"))
    assert len({tuple(gradient.tolist()) for gradient in seen}) == 9  # three steps are begun, the last is not kept


@pytest.mark.parametrize("number", [np.nan, np.inf, -1.0])
def test_noise_that_is_no_number_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match=f"noise={number}: expected 0, or a positive number and a generator"):
        follow_optimiser(ROSENBROCK, [0.0, 0.0], SGD, 3, noise=number, generator=torch.Generator())


COMPLEX = [[1j, 0], np.array([1 + 0j, 2]), torch.zeros(2, dtype=torch.complex128)]


@pytest.mark.parametrize("points", COMPLEX)
def test_complex_points_are_refused(points: Any) -> None:
    surface = monkey_saddle()
    calls = [
        lambda: surface.value(points),
        lambda: surface.gradient(points),
        lambda: surface.hessian(points),
        lambda: follow_optimiser(surface, points, SGD, 1),
        lambda: find_critical_points(surface, points),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="points are complex: expected real coordinates"):
            call()


def test_nan_is_handed_on_by_a_surface_and_refused_by_a_search() -> None:
    surface, nowhere = monkey_saddle(), torch.tensor([np.nan, 1.0], dtype=torch.float64)
    assert surface.value(nowhere).isnan()
    assert surface.gradient(nowhere).isnan().any()
    with pytest.raises(ValueError, match=r"starts\[0\]: monkey saddle has no finite gradient and Hessian there"):
        find_critical_points(surface, nowhere)
    with pytest.raises(ValueError, match="starts: expected finite coordinates"):
        follow_optimiser(surface, nowhere, SGD, 1)


@pytest.mark.parametrize("number", [np.nan, np.inf, 0.0, -1.0])
@pytest.mark.parametrize("name", ["tolerance", "longest_step"])
def test_a_search_with_limits_that_are_none_is_refused(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={number}.*expected positive numbers, not infinite"):
        find_critical_points(monkey_saddle(), [1.0, 1.0], **{name: number})


DETACHED: dict[str, Callable[[Tensor], Tensor]] = {
    "a factor": lambda p: (p.detach() * p).sum(),
    "all": lambda p: p.sum() * 0 + p.detach().square().sum(),
    "straight-through": lambda p: (p + (p.round() - p).detach()).square().sum(),
    "a number taken out": lambda p: p.sum() * p.detach()[0].item(),
}


@pytest.mark.parametrize("name", DETACHED)
def test_a_function_that_detaches_a_part_of_the_point_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match="mine: its gradient is not its own: expected a function that detaches no part"
    ):
        scalar_field(DETACHED[name], 3, "mine")


@pytest.mark.parametrize(
    "function", [lambda p: p.relu().sum(), lambda p: (p - 2).log().sum(), lambda p: (1e9 * p**2).sum(), torch.prod]
)
def test_kinks_other_places_and_large_numbers_are_taken(function: Callable[[Tensor], Tensor]) -> None:
    assert scalar_field(function, 3, "mine").dimension == 3
