"""Losses that are infinite, NaN or below zero, in the measures of shape and in files: no number from nothing."""

from pathlib import Path

import numpy as np
import pytest

from descent.landscape.shape import descent_centre_cosine, nonconvexity_ratio, plane_nonconvexity, star_shaped_share
from descent.landscape.surface import LossSurface, export_surface
from descent.repro.records import Record

ALPHA, BETA = np.linspace(-1, 1, 5), np.linspace(-1.5, 1.5, 7)
BOWL = 1 + ALPHA[:, None] ** 2 + 2 * BETA**2


def surface(loss: np.ndarray) -> LossSurface:
    return LossSurface(ALPHA, BETA, {"loss": loss}, 1, "float32")


def with_hole(value: float, at: tuple[int, int] = (1, 2)) -> LossSurface:
    loss = BOWL.copy()
    loss[at] = value
    return surface(loss)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_hole_counts_nowhere_and_all_else_as_without_it(value: float) -> None:
    whole, holed = descent_centre_cosine(surface(BOWL)), descent_centre_cosine(with_hole(value))
    counted = np.isfinite(holed)
    assert not counted[1, 2]
    assert not counted[1, 1]
    np.testing.assert_array_equal(holed[counted], whole[counted])
    assert star_shaped_share(with_hole(value)) == star_shaped_share(surface(BOWL)) == 1.0
    ratios = plane_nonconvexity(with_hole(value))
    np.testing.assert_array_equal(np.isnan(ratios), np.isnan(plane_nonconvexity(with_hole(np.nan))))
    assert np.isnan(ratios[:2, :3]).all()
    np.testing.assert_array_equal(ratios[2:], plane_nonconvexity(surface(BOWL))[2:])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_surface_of_holes_has_no_share(value: float) -> None:
    with pytest.raises(ValueError, match="none of 35 grid points has a finite gradient"):
        star_shaped_share(surface(np.full((5, 7), value)))
    assert np.isnan(plane_nonconvexity(surface(np.full((5, 7), value)))).all()


@pytest.mark.parametrize("value", [-0.5, -np.inf])
def test_a_loss_below_zero_has_no_logarithm_and_is_refused(value: float) -> None:
    for measure in (descent_centre_cosine, star_shaped_share):
        with pytest.raises(ValueError, match=f"a loss of {value:.3g}: expected none below zero, so add a constant"):
            measure(with_hole(value))
    lifted = descent_centre_cosine(surface(BOWL - 3 + 100))
    assert (lifted[np.isfinite(lifted)] > 0).all()


def test_the_ratio_of_what_is_not_finite_is_not_a_number() -> None:
    low = [-np.inf, -1.0, -np.inf, np.nan, -1.0, 1.0, -1.0]
    high = [np.inf, np.inf, 5.0, 1.0, np.nan, np.inf, 4.0]
    np.testing.assert_array_equal(nonconvexity_ratio(low, high), [np.nan] * 6 + [0.25])


def test_numbers_too_large_to_subtract_make_no_ratio() -> None:
    steep = np.where(np.add.outer(np.arange(5), np.arange(7)) % 2, 1e308, -1e308)
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.isnan(plane_nonconvexity(surface(steep))).all()


@pytest.mark.parametrize("value", [-1.0, -1.5, -np.inf])
def test_a_solid_has_no_height_for_a_loss_of_minus_one_or_less(value: float, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"the least loss is .* without a height log\(1 \+ loss\): expected both above -1"
    ):
        export_surface(with_hole(value), tmp_path / "solid.vts")
    assert not list(tmp_path.iterdir())
    back = Record.load(export_surface(with_hole(value), tmp_path / "solid.npz"))
    np.testing.assert_array_equal(back.values["loss"], with_hole(value).loss)
    export_surface(with_hole(value), tmp_path / "flat.vti")


@pytest.mark.parametrize("clip", [np.inf, np.nan, -1.0, -3.0])
def test_a_solid_is_cut_off_at_a_number(clip: float, tmp_path: Path) -> None:
    for value in (np.nan, np.inf, 2.0):
        with pytest.raises(ValueError, match=f"clip={clip}, without a height"):
            export_surface(with_hole(value), tmp_path / "solid.vts", clip)
    assert not list(tmp_path.iterdir())
