import numpy as np
import pytest
import torch

from descent.repro.seeding import numpy_generator
from descent.saddles.critical import as_critical_points, distinct_points, find_critical_points, scalar_field
from descent.saddles.functions import classic_saddle, himmelblau, monkey_saddle, quadratic

rng = numpy_generator(0, "critical")


def tanh_net(inputs: int, hidden: int, outputs: int, decay: float, rng: np.random.Generator):
    """Mean cross-entropy of a small net on random data plus decay / 2 |theta|^2, as a surface."""
    x = torch.from_numpy(rng.standard_normal((20, inputs)))
    y = torch.from_numpy(rng.integers(outputs, size=20))
    shapes = [(inputs, hidden), (hidden,), (hidden, outputs), (outputs,)]
    sizes = [int(np.prod(shape)) for shape in shapes]

    def loss(theta: torch.Tensor) -> torch.Tensor:
        parts = [part.reshape(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True)]
        logits = torch.tanh(x @ parts[0] + parts[1]) @ parts[2] + parts[3]
        return torch.nn.functional.cross_entropy(logits, y) + decay / 2 * theta @ theta

    return scalar_field(loss, sum(sizes), "net")


def test_a_users_function_has_the_derivatives_of_its_closed_form():
    known = himmelblau()
    found = scalar_field(lambda p: (p[0] ** 2 + p[1] - 11) ** 2 + (p[0] + p[1] ** 2 - 7) ** 2, 2, "by hand")
    for leading in [(), (5, 7), (3,)]:
        points = torch.from_numpy(2 * rng.standard_normal((*leading, 2)))
        for field in ("value", "gradient", "hessian"):
            torch.testing.assert_close(getattr(found, field)(points), getattr(known, field)(points))
    assert found.critical_points == ()


def test_himmelblaus_nine_points_are_found_from_a_grid():
    axis = np.linspace(-5, 5, 7)
    starts = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    search = find_critical_points(himmelblau(), starts, tolerance=1e-10)
    assert search.converged.all()
    found = sorted(as_critical_points(search, 1e-4), key=lambda one: one.point.tolist())
    known = sorted(himmelblau().critical_points, key=lambda one: one.point.tolist())
    assert [one.kind for one in found] == [one.kind for one in known]
    np.testing.assert_allclose([one.point for one in found], [one.point for one in known], atol=1e-10)
    np.testing.assert_allclose([one.eigenvalues for one in found], [one.eigenvalues for one in known], rtol=1e-8)


@pytest.mark.parametrize("curvatures", [[1.0, 5.0, -2.0], [-1.0, -2.0, -3.0], [1.0, 2.0, 1e-3], [1e4, -1e-2, 1.0]])
def test_a_quadratics_critical_point_is_found_whatever_its_index(curvatures):
    search = find_critical_points(quadratic(curvatures), rng.standard_normal((4, 3)))
    assert search.converged.all()
    np.testing.assert_allclose(search.eigenvalues, np.tile(np.sort(curvatures), (4, 1)), atol=1e-10)
    (one,) = as_critical_points(search, 1e-4)
    assert one.index == sum(h < 0 for h in curvatures)


def test_ends_on_a_net_have_no_gradient_and_the_dense_hessians_index():
    rng = numpy_generator(0, "net")
    net = tanh_net(6, 3, 3, 0.1, rng)
    starts = 0.3 * rng.standard_normal((6, net.dimension))
    before = starts.copy()
    search = find_critical_points(net, starts)
    assert np.array_equal(starts, before)
    assert search.converged.sum() >= 2
    for one in as_critical_points(search, 1e-3):
        theta = torch.from_numpy(one.point).requires_grad_()
        (gradient,) = torch.autograd.grad(net.value(theta), theta)
        assert gradient.norm() < 1e-8
        dense = torch.autograd.functional.hessian(net.value, theta.detach())
        np.testing.assert_allclose(one.eigenvalues, np.linalg.eigvalsh(dense.numpy()), atol=1e-10)
        assert one.index == (one.eigenvalues < 0).sum()


