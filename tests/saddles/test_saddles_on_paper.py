"""Values on paper and borders, for surfaces that are made within the test."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from descent.saddles import (
    classic_saddle,
    find_critical_points,
    follow_optimiser,
    monkey_saddle,
    quadratic,
    scalar_field,
)

POINTS = [[2.0, 3.0], [1.0, 0.0], [-1.0, 2.0]]


def test_the_monkey_saddle_on_paper() -> None:
    surface, points = monkey_saddle(), torch.tensor(POINTS)
    assert surface.value(points).tolist() == [8 - 54, 1, -1 + 12]
    assert surface.gradient(points).tolist() == [[12 - 27, -36], [3, 0], [3 - 12, 12]]
    assert surface.hessian(points).tolist() == [
        [[12, -18], [-18, -12]], [[6, 0], [0, -6]], [[-6, -12], [-12, 6]],
    ]  # fmt: skip


def test_the_classic_saddle_on_paper() -> None:
    surface, points = classic_saddle(), torch.tensor(POINTS)
    assert surface.value(points).tolist() == [4 - 9, 1, 1 - 4]
    assert surface.gradient(points).tolist() == [[4, -6], [2, 0], [-2, -4]]
    assert surface.hessian(points).tolist() == [[[2, 0], [0, -2]]] * 3


@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 3)])
def test_ones_own_function_on_paper(leading: tuple[int, ...]) -> None:
    """x^2 y + z, whose Hessian depends on the point."""
    surface = scalar_field(lambda p: p[0] ** 2 * p[1] + p[2], 3, "mine")
    points = torch.arange(1.0, 1 + 3 * int(np.prod(leading))).reshape(*leading, 3)
    for place in np.ndindex(leading):
        x, y, z = points[place].tolist()
        assert surface.value(points)[place] == x * x * y + z
        assert surface.gradient(points)[place].tolist() == [2 * x * y, x * x, 1]
        assert surface.hessian(points)[place].tolist() == [[2 * y, 2 * x, 0], [2 * x, 0, 0], [0, 0, 0]]


def test_a_rotation_of_whole_numbers_turns() -> None:
    """Row 0 of Q is the second axis, so that the curvature along it is the first one."""
    surface = quadratic([1, 4], [[0, 1], [-1, 0]])
    assert surface.hessian(torch.zeros(2)).tolist() == [[4, 0], [0, 1]]


@pytest.mark.parametrize(("off", "taken"), [(1e-11, True), (1e-9, False), (4e-6, False)])
def test_a_rotation_is_orthogonal_within_1e_10(off: float, taken: bool) -> None:
    rotation = (1 + off) * np.eye(2)  # Q Q^T is off by twice as much
    if taken:
        assert quadratic([1.0, 2.0], rotation).dimension == 2
    else:
        with pytest.raises(ValueError, match="rotation: expected orthogonal matrices"):
            quadratic([1.0, 2.0], rotation)


@pytest.mark.parametrize("curvatures", [[], [[1.0, 2.0], [3.0, 4.0]], 1.0])
def test_curvatures_are_a_row_of_numbers(curvatures: object) -> None:
    with pytest.raises(ValueError, match=r"curvatures=.*: expected \(n,\), all finite"):
        quadratic(curvatures)  # type: ignore[arg-type]


def test_a_kink_at_the_place_of_the_probe_is_taken() -> None:
    """Functions of one coordinate are probed at 0.13, where the slope of these is 0 on one side and 1 on the other."""
    for height in (0.0, 100.0):
        surface = scalar_field(lambda p, height=height: height + (p - 0.13).relu().sum(), 1, "kink")
        assert surface.gradient(torch.tensor([1.0])).tolist() == [1]


def least_refused(height: float) -> float:
    """By bisection, the least slope that a function of such a height may not hide, to a hundredth."""

    def hides(slope: float) -> bool:
        def function(p: Tensor) -> Tensor:
            return height + slope * p.detach().sum() + 0 * p.sum()

        try:
            scalar_field(function, 1, "mine")
        except ValueError:
            return False
        return True

    low, high = 1e-8, 1e-3
    while high > 1.01 * low:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if hides(middle) else (low, middle)
    return high


def test_a_hidden_slope_is_seen_down_to_a_millionth_of_one_plus_the_value() -> None:
    flat = least_refused(0.0)
    assert 1e-7 < flat < 1e-5
    assert least_refused(10.0) / flat == pytest.approx(11, rel=0.03)
    assert least_refused(-10.0) / flat == pytest.approx(11, rel=0.03)


def test_a_number_drawn_is_seen_however_small() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="mine: the function returns another number each time"):
        scalar_field(lambda p: p.sum() + 1e-9 * torch.rand((), dtype=p.dtype, generator=generator), 1, "mine")


# --- the search


def test_a_gradient_as_small_as_the_tolerance_has_converged() -> None:
    found = find_critical_points(classic_saddle(), [0.5, 0.0], tolerance=1.0)  # the gradient is (1, 0)
    assert found.iterations.tolist() == [0]
    assert found.converged.tolist() == [True]
    assert found.points.tolist() == [[0.5, 0.0]]


def test_where_nothing_curves_the_search_goes_down() -> None:
    surface = scalar_field(lambda p: p[0] + p[1] ** 2, 2, "tilted valley")
    found = find_critical_points(surface, [0.0, 0.0], max_iterations=1)
    np.testing.assert_allclose(found.points, [[-0.5, 0.0]], atol=1e-6)  # the longest step, in the direction of -x
    assert found.iterations.dtype == np.int64


def test_on_a_plane_the_search_ends_at_numbers() -> None:
    found = find_critical_points(scalar_field(lambda p: p.sum(), 2, "plane"), [1.0, 1.0], max_iterations=3)
    assert np.isfinite(found.points).all()
    np.testing.assert_allclose(found.gradient_norms, np.sqrt(2))


# --- the path


def descend(tensors: list[Tensor]) -> SGD:
    return SGD(tensors, lr=0.25)


def test_a_path_in_three_dimensions_on_paper() -> None:
    path = follow_optimiser(quadratic([1.0, 2.0, 4.0]), [1.0, 1.0, 1.0], descend, 1)
    assert path.points.tolist() == [[1, 1, 1], [0.75, 0.5, 0]]
    assert path.values.tolist() == [3.5, (0.75**2 + 2 * 0.25) / 2]
    np.testing.assert_allclose(path.gradient_norms, [21**0.5, (0.75**2 + 1) ** 0.5], rtol=1e-15)


@pytest.mark.parametrize(("function", "start"), [(lambda p: p.log().sum(), 0.0), (lambda p: p.sigmoid().sum(), np.inf)])
def test_a_start_is_finite_and_so_is_its_value(function: Callable[[Tensor], Tensor], start: float) -> None:
    with pytest.raises(ValueError, match="starts: expected finite coordinates, at least one, and finite values of f"):
        follow_optimiser(scalar_field(function, 1, "f"), [start], descend, 1)
