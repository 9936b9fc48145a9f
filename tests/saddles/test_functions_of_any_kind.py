"""Functions, points and optimisers that are not what they seem: the right value, or a sentence."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from descent.experiments.saddle_race import EscapeCourse
from descent.saddles import classic_saddle, find_critical_points, follow_optimiser, quadratic, scalar_field

FIELDS: dict[str, tuple[Any, str]] = {
    "a difference detached": (lambda p: (p[0] - p[1]).detach() * p[0], "its gradient is not its own"),
    "a ratio detached": (lambda p: (p[0] / p[1]).detach() * p.square().sum(), "its gradient is not its own"),
    "a square detached": (lambda p: (p[0].detach() * p[1]).square() * p[0], "its gradient is not its own"),
    "a factor drawn": (lambda p: p[0] * torch.rand(()), "another number each time"),
    "noise of numpy": (lambda p: p[0] * np.random.rand(), "another number each time"),  # noqa: NPY002
    "a branch": (lambda p: p[0] ** 2 if p[0] > 0 else -p[0], "fails on several points at once, by torch.vmap, which"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_functions_whose_derivatives_would_be_wrong_are_refused(case: str) -> None:
    function, message = FIELDS[case]
    with pytest.raises(ValueError, match=f"mine: .*{message}"):
        scalar_field(function, 2, "mine")


@pytest.mark.parametrize(
    "function", [lambda p: p.abs().sum(), lambda p: torch.where(p[0] > 0, p[0] ** 2, -p[0]), lambda p: p.log().sum()]
)
def test_kinks_pieces_and_borders_are_taken(function: Any) -> None:
    scalar_field(function, 2, "mine").gradient(torch.ones(3, 2))


class Renamed(torch.optim.LBFGS):
    pass


def descend(starts: Any, kind: Any = torch.optim.SGD, steps: Any = 3) -> Any:
    return follow_optimiser(classic_saddle(), starts, lambda tensors: kind(tensors, lr=0.1), steps)


TURNS = torch.eye(2, dtype=torch.float64).repeat(3, 1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: descend(np.ones((2, 2)), Renamed), "Renamed would mix 2 runs"),
        (lambda: descend(np.zeros((0, 2))), "starts: expected finite coordinates, at least one"),
        (lambda: descend([1.0, 2.0], steps=2.5), "steps=2.5: expected at least 1, a whole number"),
        (lambda: descend(np.ma.masked_equal([1.0, 2.0], 2)), "points is a masked array"),
        (lambda: find_critical_points(classic_saddle(), [1.0, 2], max_iterations=2.5), "max_iterations=2.5: expected"),
        (lambda: scalar_field(Tensor.sum, 2.0, "f"), "dimension=2.0: expected at least 1, a whole number"),
        (lambda: quadratic(np.array([1 + 1j, 2])), "curvatures is of type complex128"),
        (lambda: quadratic([1.0, 2], TURNS[0].numpy() * 1j), "rotation is of type complex128"),
        (
            lambda: quadratic([1.0, 2], TURNS).value(torch.zeros(2, 2)),
            r"points of shape \(2, 2\): expected \(..., 3, 2\)",
        ),
        (lambda: quadratic([1.0, 2], TURNS).hessian(torch.zeros(2)), r"points of shape \(2,\): expected \(..., 3, 2\)"),
        (lambda: find_critical_points(quadratic([1.0, 2], TURNS), [0.0, 1]), r"expected \(..., 3, 2\), one a rotation"),
        (lambda: EscapeCourse(2, 10.0, (0.1, 0.0), 2, 5, 0), r"distances=\(0.1, 0.0\): expected .* positive"),
        (lambda: EscapeCourse(2, 10.0, (np.nan,), 2, 5, 0), "distances=.* positive and finite"),
        (lambda: EscapeCourse(2, 10.0, (), 2, 5, 0), "distances=.*at least one"),
        (lambda: EscapeCourse(2, 10.0, (0.1,), 0, 5, 0), "runs=0: expected at least 1"),
        (lambda: EscapeCourse(2, 10.0, (0.1,), 2, 0, 0), "budget=0: expected at least 1"),
    ],
)
def test_other_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_batch_of_rotations_has_a_hessian_for_each() -> None:
    assert quadratic([1.0, 2], TURNS).hessian(torch.zeros(5, 3, 2)).shape == (5, 3, 2, 2)
