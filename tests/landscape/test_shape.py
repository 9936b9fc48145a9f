import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from descent.landscape.directions import Direction, network_at, random_direction, weight_matrices
from descent.landscape.shape import (
    HessianExtremes,
    descent_centre_cosine,
    nonconvexity_ratio,
    plane_nonconvexity,
    star_shaped_share,
)
from descent.landscape.surface import LossSurface
from descent.models.flat_weights import Layout, flatten, unflatten
from descent.models.image_networks import mlp

FAR = 1e6  # added to a loss: its logarithm is then linear in it, and difference quotients of quadratics are exact
ODD, EVEN = np.linspace(-5, 5, 6), np.linspace(-4, 4, 5)  # lines that never meet: no ties


def drawn(height: np.ndarray, alpha: np.ndarray = EVEN, beta: np.ndarray = ODD) -> LossSurface:
    return LossSurface(alpha, beta, {"loss": height}, 1, "float32")


def lines(alpha: np.ndarray = EVEN, beta: np.ndarray = ODD) -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(alpha, beta, indexing="ij")


def test_a_round_bowl_leads_to_its_centre_from_everywhere() -> None:
    a, b = lines(EVEN, EVEN)
    cosine = descent_centre_cosine(drawn(a**2 + b**2 + FAR, EVEN, EVEN))
    assert np.isnan(cosine[2, 2])
    np.testing.assert_allclose(np.delete(cosine.ravel(), 12), np.ones(24), atol=1e-4)
    assert star_shaped_share(drawn(a**2 + b**2 + FAR, EVEN, EVEN)) == 1
    assert star_shaped_share(drawn(FAR - a**2 - b**2, EVEN, EVEN)) == 0


def test_an_oval_bowl_leads_there_askew_on_any_grid() -> None:
    alpha, beta = np.array([-3.0, -1.0, 0.5, 4.0]), np.array([-2.0, -0.5, 1.0, 1.5, 7.0])  # neither even nor equal
    a, b = lines(alpha, beta)
    cosine = descent_centre_cosine(drawn(a**2 + 9 * b**2 + FAR, alpha, beta))
    expected = (a**2 + 9 * b**2) / np.hypot(a, 9 * b) / np.hypot(a, b)
    np.testing.assert_allclose(cosine, expected, atol=1e-4)
    assert expected.min() < 0.7
    assert star_shaped_share(drawn(a**2 + 9 * b**2 + FAR, alpha, beta)) == 1


def test_a_saddle_leads_to_its_centre_from_where_it_rises() -> None:
    a, b = lines()
    assert star_shaped_share(drawn(a**2 - b**2 + FAR)) == 12 / 30  # where |a| > |b|
    a, b = lines(ODD, ODD)
    assert star_shaped_share(drawn(a * b + FAR, ODD, ODD)) == 1 / 2  # the same saddle, turned: two quadrants of four


def test_a_bowl_elsewhere_leads_to_the_centre_from_outside_thales_circle() -> None:
    a, b = lines()
    bowl = drawn((a - 2) ** 2 + (b - 1.5) ** 2 + FAR)
    outside = a * (a - 2) + b * (b - 1.5) > 0  # the circle over the way from the centre to the bowl's
    assert star_shaped_share(bowl) == outside.mean()
    assert not outside.all()
    assert star_shaped_share(bowl, (2, 1.5)) == 1


def test_a_hole_takes_its_neighbours_with_it_and_no_more() -> None:
    a, b = lines(ODD, ODD)
    for value in (np.nan, np.inf, 0.0):
        height = a**2 + b**2 + FAR
        height[2, 3] = value
        cosine = descent_centre_cosine(drawn(height, ODD, ODD))
        missing = np.zeros((6, 6), bool)
        missing[[1, 2, 3, 2, 2], [3, 3, 3, 2, 4]] = True
        missing[0, 3] = missing[2, 5] = True  # the edges look two lines inwards
        np.testing.assert_array_equal(np.isnan(cosine), missing)
        assert star_shaped_share(drawn(height, ODD, ODD)) == 1


def test_flat_and_narrow_surfaces_say_nothing() -> None:
    flat = drawn(np.ones((5, 6)))
    assert np.isnan(descent_centre_cosine(flat)).all()
    with pytest.raises(ValueError, match="none of 30 grid points has a finite gradient"):
        star_shaped_share(flat)
    with pytest.raises(ValueError, match=r"a grid of \(2, 6\): expected at least 3 lines in each direction"):
        descent_centre_cosine(drawn(np.ones((2, 6)), EVEN[:2]))


def test_nonconvexity_is_the_share_of_negative_curvature() -> None:
    nan = np.nan
    smallest = [-1.0, 0.0, 2.0, -3.0, -4.0, -1.0, 0.0, nan, -1.0, nan]
    largest = [4.0, 5.0, 5.0, 1.5, -2.0, 0.0, 0.0, 1.0, nan, nan]
    expected = [0.25, 0, 0, 2, 1, 1, 0, nan, nan, nan]
    np.testing.assert_array_equal(nonconvexity_ratio(smallest, largest), expected)
    assert not np.signbit(nonconvexity_ratio([0.0], [1.0])).any()


