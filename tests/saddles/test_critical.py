import numpy as np
import pytest
import torch

from descent.repro.seeding import numpy_generator
from descent.saddles.critical import find_critical_points
from descent.saddles.functions import classic_saddle, monkey_saddle, quadratic, scalar_field

HIMMELBLAU = scalar_field(lambda p: (p[0] ** 2 + p[1] - 11) ** 2 + (p[0] + p[1] ** 2 - 7) ** 2, 2, "Himmelblau")
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


def test_himmelblaus_nine_points_are_found_from_a_grid():
    # with A = x^2 + y - 11, B = x + y^2 - 7 the gradient is zero where A = B = 0, or where B = -2 x A and 4 x y = 1
    zeros, others = np.roots([1, 0, -22, 1, 114]).real, np.roots([32, 0, -336, -104, 0, 1]).real
    known = np.stack([np.append(zeros, others), np.append(11 - zeros**2, 1 / (4 * others))], -1)
    axis = np.linspace(-5, 5, 7)
    starts = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    search = find_critical_points(HIMMELBLAU, starts, tolerance=1e-10)
    assert search.converged.all()
    distances = np.linalg.norm(search.points[:, None] - known, axis=-1)
    assert distances.min(1).max() < 1e-9  # every end is one of them
    assert distances.min(0).max() < 1e-9  # and each of them is an end
    indices = (search.eigenvalues[distances.argmin(0)] < 0).sum(1)
    assert sorted(indices.tolist()) == [0] * 4 + [1] * 4 + [2]
    np.testing.assert_allclose(known[indices == 2], [[-0.270845, -0.923039]], atol=1e-6)  # as tables print it


@pytest.mark.parametrize("curvatures", [[1.0, 5.0, -2.0], [-1.0, -2.0, -3.0], [1.0, 2.0, 1e-3], [1e4, -1e-2, 1.0]])
def test_a_quadratics_critical_point_is_found_whatever_its_index(curvatures):
    search = find_critical_points(quadratic(curvatures), rng.standard_normal((4, 3)))
    assert search.converged.all()
    np.testing.assert_allclose(search.eigenvalues, np.tile(np.sort(curvatures), (4, 1)), atol=1e-10)
    np.testing.assert_allclose(search.points, 0, atol=1e-8)


def test_ends_on_a_net_have_no_gradient_and_the_dense_hessians_index():
    rng = numpy_generator(0, "net")
    net = tanh_net(6, 3, 3, 0.1, rng)
    starts = 0.3 * rng.standard_normal((6, net.dimension))
    before = starts.copy()
    search = find_critical_points(net, starts)
    assert np.array_equal(starts, before)
    assert search.converged.sum() >= 2
    for point, eigenvalues in zip(search.points[search.converged], search.eigenvalues[search.converged], strict=True):
        theta = torch.from_numpy(point).requires_grad_()
        (gradient,) = torch.autograd.grad(net.value(theta), theta)
        assert gradient.norm() < 1e-8
        dense = torch.autograd.functional.hessian(net.value, theta.detach())
        np.testing.assert_allclose(eigenvalues, np.linalg.eigvalsh(dense.numpy()), atol=1e-10)


def test_a_gradient_flat_point_is_not_counted():
    surface = scalar_field(lambda p: p[0] ** 3 / 3 + p[0], 1, "x^3/3 + x")  # slope x^2 + 1, least and flat at 0
    search = find_critical_points(surface, [[2.0], [-1.0]])
    assert not search.converged.any()
    assert (search.gradient_norms >= 1).all()
    slope = scalar_field(lambda p: p.sum(), 2, "plane")
    assert not find_critical_points(slope, [1.0, 1.0]).converged.any()


def test_too_few_iterations_are_not_converged():
    search = find_critical_points(HIMMELBLAU, [4.0, 4.0], max_iterations=2)
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


def test_a_point_without_a_hessian_is_not_counted():
    surface = scalar_field(lambda p: p.abs().pow(1.5).sum(), 1, "|x|^1.5")  # second derivative infinite at 0
    with pytest.raises(ValueError, match=r"starts\[1\]: \|x\|\^1\.5 has no finite gradient and Hessian there"):
        find_critical_points(surface, [[1.0], [0.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_critical_points(HIMMELBLAU, [[1.0]]), r"starts of shape \(1, 1\): expected \(m, 2\)"),
        (lambda: find_critical_points(HIMMELBLAU, np.zeros((0, 2))), r"expected \(m, 2\), at least one"),
        (lambda: find_critical_points(HIMMELBLAU, [1.0, np.nan]), r"starts\[0\]: Himmelblau has no finite gradient"),
        (lambda: find_critical_points(HIMMELBLAU, [1.0, 1], tolerance=0), "tolerance=0, max_iterations=150"),
        (lambda: find_critical_points(HIMMELBLAU, [1.0, 1], max_iterations=0), "max_iterations=0: expected at least 1"),
        (lambda: find_critical_points(HIMMELBLAU, [1.0, 1], longest_step=-1), "longest_step=-1: expected positive"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
