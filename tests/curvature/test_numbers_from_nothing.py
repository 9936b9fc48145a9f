"""NaN, complex numbers and matrices that are not symmetric never become an eigenvalue, a trace or a density."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import nn

from descent.curvature import estimate_trace, extreme_eigenpairs, hessian, saddle_free_step, spectral_density
from descent.training import batch_cross_entropy

SIZE = 60
ORTHOGONAL = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0]
SYMMETRIC = ORTHOGONAL @ np.diag(np.linspace(-1, 2, SIZE)) @ ORTHOGONAL.T
GENERAL = np.random.default_rng(1).standard_normal((SIZE, SIZE))
MEASURES: dict[str, Callable[[Any], Any]] = {
    "largest": lambda operator: extreme_eigenpairs(operator, 2, "largest", np.random.default_rng(0)),
    "both": lambda operator: extreme_eigenpairs(operator, 2, "both", np.random.default_rng(0)),
    "trace": lambda operator: estimate_trace(operator, 3, np.random.default_rng(0)),
    "trace of the square": lambda operator: estimate_trace(operator, 3, np.random.default_rng(0), power=2),
    "density": lambda operator: spectral_density(operator, 5, 2, np.random.default_rng(0)),
    "step": lambda operator: saddle_free_step(operator, np.ones(operator.shape[0]), 5),
}
FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "array": np.asarray,
    "sparse": scipy.sparse.csr_array,
    "operator": aslinearoperator,
    "products alone": lambda matrix: LinearOperator(matrix.shape, matvec=lambda v: matrix @ v, dtype=matrix.dtype),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MEASURES)
def test_matrices_that_are_not_symmetric_are_refused(name: str, form: str) -> None:
    """Rows of gradients, a Jacobian, or a Hessian of which one entry was lost."""
    for matrix in (GENERAL, np.triu(GENERAL), GENERAL[:10, :10], SYMMETRIC @ np.diag(np.linspace(0, 1, SIZE))):
        with pytest.raises(ValueError, match=r"the operator is not symmetric: u \. H w and w \. H u differ"):
            MEASURES[name](FORMS[form](matrix))
    MEASURES[name](FORMS[form](SYMMETRIC))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_entries_that_are_not_finite_are_refused(name: str, form: str, number: float) -> None:
    spoilt = SYMMETRIC.copy()
    spoilt[3, 3] = number
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(ValueError, match="of the operator has entries that are not finite"),
    ):
        MEASURES[name](FORMS[form](spoilt))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MEASURES)
def test_complex_operators_are_refused(name: str, form: str) -> None:
    with pytest.raises(ValueError, match=r"operator of complex128: expected a real one"):
        MEASURES[name](FORMS[form](SYMMETRIC + 1j * (GENERAL - GENERAL.T)))


@pytest.mark.parametrize("name", MEASURES)
def test_integers_and_float32_are_taken(name: str) -> None:
    for matrix in (np.diag(np.arange(SIZE)), SYMMETRIC.astype(np.float32), scipy.sparse.eye_array(SIZE, dtype=bool)):
        MEASURES[name](matrix)


def test_float32_products_of_a_network_pass_for_symmetric() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10))
    batch = 100 * torch.randn(50, 30), torch.arange(50) % 10
    operator = hessian(model, batch_cross_entropy, [batch])
    for measure in MEASURES.values():
        measure(operator)


KNOWN = np.array([2.0]), ORTHOGONAL[:, -1:]
CALLS: list[tuple[Callable[[], Any], str]] = [
    (lambda: density().mass_below(np.nan), "bound=nan: expected a number"),
    (lambda: density(width=np.inf), "width=inf, or the grid: expected a finite width above 0"),
    (lambda: density(width=np.nan), "width=nan, or the grid: expected a finite width above 0"),
    (lambda: density(grid=[0.0, np.nan, 1.0]), r"or the grid: expected .* a grid \(g,\) that ascends"),
    (lambda: density(grid=[[0.0, 1.0]]), r"or the grid: expected .* a grid \(g,\) that ascends"),
    (
        lambda: density(known=(KNOWN[0] * np.nan, KNOWN[1])),
        "known pairs: expected finite values and orthonormal vectors",
    ),
    (lambda: density(known=(KNOWN[0], KNOWN[1] * 2)), "known pairs: expected finite values and orthonormal vectors"),
    (
        lambda: density(known=(KNOWN[0], KNOWN[1] * np.nan)),
        "known pairs: expected finite values and orthonormal vectors",
    ),
    (lambda: pairs(tolerance=np.nan), "tolerance=nan: expected at least 0"),
    (lambda: pairs(tolerance=-1e-3), "tolerance=-0.001: expected at least 0"),
    (lambda: saddle_free_step(SYMMETRIC, np.full(SIZE, np.nan), 3), "expected .* all finite and real"),
    (lambda: saddle_free_step(SYMMETRIC, np.full(SIZE, 1j), 3), "gradient is of type complex128: expected real"),
    (lambda: saddle_free_step(SYMMETRIC, np.ones(SIZE), 3, np.nan), "damping=nan: expected at least 0, finite"),
    (lambda: saddle_free_step(SYMMETRIC, np.ones(SIZE), 3, np.inf), "damping=inf: expected at least 0, finite"),
]


def density(**options: Any) -> Any:
    return spectral_density(SYMMETRIC, 5, 2, np.random.default_rng(0), **options)


def pairs(**options: Any) -> Any:
    return extreme_eigenpairs(SYMMETRIC, 2, "largest", np.random.default_rng(0), **options)


@pytest.mark.parametrize(("call", "message"), CALLS)
def test_arguments_that_are_no_numbers_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_density_hands_on_what_a_function_gives() -> None:
    assert np.isnan(density().mean_of(lambda nodes: nodes * np.nan).value)
    assert np.isnan(density().moment(np.nan).value)


def test_a_hessian_that_is_not_finite_is_refused_or_handed_on() -> None:
    """The root at zero has no derivative: torch gives NaN, which is no eigenvalue."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(30, dtype=torch.float64))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs + (self.w / 2).norm() ** 2

    operator = hessian(Root(), lambda m, batch: m(batch[0]).square().mean(), [(torch.ones(4, 2).double(),)])
    assert np.isnan(operator @ np.ones(30)).all()
    for name in ("largest", "trace", "density", "step"):
        with pytest.raises(ValueError, match="of the operator has entries that are not finite"):
            MEASURES[name](operator)
