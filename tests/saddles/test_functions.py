import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from torch.func import grad, jacrev, vmap

from descent.repro.seeding import numpy_generator
from descent.saddles.functions import (
    classic_saddle,
    classify,
    himmelblau,
    monkey_saddle,
    quadratic,
    rosenbrock,
    saddle_curvatures,
)

rng = numpy_generator(0, "surfaces")
rotation = ortho_group.rvs(4, random_state=rng)
SURFACES = [
    classic_saddle(),
    monkey_saddle(),
    himmelblau(),
    rosenbrock(),
    rosenbrock(a=2, b=7),
    quadratic([3.0, -2.0, 0.5]),
    quadratic([3.0, -2.0, 0.5, 1.0], rotation),
]


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
def test_closed_forms_agree_with_automatic_differentiation(surface):
    points = torch.from_numpy(2 * rng.standard_normal((20, surface.dimension)))
    torch.testing.assert_close(surface.gradient(points), vmap(grad(surface.value))(points), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(
        surface.hessian(points), vmap(jacrev(grad(surface.value)))(points), rtol=1e-12, atol=1e-11
    )


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
@pytest.mark.parametrize("leading", [(), (1,), (5, 7)])
def test_every_leading_dimension_is_a_batch(surface, leading):
    n = surface.dimension
    points = torch.from_numpy(rng.standard_normal((*leading, n)))
    value, gradient, curvature = surface.value(points), surface.gradient(points), surface.hessian(points)
    assert (value.shape, gradient.shape, curvature.shape) == (leading, (*leading, n), (*leading, n, n))
    last = (-1,) * len(leading)
    torch.testing.assert_close(value[last], surface.value(points[last]))
    torch.testing.assert_close(gradient[last], surface.gradient(points[last]))
    torch.testing.assert_close(curvature[last], surface.hessian(points[last]))
    assert {value.dtype, gradient.dtype, curvature.dtype} == {torch.float64}


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
def test_stated_critical_points_are_what_they_are_said_to_be(surface):
    for one in surface.critical_points:
        spectrum = np.linalg.eigvalsh(surface.hessian(torch.from_numpy(one.point)).numpy())
        assert np.linalg.norm(surface.gradient(torch.from_numpy(one.point)).numpy()) < 1e-12
        assert float(surface.value(torch.from_numpy(one.point))) == one.value
        np.testing.assert_allclose(one.eigenvalues, spectrum, atol=1e-12)
        assert one.index == (spectrum < -1e-8).sum()


def test_the_two_saddles_known_by_name():
    (classic,), (monkey,) = classic_saddle().critical_points, monkey_saddle().critical_points
    assert (classic.kind, classic.index, classic.eigenvalues.tolist()) == ("saddle", 1, [-2, 2])
    assert (monkey.kind, monkey.index, monkey.eigenvalues.tolist()) == ("degenerate saddle", 0, [0, 0])
    angles = torch.arange(6) * torch.pi / 3  # x^3 - 3xy^2 = r^3 cos 3t: up and down by turns
    ring = torch.stack([angles.cos(), angles.sin()], -1).double()
    np.testing.assert_allclose(monkey_saddle().value(ring), [1, -1, 1, -1, 1, -1], atol=1e-6)
    assert float(classic_saddle().value(torch.tensor([3.0, 2.0]))) == 5  # 9 - 4: y is the way down


def test_quadratic_has_the_curvatures_it_was_given_in_whatever_basis():
    h = saddle_curvatures(6, 2, 50)
    batch = ortho_group.rvs(6, size=3, random_state=rng)
    surface = quadratic(h, batch)
    points = torch.from_numpy(rng.standard_normal((5, 3, 6)))
    for row in range(3):
        alone = quadratic(h, batch[row])
        torch.testing.assert_close(surface.value(points)[:, row], alone.value(points[:, row]))
        torch.testing.assert_close(surface.gradient(points)[:, row], alone.gradient(points[:, row]))
    spectra = np.linalg.eigvalsh(surface.hessian(points).numpy())
    np.testing.assert_allclose(spectra, np.broadcast_to(np.sort(h), (5, 3, 6)), atol=1e-14)
    along = torch.from_numpy(batch[1][2])  # row i of Q is the direction of curvature h_i
    assert float(quadratic(h, batch[1]).value(along)) == pytest.approx(h[2] / 2)
    assert (surface.critical_points[0].index, surface.critical_points[0].kind) == (2, "saddle")


@pytest.mark.parametrize(
    ("curvatures", "index", "kind"),
    [
        ([2.0, 1.0], 0, "minimum"),
        ([-2.0, -1.0], 2, "maximum"),
        ([1.0, 0.0], 0, "degenerate"),
        ([-1.0, 0.0], 1, "degenerate"),
        ([-1.0, 0.0, 2.0], 1, "degenerate saddle"),
        ([0.0], 0, "degenerate"),
        ([1e3, -1e-6], 0, "degenerate"),
        ([1e-9, -1e-10], 0, "degenerate"),
        ([1e3, -1e-4], 1, "saddle"),
    ],
)
def test_kinds(curvatures, index, kind):
    assert classify(curvatures) == (index, kind)
    (origin,) = quadratic(curvatures).critical_points
    assert (origin.index, origin.kind) == (index, kind)


def test_the_tolerance_decides_which_eigenvalue_is_zero():
    assert classify([1.0, -1e-3], tolerance=1e-2) == (0, "degenerate")
    assert classify([1.0, -1e-3], tolerance=1e-4) == (1, "saddle")


@pytest.mark.parametrize(("dimension", "index", "condition"), [(2, 1, 49.0), (10, 3, 100.0), (10, 9, 1.0), (5, 4, 8.0)])
def test_saddle_curvatures(dimension, index, condition):
    h = saddle_curvatures(dimension, index, condition)
    assert h.shape == (dimension,)
    assert (h < 0).sum() == index
    assert np.abs(h).max() / np.abs(h).min() == pytest.approx(condition, rel=1e-14)
    ratios = h[1 : dimension - index] / h[: dimension - index - 1]
    np.testing.assert_allclose(ratios, ratios[:1].repeat(len(ratios)))


def test_himmelblau_has_nine_critical_points_and_no_more():
    points = himmelblau().critical_points
    assert [one.kind for one in points] == ["minimum"] * 4 + ["saddle"] * 4 + ["maximum"]
    # Two cubics meet in at most nine points (Bezout), and these nine differ.
    x = np.array([one.point for one in points])
    assert (np.linalg.norm(x[:, None] - x, axis=-1) + 9 * np.eye(9)).min() > 0.5
    np.testing.assert_allclose([one.value for one in points[:4]], 0, atol=1e-25)
    assert np.abs(x - [3, 2]).max(axis=1).min() < 1e-14
    np.testing.assert_allclose(x[-1], [-0.270845, -0.923039], atol=1e-6)  # the maximum as tables print it
    assert points[-1].value == pytest.approx(181.617, abs=1e-3)


def test_rosenbrock_has_its_minimum_where_a_puts_it():
    (one,) = rosenbrock(a=2, b=7).critical_points
    assert (one.point.tolist(), one.value, one.kind) == ([2, 4], 0, "minimum")
    (usual,) = rosenbrock().critical_points
    assert np.prod(usual.eigenvalues) == pytest.approx(400)  # det H = 4b at the minimum


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: himmelblau().value(torch.zeros(5, 3)),
            r"points of shape \(5, 3\): expected \(\.\.\., 2\), Himmelblau",
        ),
        (lambda: classic_saddle().hessian(torch.tensor(1.0)), r"points of shape \(\): expected \(\.\.\., 2\)"),
        (lambda: saddle_curvatures(4, 4, 10), "index=4: expected 1 to 3, below the dimension"),
        (lambda: saddle_curvatures(4, 0, 10), "index=0: expected 1 to 3"),
        (lambda: saddle_curvatures(4, 1, 0.5), r"condition=0\.5: expected at least 1"),
        (lambda: saddle_curvatures(4, 1, np.inf), "condition=inf: expected at least 1, and finite"),
        (lambda: quadratic([1.0, np.nan]), r"curvatures=\[1\.0, nan\]: expected \(n,\), all finite"),
        (lambda: quadratic([1.0, 2.0], np.eye(3)), r"rotation of shape \(3, 3\): expected \(2, 2\) or \(m, 2, 2\)"),
        (lambda: quadratic([1.0, 2.0], 2 * np.eye(2)), "expected orthogonal matrices"),
        (lambda: rosenbrock(b=0), "b=0: expected a positive number"),
        (lambda: classify([]), r"eigenvalues=\[\]: expected at least one"),
        (lambda: classify([1.0, np.inf]), "expected at least one, all finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
