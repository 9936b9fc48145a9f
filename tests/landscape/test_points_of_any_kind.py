"""Points, grids and scales that are no plain array of ordinary numbers: the right value, or a sentence."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from descent.landscape import Evaluator, loss_surface, network_at, plane_nonconvexity, random_direction
from descent.landscape.directions import rescale_direction
from descent.landscape.shape import nonconvexity_ratio
from descent.landscape.surface import LossSurface, plane_grid, recompute_points

X, Y = torch.eye(4), torch.tensor([0, 1, 2, 0])
MODEL = nn.Linear(4, 3)
PLANE = [random_direction(MODEL, 0, name) for name in ("alpha", "beta")]


def task(**options: Any) -> Evaluator:
    return Evaluator(MODEL, X, Y, PLANE, precision="float32", **options)


@pytest.mark.parametrize(
    "points",
    [torch.ones(1, 2, requires_grad=True), torch.ones(1, 2).bfloat16(), torch.ones(1, 2).to_sparse(), [[1, 1]]],
)
def test_tensors_of_any_kind_are_points(points: Any) -> None:
    assert task()(points)["loss"] == task()(np.ones((1, 2)))["loss"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: task()(np.array([[1 + 1j, 0]])), "points is of type complex128"),
        (lambda: task()(np.ma.masked_equal([[5.0, 0]], 5)), "points is a masked array"),
        (lambda: network_at(MODEL, PLANE, np.array([1j, 0])), "point is of type complex128"),
        (lambda: plane_grid(np.array([1j]), [0.0]), "alpha is of type complex128"),
        (lambda: loss_surface(task(), 0.0, [0.0, 1]), r"alpha of shape \(\): expected"),
        (lambda: loss_surface(task(), [0.0, 1], [[0.0]]), r"beta of shape \(1, 1\): expected"),
        (lambda: task(batch=2.5), "batch=2.5: expected at least 1 example at a time, a whole number"),
        (lambda: task(batch=float("nan")), "batch=nan: expected at least 1"),
        (lambda: Evaluator(MODEL, X, Y, iter(PLANE)), "directions is empty or one alone"),
        (lambda: Evaluator(MODEL, X, Y, None), "directions is empty or one alone"),
        (lambda: Evaluator(lambda x: x, X, Y, PLANE), "model is a function: expected a torch.nn.Module"),
        (lambda: recompute_points(task(), loss_surface(task(), [0, 1], [0, 1]), 0, 2.0), "share=2.0: expected 0 to 1"),
        (lambda: recompute_points(task(), loss_surface(task(), [0, 1], [0, 1]), 0, np.nan), "share=nan"),
        (lambda: rescale_direction({"x": X}, {"y": X}, "filter"), r"'x' has shapes \(4, 4\) and none"),
        (lambda: rescale_direction({"x": X}, {"x": X[:2]}, "filter"), r"'x' has shapes \(4, 4\) and \(2, 4\)"),
        (lambda: nonconvexity_ratio(5, -2), "a smallest eigenvalue is above the largest"),
        (lambda: random_direction(MODEL, 1.5, "a"), "seed=1.5: expected a non-negative integer"),
    ],
)
def test_other_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-10, 1.0, 1e25, 1e30])
def test_a_direction_has_the_norms_of_the_filters_at_any_scale(scale: float) -> None:
    weights, drawn = torch.full((2, 4), scale), torch.tensor([[1.0, 2, 2, 0], [0, 0, 0, 0]])
    expected = torch.tensor([[2.0, 4, 4, 0], [0, 0, 0, 0]]) / 3 * scale
    torch.testing.assert_close(
        rescale_direction({"x": drawn}, {"x": weights}, "filter")["x"], expected, atol=0, rtol=1e-6
    )
    one = rescale_direction({"x": scale * drawn[:1]}, {"x": torch.full((1, 4), 1.5)}, "layer")["x"]
    torch.testing.assert_close(one, drawn[:1], rtol=1e-5, atol=0)


def test_a_direction_is_the_same_under_another_default_format() -> None:
    plain = random_direction(MODEL, 0, "alpha")["weight"]
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(random_direction(MODEL, 0, "alpha")["weight"], plain)
    finally:
        torch.set_default_dtype(torch.float32)


def surface(alpha: Any, beta: Any, loss: Any) -> LossSurface:
    return LossSurface(np.asarray(alpha, float), beta, {"loss": loss}, 1, "float32")


def test_flat_and_linear_losses_are_not_nonconvex() -> None:
    axis = np.linspace(-1, 1, 7)
    for loss in (np.full((7, 7), 0.7), 1 + 0.3 * axis[:, None] + 0.1 * axis, 5 - 1e-3 * axis[:, None] + 0 * axis):
        np.testing.assert_array_equal(plane_nonconvexity(surface(axis, axis, loss)), 0)
    saddle = 1 + axis[:, None] ** 2 - 0.25 * axis**2
    np.testing.assert_allclose(plane_nonconvexity(surface(axis, axis, saddle)), 0.25)
    assert nonconvexity_ratio(0, 0) == 0
    assert nonconvexity_ratio(-1, 0) == 1


def test_steps_that_are_small_and_unequal_are_seen() -> None:
    small, equal = np.array([0, 1e-9, 5e-9]), np.array([0, 1e-9, 2e-9])
    with pytest.raises(ValueError, match="unequal steps"):
        plane_nonconvexity(surface(small, equal, np.ones((3, 3))))
    with pytest.raises(ValueError, match="steps of zero"):
        plane_nonconvexity(surface([0, 0, 0], equal, np.ones((3, 3))))
    bowl = 1 + (equal[:, None] ** 2 - equal**2) * 1e18
    np.testing.assert_allclose(plane_nonconvexity(surface(equal, equal, bowl)), 1)


def test_lists_are_values_of_a_surface() -> None:
    found = LossSurface([0.0, 1.0], [0.0, 1.0], {"loss": [[1.0, 2.0], [3.0, 4.0]]}, 1, "float32")
    assert found.loss.sum() == 10
