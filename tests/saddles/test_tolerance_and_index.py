"""What `converged` promises, that the index is fixed at the start, and that noise is the generator's."""

import numpy as np
import pytest
import torch

from descent.saddles import classic_saddle, find_critical_points, follow_optimiser, scalar_field

CUBIC = scalar_field(lambda p: p[0] ** 3 / 3 - p[0] + p[1] ** 2, 2, "cubic")
WAVE = scalar_field(lambda p: torch.sin(p[0]), 1, "wave")


def test_an_end_has_converged_where_its_gradient_is_within_the_tolerance() -> None:
    cut_short = find_critical_points(CUBIC, [1.3, 0.0], tolerance=1e-30, max_iterations=2)
    (norm,) = cut_short.gradient_norms
    assert norm == pytest.approx(abs(cut_short.points[0, 0] ** 2 - 1), rel=1e-9)  # the derivative on paper
    assert 1e-8 < norm < 1e-2
    assert not cut_short.converged[0]
    for tolerance, converged in ((norm / 5, False), (norm / 1.01, False), (norm * 1.01, True)):
        found = find_critical_points(CUBIC, [1.3, 0.0], tolerance=tolerance, max_iterations=2)
        assert found.converged.tolist() == [converged]
        assert found.gradient_norms[0] == norm


def test_the_default_tolerance_is_1e_8() -> None:
    """A fourth power has no curvature at its minimum: each step goes a third of the way, and the norm falls to 8/27."""
    flat = scalar_field(lambda p: p[0] ** 4, 1, "fourth power")
    (norm,) = find_critical_points(flat, [1.0]).gradient_norms
    assert 1e-8 * 8 / 27 < norm <= 1e-8


def test_the_index_is_that_of_the_start_wherever_a_step_lands() -> None:
    """The first step overshoots to where the curvature is negative; a minimum is still what is looked for."""
    start = -0.05
    lands = start - 3.9
    assert -np.sin(start) > 0 > -np.sin(lands)
    found = find_critical_points(WAVE, [[start]], longest_step=3.9)
    assert found.converged.all()
    assert found.points[0, 0] == pytest.approx(-np.pi / 2, abs=1e-7)
    assert found.eigenvalues[0, 0] == pytest.approx(1)


def test_noise_is_drawn_by_the_generator_at_its_size() -> None:
    def plain(tensors: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(tensors, lr=1.0)

    def moved(seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed)
        return follow_optimiser(classic_saddle(), [0.0, 0.0], plain, 1, noise=0.1, generator=generator).points[1]

    drawn = torch.randn(2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(moved(3), -0.1 * drawn.numpy(), rtol=0, atol=1e-15)
    assert not np.array_equal(moved(3), moved(4))
