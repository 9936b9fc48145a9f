import numpy as np
import pytest
import torch
from torch.optim import SGD, Adam

from descent.repro.seeding import torch_generator
from descent.saddles.functions import classic_saddle, monkey_saddle, quadratic, scalar_field
from descent.saddles.paths import follow_optimiser

HIMMELBLAU = scalar_field(lambda p: (p[0] ** 2 + p[1] - 11) ** 2 + (p[0] + p[1] ** 2 - 7) ** 2, 2, "Himmelblau")


def momentum(tensors):
    return SGD(tensors, lr=0.001, momentum=0.9)


def plain(tensors):
    return SGD(tensors, lr=0.1)


def test_momentum_on_the_classic_saddle_is_its_linear_recursion():
    path = follow_optimiser(classic_saddle(), [1, 1e-3], momentum, 200)
    assert path.points.shape == (201, 2)
    for axis, (curvature, factor) in enumerate([(2, "0.006990"), (-2, "27.53")]):
        # v' = 0.9 v + h x, x' = x - lr v'
        step = np.array([[0.9, curvature], [-0.001 * 0.9, 1 - 0.001 * curvature]])
        state = np.array([0, path.points[0, axis]])
        for found in path.points[:, axis]:
            assert found == pytest.approx(state[1], rel=1e-12)
            state = step @ state
        measured = path.points[-1, axis] / path.points[0, axis]
        assert f"{measured:.{len(factor.split('.')[1])}f}" == factor


def test_monkey_saddle_slows_down_on_its_ridge():
    path = follow_optimiser(monkey_saddle(), [1.0, 0.0], momentum, 200)
    assert round(path.points[-1, 0], 4) == 0.1213
    assert not path.points[:, 1].any()


def test_values_and_gradient_norms_belong_to_the_points():
    surface = HIMMELBLAU
    path = follow_optimiser(surface, [[0.0, 0.0], [-1.0, 2.0]], lambda tensors: Adam(tensors, lr=0.1), 30)
    points = torch.from_numpy(path.points)
    assert (path.points.shape, path.values.shape, path.gradient_norms.shape) == ((31, 2, 2), (31, 2), (31, 2))
    np.testing.assert_allclose(path.values, surface.value(points), rtol=1e-14)
    np.testing.assert_allclose(path.gradient_norms, surface.gradient(points).norm(dim=-1), rtol=1e-14)


@pytest.mark.parametrize("make", [momentum, lambda tensors: Adam(tensors, lr=0.05)])
def test_many_runs_at_once_are_the_runs_alone(make):
    starts = np.random.default_rng(0).standard_normal((5, 7, 2))
    together = follow_optimiser(HIMMELBLAU, starts, make, 12)
    assert together.points.shape == (13, 5, 7, 2)
    alone = follow_optimiser(HIMMELBLAU, starts[3, 6], make, 12)
    np.testing.assert_allclose(together.points[:, 3, 6], alone.points, rtol=1e-13)


def test_a_run_beyond_overflow_ends_and_leaves_the_others_alone():
    falling, held = [-1.0, 0.0], [0.0, 0.0]  # x^3 falls without bound to the left; the origin is critical
    alone = follow_optimiser(monkey_saddle(), falling, plain, 100)
    assert len(alone.points) < 101
    assert np.isfinite(alone.values).all()
    both = follow_optimiser(monkey_saddle(), [falling, held], plain, 100)
    taken = len(alone.points)
    assert both.points.shape == (101, 2, 2)
    assert np.array_equal(both.points[:taken, 0], alone.points)
    assert np.isnan(both.points[taken:, 0]).all()
    assert np.isnan(both.values[taken:, 0]).all()
    assert not both.points[:, 1].any()


def test_noise_has_the_deviation_asked_for_and_comes_from_the_generator():
    flat = quadratic([0.0] * 4)
    runs = [
        follow_optimiser(flat, np.zeros((500, 4)), plain, 20, noise=0.3, generator=torch_generator(s, "n"))
        for s in (1, 1, 2)
    ]
    steps = np.diff(runs[0].points, axis=0)
    assert steps.std() == pytest.approx(0.1 * 0.3, rel=0.02)  # 40000 draws: 0.35 per cent is one standard error
    assert np.array_equal(runs[0].points, runs[1].points)
    assert not np.array_equal(runs[0].points, runs[2].points)
    assert not runs[0].gradient_norms.any()


def test_without_noise_no_random_number_is_drawn():
    generator, untouched = torch_generator(0, "n"), torch_generator(0, "n").get_state()
    state = torch.get_rng_state()
    follow_optimiser(HIMMELBLAU, [1.0, 1.0], plain, 3, generator=generator)
    follow_optimiser(HIMMELBLAU, [1.0, 1.0], plain, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(generator.get_state(), untouched)


def test_starts_are_left_as_they_were():
    starts = torch.ones(2, dtype=torch.float64)
    follow_optimiser(HIMMELBLAU, starts, momentum, 5)
    assert torch.equal(starts, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: follow_optimiser(HIMMELBLAU, [1.0, 1], plain, 0), "steps=0: expected at least 1"),
        (lambda: follow_optimiser(HIMMELBLAU, [1.0, np.inf], plain, 5), "starts: expected finite coordinates"),
        (
            lambda: follow_optimiser(HIMMELBLAU, [1.0, 1, 1], plain, 5),
            r"points of shape \(3,\): expected \(\.\.\., 2\)",
        ),
        (
            lambda: follow_optimiser(HIMMELBLAU, [1.0, 1], plain, 5, noise=0.1),
            r"noise=0\.1: expected 0, or a positive number and",
        ),
        (
            lambda: follow_optimiser(HIMMELBLAU, [1.0, 1], plain, 5, noise=-1, generator=torch.Generator()),
            "noise=-1: expected 0",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