def test_a_gradient_flat_point_is_not_counted():
    surface = scalar_field(lambda p: p[0] ** 3 / 3 + p[0], 1, "x^3/3 + x")  # slope x^2 + 1, least and flat at 0
    search = find_critical_points(surface, [[2.0], [-1.0]])
    assert not search.converged.any()
    assert (search.gradient_norms >= 1).all()
    assert as_critical_points(search, 0.1) == ()
    slope = scalar_field(lambda p: p.sum(), 2, "plane")
    assert not find_critical_points(slope, [1.0, 1.0]).converged.any()


def test_too_few_iterations_are_not_converged():
    search = find_critical_points(himmelblau(), [4.0, 4.0], max_iterations=2)
    assert search.iterations.tolist() == [2]
    assert not search.converged.any()
    assert search.gradient_norms[0] > 1e-8


def test_one_start_may_come_as_a_vector():
    search = find_critical_points(classic_saddle(), torch.tensor([3.0, -1.0]))
    shapes = [part.shape for part in (search.points, search.values, search.gradient_norms, search.eigenvalues)]
    assert shapes == [(1, 2), (1,), (1,), (1, 2)]
    np.testing.assert_allclose(search.eigenvalues, [[-2, 2]])


def test_small_eigenvalues_of_a_degenerate_point_shrink_with_the_root_of_the_tolerance():
    sizes = [
        np.abs(find_critical_points(monkey_saddle(), [1.0, 0.5], tolerance=tolerance).eigenvalues).max()
        for tolerance in (1e-4, 1e-8)
    ]
    assert 30 < sizes[0] / sizes[1] < 300
    search = find_critical_points(monkey_saddle(), [1.0, 0.5])
    assert as_critical_points(search, 0, tolerance=1e-2)[0].kind == "degenerate"


def test_a_point_without_a_hessian_is_not_counted():
    surface = scalar_field(lambda p: p.abs().pow(1.5).sum(), 1, "|x|^1.5")  # second derivative infinite at 0
    with pytest.raises(ValueError, match=r"starts\[1\]: \|x\|\^1\.5 has no finite gradient and Hessian there"):
        find_critical_points(surface, [[1.0], [0.0]])


def test_distinct_keeps_the_first_of_each_group():
    search = find_critical_points(himmelblau(), [[3.1, 2], [3, 2.1], [-0.2, -0.9], [3, 2]])
    assert distinct_points(search, 1e-3).tolist() == [0, 2]
    assert distinct_points(search, 100).tolist() == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: scalar_field(lambda p: p, 3, "f"),
            r"f: the function returned torch\.float64 \(3,\): expected a torch",
        ),
        (lambda: scalar_field(lambda p: p.sum().float(), 3, "f"), r"returned torch\.float32 \(\): expected"),
        (lambda: scalar_field(lambda p: 1.0, 3, "f"), "f: the function returned float: expected"),
        (lambda: scalar_field(lambda p: p @ torch.ones(4).double(), 3, "f"), r"fails on a point of shape \(3,\): "),
        (lambda: scalar_field(lambda p: p.sum(), 3, "f").value(torch.zeros(4)), r"expected \(\.\.\., 3\), f"),
        (lambda: find_critical_points(himmelblau(), [[1.0]]), r"starts of shape \(1, 1\): expected \(m, 2\)"),
        (lambda: find_critical_points(himmelblau(), np.zeros((0, 2))), r"expected \(m, 2\), at least one"),
        (lambda: find_critical_points(himmelblau(), [1.0, np.nan]), r"starts\[0\]: Himmelblau has no finite gradient"),
        (lambda: find_critical_points(himmelblau(), [1.0, 1], tolerance=0), "tolerance=0, max_iterations=150"),
        (
            lambda: find_critical_points(himmelblau(), [1.0, 1], max_iterations=0),
            "=0, longest_step=0.5: expected positive",
        ),
        (lambda: find_critical_points(himmelblau(), [1.0, 1], longest_step=-1), "longest_step=-1: expected positive"),
        (
            lambda: distinct_points(find_critical_points(himmelblau(), [1.0, 1]), -1),
            "separation=-1: expected at least 0",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
