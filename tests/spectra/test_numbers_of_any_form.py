"""Rows, values and paths in any form that holds real numbers give what the plain array gives, or are refused."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from descent.spectra import (
    count_singular_values_above,
    gram_matrix,
    participation_ratio,
    path_corners,
    shuffled_null_rows,
    singular_spectrum,
    stable_rank,
    trajectory_plane,
    turning_angles,
)
from descent.spectra.fourier_modulo_p import (
    answer_coefficients,
    answer_share,
    frequency_norms,
    gini,
    key_frequencies,
    restricted_logits,
    sum_waves,
)

ROWS = np.random.default_rng(0).integers(-8, 9, (6, 40)).astype(float)  # whole numbers: exact in bfloat16
PATH = np.cumsum(ROWS, axis=0)
TIMES = np.arange(6)

FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "list": lambda rows: rows.tolist(),
    "integers": lambda rows: rows.astype(np.int16),
    "half": lambda rows: rows.astype(np.float16),
    "tensor": torch.tensor,
    "bfloat16": lambda rows: torch.tensor(rows).bfloat16(),
    "parameter": lambda rows: nn.Parameter(torch.tensor(rows)),
    "with a gradient": lambda rows: torch.tensor(rows, requires_grad=True) * 1,
    "sparse": lambda rows: torch.tensor(rows).to_sparse(),
    "negated view": lambda rows: torch.tensor(-1j * rows).conj().imag,
    "transposed": lambda rows: torch.tensor(rows.T.copy()).T,
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_in_any_form(form: str) -> None:
    rows = FORMS[form](ROWS)
    products = np.array([[sum(a * b for a, b in zip(one, two, strict=True)) for two in ROWS] for one in ROWS])
    np.testing.assert_array_equal(gram_matrix(rows), products)
    spectrum = singular_spectrum(gram_matrix(rows))
    np.testing.assert_allclose(spectrum.values, np.linalg.svd(ROWS)[1])
    np.testing.assert_allclose(spectrum.right(rows, 2), spectrum.right(ROWS, 2))
    np.testing.assert_array_equal(np.sort(shuffled_null_rows(rows, np.random.default_rng(1))), np.sort(ROWS))
    plane, plain = trajectory_plane(rows), trajectory_plane(ROWS)
    np.testing.assert_allclose(plane.explained, plain.explained)


@pytest.mark.parametrize("form", FORMS)
def test_paths_in_any_form(form: str) -> None:
    path = FORMS[form](ROWS.cumsum(0) % 16)
    expected = turning_angles(ROWS.cumsum(0) % 16, TIMES)
    for found, right in zip(turning_angles(path, torch.tensor(TIMES)), expected, strict=True):
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "transposed"])
def test_values_in_any_form(form: str) -> None:
    values = FORMS[form](np.array([3.0, 1.0, 1.0]))
    assert participation_ratio(values) == pytest.approx(11**2 / 83)
    assert stable_rank(values) == pytest.approx(11 / 9)
    assert count_singular_values_above(values, 0.5) == 1
    assert gini(values) == pytest.approx((0 + 2 * 3 - 2 * 1) / (3 * 5))  # sum (2 i - n - 1) x_i / (n sum x)


COMPLEX, MASKED = np.array([1 + 2j, 3]), np.ma.masked_greater([1.0, 1.0, 100.0], 50)


@pytest.mark.parametrize("use", [participation_ratio, stable_rank, gini, lambda v: count_singular_values_above(v, 0.5)])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        (COMPLEX, "values is of type complex128: expected real numbers"),
        (torch.tensor(COMPLEX), "values is of type complex128"),
        (MASKED, "values is a masked array: expected the numbers that count"),
        (["1", "2"], "values is of type <U1"),
        ([[1.0], [1.0, 2.0]], "values is no array of numbers"),
    ],
)
def test_values_that_are_not_real_are_refused(use: Any, values: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        use(values)


@pytest.mark.parametrize(
    "use", [gram_matrix, trajectory_plane, lambda r: shuffled_null_rows(r, np.random.default_rng())]
)
@pytest.mark.parametrize("rows", [ROWS + 1j, torch.tensor(ROWS + 1j), np.ma.masked_greater(ROWS, 1), ROWS > 0])
def test_rows_that_are_not_real_are_refused(use: Any, rows: Any) -> None:
    with pytest.raises(ValueError, match=r"rows is (of type|a masked array)"):
        use(rows)


@pytest.mark.parametrize("use", [turning_angles, lambda path, times: path_corners(path, times, 1)])
@pytest.mark.parametrize("path", [PATH + 0j, np.ma.masked_greater(PATH, 1)])
def test_paths_that_are_not_real_are_refused(use: Any, path: Any) -> None:
    with pytest.raises(ValueError, match=r"path is (of type complex128|a masked array)"):
        use(path, TIMES)


# --- the size of a path changes no angle


@pytest.mark.parametrize("scale", [1e200, 2.0**900, 1e-200, 2.0**-900, 1e-320])
def test_angles_do_not_depend_on_the_scale(scale: float) -> None:
    corner = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    when, angle = path_corners(corner * scale, np.arange(3), 1)
    assert angle[0] == pytest.approx(math.pi / 2, abs=0.03)
    assert when[0] == pytest.approx(1, abs=0.03)
    if math.frexp(scale)[0] == 0.5:  # a power of two changes no digit
        for found, right in zip(turning_angles(PATH * scale, TIMES), turning_angles(PATH, TIMES), strict=True):
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("wrong", [{"count": -1}, {"count": 0}, {"count": 1.5}, {"count": 1, "smooth": 2.5}])
def test_a_number_of_corners_is_one(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(count|smooth)=.*: expected at least 1, a whole number"):
        path_corners(PATH, TIMES, **wrong)


def test_the_plane_of_rows_that_float32_can_hold_and_their_differences_not() -> None:
    rows = np.array([[3e38, 0, 0], [0, 1e38, 0], [-3e38, 0, 1e37]], np.float32)
    plane, right = trajectory_plane(rows), trajectory_plane(rows.astype(float))
    np.testing.assert_allclose(plane.explained, right.explained)
    np.testing.assert_allclose(np.abs(plane.coordinates), np.abs(right.coordinates))
    rows[1, 2] = np.inf
    with pytest.raises(ValueError, match="row 1 has an entry that is not finite"):
        trajectory_plane(rows)


# --- the Fourier transform


def test_tables_that_are_no_tensors() -> None:
    table = np.cos(2 * np.pi * 3 * np.arange(7) / 7)[:, None]
    for form in (table, table.tolist(), nn.Parameter(torch.tensor(table)), torch.tensor(table).to_sparse()):
        np.testing.assert_allclose(frequency_norms(form).detach(), [0, 0, math.sqrt(3.5)], atol=1e-12)
    a, b, c = np.meshgrid(*[np.arange(7)] * 3, indexing="ij")
    logits = np.cos(2 * np.pi * 2 * (a + b - c) / 7).reshape(49, 7)
    wave = logits / np.linalg.norm(logits)
    assert float(answer_coefficients(logits, [2])) == pytest.approx(float((logits * wave).sum()))
    assert answer_share(logits, [2]) == pytest.approx(1)


def test_logits_keep_their_gradient() -> None:
    logits = torch.randn(49, 7, requires_grad=True)
    restricted_logits(logits, [1]).sum().backward()
    assert logits.grad is not None


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda: frequency_norms(torch.zeros(7, 0)), r"values of shape \(7, 0\)"),
        (lambda: frequency_norms(torch.zeros(7, 1) + 1j), "complex64: expected a matrix of real numbers"),
        (lambda: frequency_norms(np.ma.masked_less(np.ones((7, 1)), 2)), "values is a masked array"),
        (lambda: sum_waves(7, [1.0]), r"frequency 1\.0: expected 1 to 3"),
        (lambda: sum_waves(7.0, [1]), r"p=7\.0: expected at least 3, a whole number"),
        (lambda: key_frequencies(torch.zeros(49, 4), fewest=1.5), r"fewest=1\.5: expected at least 1, a whole number"),
    ],
)
def test_tables_and_frequencies_that_are_none_are_refused(use: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        use()
