"""Heights and paths that are infinite, NaN or too large for a float32 are left out of the picture."""

from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import QuadMesh

from descent.plots import maps, scenes
from descent.plots.scenes import Relief
from descent.plots.style import Labels

X, Y = np.linspace(-1, 1, 5), np.linspace(-1, 1, 7)
SADDLE = X**2 - Y[:, None] ** 2
LABELS = Labels("x", "y", "z")
BAD = [np.nan, np.inf, -np.inf, 1e39, -1e300]


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def relief(value: float, of_path: float = 0.0) -> Relief:
    z = SADDLE.copy()
    z[2, 3] = value
    path = np.array([[-0.5, 0.0, 0.2], [0.0, 0.1, 0.1], [0.5, 0.3, of_path], [0.7, 0.3, 0.3]])
    return Relief(X, Y, z, {"a path": path})


@pytest.mark.parametrize("value", BAD)
def test_a_height_that_is_no_number_is_left_out(value: float) -> None:
    interactive, still = scenes.relief_panels({"a": relief(value)}, LABELS)
    solid, trail = interactive.data
    assert (solid.contours.z.start, solid.contours.z.end) == (-1.0, 1.0)
    assert np.isnan(solid.z[2, 3])
    assert np.isfinite(solid.z).sum() == 34
    assert np.isfinite(trail.z).all()
    still.canvas.draw()
    low, high = still.axes[0].get_zlim()
    assert -1.5 < low < high < 1.5


@pytest.mark.parametrize("value", BAD)
def test_a_path_that_leaves_all_bounds_has_a_gap(value: float) -> None:
    interactive, still = scenes.relief_panels({"a": relief(0.0, value)}, LABELS)
    np.testing.assert_array_equal(np.isnan(interactive.data[1].z), [False, False, True, False])
    np.testing.assert_array_equal(np.isnan(interactive.data[1].x), [False] * 4)
    still.canvas.draw()
    low, high = still.axes[0].get_zlim()
    assert -1.5 < low < high < 1.5


@pytest.mark.parametrize("value", BAD)
def test_a_relief_without_a_height_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="none of the heights z is finite: nothing to draw"):
        Relief(X, Y, np.full((7, 5), value))


def test_a_level_relief_has_no_contours() -> None:
    interactive, still = scenes.relief_panels({"a": Relief(X, Y, np.full((7, 5), 2.0))}, LABELS)
    assert not interactive.data[0].contours.z.show
    still.canvas.draw()


def plane(loss: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(alpha=X, beta=Y, loss=loss)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_has_holes_where_a_loss_is_not_finite(value: float) -> None:
    loss = 1.5 + SADDLE.T
    loss[1, 2] = value
    holed, empty = plane(loss), plane(np.full((5, 7), value))
    for figure in (
        maps.contour_maps({"holed": holed, "empty": empty}, 2, LABELS),
        maps.side_views({"holed": holed, "empty": empty}, LABELS)[1],
    ):
        figure.canvas.draw()
    solid = maps.side_views({"holed": holed}, LABELS)[0].data[0]
    assert isinstance(solid, go.Surface)
    assert np.isnan(solid.z).sum() == 1
    with pytest.raises(ValueError, match="no surface has a finite loss above zero: nothing to draw"):
        maps.contour_maps({"empty": empty}, 1, LABELS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_heat_map_has_holes_there_and_no_colour_of_the_ends(value: float) -> None:
    values = np.full((5, 7), 0.5)
    values[1, 2] = value
    figure = maps.heat_maps({"a": (X, Y, values), "b": (X, Y, np.full((5, 7), value))}, 2, LABELS)
    figure.canvas.draw()
    one, other = (next(c for c in axis.collections if isinstance(c, QuadMesh)) for axis in figure.axes[:2])
    assert np.ma.getmaskarray(one.get_array()).sum() == 1
    assert np.ma.getmaskarray(other.get_array()).all()
