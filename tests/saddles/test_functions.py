import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from torch.func import grad, jacrev, vmap

from descent.repro.seeding import numpy_generator
from descent.saddles.functions import classic_saddle, monkey_saddle, quadratic, scalar_field

rng = numpy_generator(0, "surfaces")
rotation = ortho_group.rvs(4, random_state=rng)
SURFACES = [
    classic_saddle(),
    monkey_saddle(),
    scalar_field(lambda p: (p[0] ** 2 + p[1] - 11) ** 2 + (p[0] + p[1] ** 2 - 7) ** 2, 2, "Himmelblau"),
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


def test_the_two_saddles_known_by_name():
    origin = torch.zeros(2)
    assert classic_saddle().hessian(origin).tolist() == [[2, 0], [0, -2]]
    assert not monkey_saddle().hessian(origin).any()
    angles = torch.arange(6) * torch.pi / 3  # x^3 - 3xy^2 = r^3 cos 3t: up and down by turns
    ring = torch.stack([angles.cos(), angles.sin()], -1).double()
    np.testing.assert_allclose(monkey_saddle().value(ring), [1, -1, 1, -1, 1, -1], atol=1e-6)
    assert float(classic_saddle().value(torch.tensor([3.0, 2.0]))) == 5  # 9 - 4: y is the way down


def test_quadratic_has_the_curvatures_it_was_given_in_whatever_basis():
    h = np.array([1, 0.3, 0.1, 0.02, -0.02, -0.02])
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


def test_a_users_function_has_the_derivatives_of_its_closed_form():
    def gradient(p: torch.Tensor) -> torch.Tensor:
        x, y, a, b = p[..., 0], p[..., 1], p[..., 0] ** 2 + p[..., 1] - 11, p[..., 0] + p[..., 1] ** 2 - 7
        return torch.stack([4 * x * a + 2 * b, 2 * a + 4 * y * b], -1)

    def hessian(p: torch.Tensor) -> torch.Tensor:
        x, y, a, b = p[..., 0], p[..., 1], p[..., 0] ** 2 + p[..., 1] - 11, p[..., 0] + p[..., 1] ** 2 - 7
        rows = [8 * x * x + 4 * a + 2, 4 * (x + y)], [4 * (x + y), 8 * y * y + 4 * b + 2]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    surface = SURFACES[2]
    for leading in [(), (5, 7), (3,)]:
        points = torch.from_numpy(2 * rng.standard_normal((*leading, 2)))
        torch.testing.assert_close(surface.gradient(points), gradient(points))
        torch.testing.assert_close(surface.hessian(points), hessian(points))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: monkey_saddle().value(torch.zeros(5, 3)),
            r"points of shape \(5, 3\): expected \(\.\.\., 2\), monkey saddle",
        ),
        (lambda: classic_saddle().hessian(torch.tensor(1.0)), r"points of shape \(\): expected \(\.\.\., 2\)"),
        (lambda: quadratic([1.0, np.nan]), r"curvatures=\[1\.0, nan\]: expected \(n,\), all finite"),
        (lambda: quadratic([1.0, 2.0], np.eye(3)), r"rotation of shape \(3, 3\): expected \(2, 2\) or \(m, 2, 2\)"),
        (lambda: quadratic([1.0, 2.0], 2 * np.eye(2)), "expected orthogonal matrices"),
        (
            lambda: scalar_field(lambda p: p, 3, "f"),
            r"f: the function returned torch\.float64 \(3,\): expected a torch",
        ),
        (lambda: scalar_field(lambda p: p.sum().float(), 3, "f"), r"returned torch\.float32 \(\): expected"),
        (lambda: scalar_field(lambda p: 1.0, 3, "f"), "f: the function returned float: expected"),
        (lambda: scalar_field(lambda p: p @ torch.ones(4).double(), 3, "f"), r"fails on a point of shape \(3,\): "),
        (lambda: scalar_field(lambda p: p.sum(), 3, "f").value(torch.zeros(4)), r"expected \(\.\.\., 3\), f"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
