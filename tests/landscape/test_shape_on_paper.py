"""Second differences of a surface on grids whose steps differ, and the borders of what counts as flat."""

import numpy as np
import pytest

from descent.landscape.shape import descent_centre_cosine, nonconvexity_ratio, plane_nonconvexity, star_shaped_share
from descent.landscape.surface import LossSurface

EPS = 2.0**-52


def drawn(loss: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> LossSurface:
    return LossSurface(alpha, beta, {"loss": loss}, 1, "float32")


@pytest.mark.parametrize("steps", [(0.5, 3.0), (3.0, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize(
    ("form", "expected"), [((1.0, 2.0, 1.0), 1 / 3), ((3.0, 0.0, -1.5), 0.5), ((2.0, 1.0, 2.0), 0.0)]
)
def test_curvature_of_a_quadratic_form_whatever_the_steps(
    form: tuple[float, float, float], expected: float, steps: tuple[float, float]
) -> None:
    """(aa x^2 + 2 ab x y + bb y^2) / 2; the eigenvalues of 1, 2; 2, 1 are 3 and -1."""
    aa, ab, bb = form
    alpha, beta = steps[0] * np.arange(-2, 2), steps[1] * np.arange(-1, 4)
    x, y = np.meshgrid(alpha, beta, indexing="ij")
    found = plane_nonconvexity(drawn((aa * x**2 + 2 * ab * x * y + bb * y**2) / 2 + 3 * x - y, alpha, beta))
    np.testing.assert_allclose(found, np.full((2, 3), expected), atol=1e-12)


@pytest.mark.parametrize(("steps", "most"), [((1.0, 1.0), 16), ((0.5, 2.0), 8), ((2.0, 0.5), 8)])
def test_a_curvature_of_sixteen_roundings_is_flat(steps: tuple[float, float], most: int) -> None:
    """A loss of one, but k eps more in the middle: curvatures of -2 k eps / step^2, all of which floats hold exactly.

    Flat is what is within 16 eps (1 / a^2 + 1 / b^2): 2 k <= 32 for steps of one, 8 k <= 68 for the others.
    """
    for k, expected in ((most, 0.0), (most + 1, 1.0)):
        loss = np.ones((3, 3))
        loss[1, 1] += k * EPS
        axes = (step * np.arange(3) for step in steps)
        assert plane_nonconvexity(drawn(loss, *axes)).tolist() == [[expected]]


def test_a_step_across_the_way_to_the_centre_comes_no_nearer() -> None:
    """The loss falls along -alpha: three of eight points come nearer, on the line of alpha = 0 two neither."""
    axis = np.array([-1.0, 0.0, 1.0])
    surface = drawn(np.exp(axis)[:, None] * np.ones(3), axis, axis)
    half = 0.5**0.5
    np.testing.assert_allclose(
        descent_centre_cosine(surface), [[-half, -1, -half], [0, np.nan, 0], [half, 1, half]], atol=1e-12
    )
    assert star_shaped_share(surface) == 3 / 8


def test_a_loss_below_zero_has_no_logarithm() -> None:
    axis = np.array([-1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match=r"a loss of -1: expected none below zero"):
        descent_centre_cosine(drawn(np.outer(axis, np.ones(3)), axis, axis))


def test_one_eigenvalue_may_be_both_the_smallest_and_the_largest() -> None:
    assert nonconvexity_ratio([-2.0, 2.0], [-2.0, 2.0]).tolist() == [1, 0]
    with pytest.raises(ValueError, match="a smallest eigenvalue is above the largest"):
        nonconvexity_ratio([1.0], [0.5])