def task(tolerance: float = 1e-10) -> tuple[HessianExtremes, nn.Module, list[Direction], Tensor, Tensor]:
    model = mlp((3,), [5], 3, 0).double().eval()  # 30 weights, 8 biases: too many for a dense solution
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (12,), generator=generator)
    directions = [random_direction(model, 0, name) for name in ("alpha", "beta")]
    return HessianExtremes(model, inputs, targets, directions, tolerance), model, directions, inputs, targets


def extremes(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    named = weight_matrices(model)
    layout = Layout.of(named.items())

    def loss(vector: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, unflatten(vector, layout), (inputs,))
        return nn.functional.cross_entropy(logits, targets)

    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flatten(named)))
    return values[0].item(), values[-1].item()


def test_curvature_is_the_dense_hessians_of_the_matrices() -> None:
    curvature, model, directions, inputs, targets = task()
    points = [[0.0, 0.0], [0.7, -0.4], [-2.0, 1.0]]
    found = curvature(points)
    for row, point in enumerate(points):
        smallest, largest = extremes(network_at(model, directions, point), inputs, targets)
        assert smallest < 0 < largest
        assert found["smallest"][row] == pytest.approx(smallest, abs=1e-8 * largest)
        assert found["largest"][row] == pytest.approx(largest, rel=1e-8)
    assert (found["residual"] < 1e-9).all()
    np.testing.assert_array_equal(found["converged"], np.ones(3))
    again = pickle.loads(pickle.dumps(curvature))(points[1])  # noqa: S301 (our own)
    for name, values in again.items():
        np.testing.assert_array_equal(values, found[name][1:2])


def test_curvature_is_within_its_tolerance_and_leaves_the_model() -> None:
    curvature, model, directions, inputs, targets = task(1e-2)
    model.train()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    found = curvature([[0.7, -0.4]])
    smallest, largest = extremes(network_at(model, directions, [0.7, -0.4]), inputs, targets)
    assert found["converged"][0]
    assert abs(found["smallest"][0] - smallest) < 1e-2 * largest
    assert abs(found["largest"][0] - largest) < 1e-2 * largest
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_curvature_at_no_point_and_at_points_of_another_width() -> None:
    curvature = task()[0]
    found = curvature(np.zeros((0, 2)))
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(curvature([0, 0]), (0,))
    with pytest.raises(ValueError, match=r"point of shape \(1,\): expected \(2,\), one a direction"):
        curvature([[1.0]])


def test_where_loss_or_hessian_is_not_finite_curvature_is_nan() -> None:
    curvature = task()[0]
    found = curvature([[1e308, 1e308], [0, 0]])
    assert np.isfinite(curvature([[0, 0]])["largest"][0])
    assert found["converged"].tolist() == [0, 1]
    for name in ("smallest", "largest", "residual"):
        assert np.isnan(found[name]).tolist() == [True, False]
    steep = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        steep[0].weight.fill_(1e25)  # in float32 its square, a second derivative, is infinite; the loss is not
        steep[1].weight.fill_(1e-25)
    still = {name: torch.zeros_like(weight) for name, weight in weight_matrices(steep).items()}
    inputs = torch.tensor([[1.0, 0.5], [0.5, 2.0], [1.5, 1.0]])
    found = HessianExtremes(steep, inputs, torch.tensor([0, 1, 0]), [still])([[0.0]])
    assert np.isnan(found["largest"]).all()
    assert not found["converged"].any()


def test_other_errors_of_a_curvature_are_not_hidden() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
    direction = random_direction(model, 0, "alpha")
    with pytest.raises(ValueError, match="BatchNorm1d '1' uses each batch's own"):
        HessianExtremes(model, torch.ones(4, 3), torch.tensor([0, 1, 0, 1]), [direction])([[0.0]])


@pytest.mark.parametrize("turn", [0.0, 0.7])
def test_curvature_within_the_plane_is_that_of_a_quadratic(turn: float) -> None:
    a, b = lines()
    x, y = np.cos(turn) * a + np.sin(turn) * b, np.cos(turn) * b - np.sin(turn) * a
    for low, expected in ((-3.0, 0.75), (0.5, 0.0), (4.0, 0.0)):
        found = plane_nonconvexity(drawn(4 * x**2 + low * y**2 + a - 2 * b))
        assert found.shape == (len(EVEN) - 2, len(ODD) - 2)
        np.testing.assert_allclose(found, np.full(found.shape, expected), atol=1e-12)
    np.testing.assert_array_equal(plane_nonconvexity(drawn(-(a**2) - b**2)), np.ones((3, 4)))


def test_curvature_within_the_plane_is_unknown_beside_a_hole_and_on_an_uneven_grid() -> None:
    a, b = lines()
    height = a**2 + b**2
    height[0, 0] = np.inf
    found = plane_nonconvexity(drawn(height))
    assert np.isnan(found[0, 0])
    assert np.isfinite(found.ravel()[1:]).all()
    uneven = np.array([0.0, 1.0, 3.0])
    with pytest.raises(ValueError, match="unequal steps"):
        plane_nonconvexity(drawn(np.ones((3, 3)), uneven, uneven))
    with pytest.raises(ValueError, match=r"a grid of \(2, 2\): expected at least 3"):
        plane_nonconvexity(drawn(np.ones((2, 2)), uneven[:2], uneven[:2]))
