import json
from collections.abc import Sequence
from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import proj3d

from descent.landscape.surface import LossSurface
from descent.plots import style
from descent.plots.maps import contour_maps, heat_maps, side_views
from descent.plots.style import RED, Labels

ALPHA, BETA = np.array([-2.0, -1.0, 0.5, 1.5, 2.0]), np.linspace(-3, 3, 7)  # unequal: a swapped axis cannot pass
LABELS = Labels("α (filter norms)", "β (filter norms)", "loss (nats)")
GREY, PURPLE, YELLOW = (0xDD, 0xDD, 0xDD), (68, 1, 84), (253, 231, 37)  # a hole, and viridis' ends
CORNER = np.zeros((5, 7), bool)
CORNER[3:, :3] = True  # (i, j) with alpha from 1.5 and beta up to -1
INSIDE, ELSEWHERE = (1.75, -2.0), [(1.75, 2.0), (-1.5, 2.0), (-1.5, -2.0)]  # the corner, and its mirror images
HOLES = [(1, 5, np.nan), (1, 2, np.inf), (3, 5, -np.inf)]


@pytest.fixture(autouse=True)
def _drawing() -> None:
    style.use_style()


def drawn(loss: np.ndarray, alpha: np.ndarray = ALPHA, beta: np.ndarray = BETA) -> LossSurface:
    return LossSurface(alpha, beta, {"loss": loss}, 1, "float32")


def steep(low: float = 0.1, high: float = 10.0) -> np.ndarray:
    return np.where(CORNER, high, low)


def with_holes(loss: np.ndarray) -> np.ndarray:
    loss = loss.copy()
    for i, j, value in HOLES:
        loss[i, j] = value
    return loss


def rough() -> np.ndarray:
    return np.exp(np.random.default_rng(0).normal(size=(5, 7)))


Places = Sequence[Sequence[float]]


def pixels(figure: Figure, *wanted: tuple[Any, Places]) -> list[np.ndarray]:
    """Red, green and blue at places (x, y) or (x, y, z) of some axes, as rendered."""
    figure.set_dpi(60)
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    colours = []
    for axis, places in wanted:
        flat = [proj3d.proj_transform(*p, axis.get_proj())[:2] if len(p) == 3 else p for p in places]
        across, up = axis.transData.transform(flat).astype(int).T
        colours.append(image[len(image) - 1 - up, across])
    return colours


def near(colour: np.ndarray, wanted: tuple[int, int, int], within: int = 25) -> bool:
    return bool(np.abs(colour - np.array(wanted)).max() <= within)


def panel_axes(figure: Figure, count: int) -> list[Any]:
    """The first panels, those that are seen."""
    return [axis for axis in figure.axes if axis.get_visible()][:count]


def numbers(axis: Any) -> list[str]:
    return [tick.get_text() for tick in axis.get_yticklabels()]


def test_contours_lie_where_their_grid_is() -> None:
    figure = contour_maps({"a": drawn(steep())}, 1, LABELS)
    ((inside, *elsewhere),) = pixels(figure, (figure.axes[0], [INSIDE, *ELSEWHERE]))
    assert near(inside, YELLOW)
    assert near(np.array(elsewhere), PURPLE)
    assert figure.axes[0].get_xlim() == (-2, 2)
    assert figure.axes[0].get_ylim() == (-3, 3)


def test_holes_in_contours_are_grey() -> None:
    figure = contour_maps({"a": drawn(with_holes(rough())), "b": drawn(rough())}, 2, LABELS)
    places = [(ALPHA[i], BETA[j]) for i, j, _ in HOLES]
    holed, whole, beside = pixels(
        figure, (figure.axes[0], places), (figure.axes[1], places), (figure.axes[0], [(-1.9, 0.1)])
    )
    assert near(holed, GREY, 2)
    assert not any(near(colour, GREY) for colour in (*whole, *beside))


def test_heats_lie_where_their_grid_is_and_have_holes() -> None:
    values, holes = np.arange(35).reshape(5, 7) / 34, {(i, j) for i, j, _ in HOLES}
    figure = heat_maps({"a": (ALPHA, BETA, with_holes(values))}, 1, LABELS)
    grid = list(product(range(5), range(7)))
    (drawn,) = pixels(figure, (figure.axes[0], [(ALPHA[i], BETA[j]) for i, j in grid]))
    colours = 255 * plt.get_cmap("viridis")(values)[..., :3]
    expected = [GREY if place in holes else colours[place] for place in grid]
    np.testing.assert_allclose(drawn, expected, atol=3)


def test_empty_places_alone_are_refused() -> None:
    for draw in (contour_maps, heat_maps):
        for panels in ({}, {"a": None, "b": None}):
            with pytest.raises(ValueError, match="expected one or more that are not None"):
                draw(panels, 2, LABELS)


def test_heats_have_one_scale_and_say_what_lies_beyond() -> None:
    ones = np.ones((5, 7))
    for low, high, extend in (
        (0.0, 0.5, "neither"),
        (-0.5, 0.5, "min"),
        (0.0, 2.0, "max"),
        (-3.0, 3.0, "both"),
        (np.nan, np.inf, "neither"),
        (-np.inf, np.nan, "neither"),
    ):
        figure = heat_maps({"a": (ALPHA, BETA, low * ones), "b": (ALPHA, BETA, high * ones)}, 2, LABELS)
        meshes = [axis.collections[0] for axis in figure.axes[:2]]
        assert [mesh.get_clim() for mesh in meshes] == [(0, 1), (0, 1)]
        assert meshes[1].colorbar.extend == extend
    figure = heat_maps({"a": (ALPHA, BETA, -ones), "b": (ALPHA, BETA, 2 * ones)}, 2, LABELS)
    below, above = pixels(figure, (figure.axes[0], [INSIDE]), (figure.axes[1], [INSIDE]))
    assert near(below, PURPLE, 3)
    assert near(above, YELLOW, 3)
    other = heat_maps({"a": (ALPHA, BETA, ones)}, 1, LABELS, (-1.0, 3.0))
    assert other.axes[0].collections[0].get_clim() == (-1, 3)


@pytest.mark.parametrize(("clip", "top"), [(10.0, 10), (4.0, 4), (1e4, 1000)])
def test_losses_above_the_clip_have_its_colour(clip: float, top: float) -> None:
    panels = {"a": drawn(steep(0.1, 1000)), "b": drawn(np.full((5, 7), 20.0))}
    figure = contour_maps(panels, 2, LABELS, clip=clip)
    filled = [axis.collections[0] for axis in figure.axes[:2]]
    assert [each.norm.vmin for each in filled] == [0.1, 0.1]
    assert [each.norm.vmax for each in filled] == pytest.approx([top, top], rel=1e-12)
    above, middling = pixels(figure, (figure.axes[0], [INSIDE]), (figure.axes[1], [INSIDE]))
    assert near(above, YELLOW)
    assert near(middling, YELLOW) == (clip < 20)
    interactive, still = side_views(panels, LABELS, clip)
    tops = [np.nanmax(trace.z) for trace in interactive.data]
    assert tops == pytest.approx([np.log10(top), np.log10(min(20, clip))], rel=1e-6)
    assert [axis.get_zlim() for axis in still.axes] == [pytest.approx((-1, np.log10(top)))] * 2


def test_when_all_is_above_the_clip_the_scale_ends_there() -> None:
    figure = contour_maps({"a": drawn(rough() + 20)}, 1, LABELS, clip=10)
    assert (figure.axes[0].collections[0].norm.vmin, figure.axes[0].collections[0].norm.vmax) == (5, 10)
    assert near(pixels(figure, (figure.axes[0], [INSIDE]))[0], YELLOW)


def test_one_colour_scale_for_all_panels() -> None:
    panels = {"a": drawn(rough()), "b": drawn(rough() / 50)}
    figure = contour_maps(panels, 2, LABELS, clip=1e3)
    ends = (rough().min() / 50, rough().max())
    filled = [axis.collections[0] for axis in figure.axes[:2]]
    assert [(each.norm.vmin, each.norm.vmax) for each in filled] == [pytest.approx(ends, rel=1e-12)] * 2
    np.testing.assert_array_equal(filled[0].levels, filled[1].levels)
    interactive, still = side_views(panels, LABELS, 1e3)
    assert [(t.cmin, t.cmax) for t in interactive.data] == [pytest.approx(tuple(np.log10(ends)))] * 2
    assert [axis.collections[0].get_clim() for axis in still.axes] == [pytest.approx(tuple(np.log10(ends)))] * 2


def outer(figure: Figure, count: int) -> list[tuple[str, str, bool, bool]]:
    return [
        (
            axis.get_xlabel(),
            axis.get_ylabel(),
            axis.xaxis.get_tick_params()["labelbottom"],
            axis.yaxis.get_tick_params()["labelleft"],
        )
        for axis in panel_axes(figure, count)
    ]


@pytest.mark.parametrize("kind", ["contours", "heats"])
@pytest.mark.parametrize(
    ("count", "columns", "lowest", "leftmost"),
    [(1, 3, {0}, {0}), (2, 3, {0, 1}, {0}), (5, 3, {2, 3, 4}, {0, 3}), (4, 2, {2, 3}, {0, 2})],
)
def test_titles_are_on_all_panels_and_labels_on_the_outer_ones(
    kind: str, count: int, columns: int, lowest: set[int], leftmost: set[int]
) -> None:
    names = [f"panel {number}" for number in range(count)]
    if kind == "contours":
        figure = contour_maps(dict.fromkeys(names, drawn(rough())), columns, LABELS)
    else:
        figure = heat_maps(dict.fromkeys(names, (ALPHA, BETA, rough())), columns, LABELS)
    assert [axis.get_title() for axis in panel_axes(figure, count)] == names
    assert len([axis for axis in figure.axes if axis.get_visible()]) == count + 1
    for number, shown in enumerate(outer(figure, count)):
        x, y = number in lowest, number in leftmost
        assert shown == (LABELS.x if x else "", LABELS.y if y else "", x, y), number
    assert figure.axes[-1].get_ylabel() == LABELS.z


def test_a_path_is_drawn_over_its_panel_with_its_end() -> None:
    track = np.array([[-1.5, -2.0], [0.0, 1.0], [1.0, 2.5]])
    figure = contour_maps({"a": drawn(rough()), "b": drawn(rough())}, 2, LABELS, paths={"b": track})
    bare, over = ([line.get_xydata() for line in axis.lines] for axis in figure.axes[:2])
    np.testing.assert_array_equal(bare, [[[0, 0]]])
    np.testing.assert_array_equal(over[0], track)
    np.testing.assert_array_equal(over[1], track[-1:])
    red = tuple(round(255 * part) for part in to_rgb(RED))
    places = [track[-1], (track[0] + track[1]) / 2]
    none, some = pixels(figure, (figure.axes[0], places), (figure.axes[1], places))
    assert near(some, red, 60)  # lines are blended with what is below
    assert not any(near(colour, red, 60) for colour in none)


def test_panels_with_paths_have_their_own_axes() -> None:
    far = drawn(rough(), ALPHA + 10, BETA - 20)
    figure = contour_maps({"a": drawn(rough()), "b": far}, 2, LABELS, paths={"b": np.array([[9.0, -21], [10, -20]])})
    assert [axis.get_xlim() for axis in figure.axes[:2]] == [(-2, 2), (8, 12)]
    assert [axis.get_ylim() for axis in figure.axes[:2]] == [(-3, 3), (-23, -17)]


def test_the_sides_have_their_values_at_their_places() -> None:
    loss = rough()
    interactive, still = side_views({"a": drawn(loss), "b": drawn(steep())}, LABELS)
    for trace, values in zip(interactive.data, (loss, steep()), strict=True):
        for i, j in ((0, 0), (1, 5), (4, 2), (4, 6)):
            assert (trace.x[i], trace.y[j]) == (ALPHA[i], BETA[j])
            assert trace.z[j][i] == pytest.approx(np.log10(values[i, j]), abs=1e-6)
        assert trace.z.shape == (7, 5)
    axis = still.axes[1]
    axis.view_init(elev=90, azim=-90)  # x to the right, y upwards
    ((inside, *elsewhere),) = pixels(still, (axis, [(*INSIDE, 1.0), *((*place, -1.0) for place in ELSEWHERE)]))
    assert near(inside, YELLOW)
    assert near(np.array(elsewhere), PURPLE)


def test_holes_in_the_sides_are_holes() -> None:
    interactive, still = side_views({"a": drawn(with_holes(steep())), "b": drawn(steep())}, LABELS)
    holes = {(i, j) for j, i in zip(*np.nonzero(np.isnan(interactive.data[0].z)), strict=True)}
    assert holes == {(i, j) for i, j, _ in HOLES}
    assert np.isfinite(interactive.data[1].z).all()
    interactive.to_json()
    for axis in still.axes:
        axis.view_init(elev=90, azim=-90)
    places = [(ALPHA[i], BETA[j], -1.0) for i, j, _ in HOLES]
    holed, whole = pixels(still, *((axis, places) for axis in still.axes))
    assert (np.ptp(holed, axis=1) < 10).all()  # white, or a line of the grid behind
    assert (np.ptp(whole, axis=1) > 60).all()


def test_the_interactive_figure_has_a_surface_a_panel_and_two_views() -> None:
    names = ["with shortcuts", "without", "third"]
    interactive, still = side_views(dict.fromkeys(names, drawn(rough())), LABELS)
    assert [trace.type for trace in interactive.data] == ["surface"] * 3
    scenes = ["scene", "scene2", "scene3"]
    assert [trace.scene for trace in interactive.data] == scenes
    assert [annotation.text for annotation in interactive.layout.annotations] == names
    for trace in interactive.data:
        assert {part.dtype for part in (trace.x, trace.y, trace.z)} == {np.dtype(np.float32)}
    (menu,) = interactive.layout.updatemenus
    assert [button.label for button in menu.buttons] == ["from the side", "from above"]
    eyes = []
    for button in menu.buttons:
        (cameras,) = button.args
        assert button.method == "relayout"
        assert set(cameras) == {f"{scene}.camera" for scene in scenes}
        eyes.append([cameras[f"{scene}.camera"]["eye"] for scene in scenes])
    start = json.loads(interactive.to_json())["layout"]
    assert [start[scene]["camera"]["eye"] for scene in scenes] == eyes[0]
    assert all(abs(eye["x"]) + abs(eye["y"]) < 0.1 * eye["z"] for eye in eyes[1])  # from right above
    for scene in scenes:
        axes = [interactive.layout[scene][f"{letter}axis"].title.text for letter in "xyz"]
        assert axes == [LABELS.x, LABELS.y, LABELS.z]
    assert len(still.axes) == 3
    for axis, name in zip(still.axes, names, strict=True):
        assert axis.name == "3d"
        labels = (axis.get_xlabel(), axis.get_ylabel(), axis.get_zlabel())
        assert (axis.get_title(), *labels) == (name, LABELS.x, LABELS.y, LABELS.z)


def test_heights_are_labelled_in_units_of_the_loss() -> None:
    interactive, still = side_views({"a": drawn(steep(0.02, 5))}, LABELS)
    axis = interactive.layout.scene.zaxis
    assert list(axis.ticktext) == ["0.03", "0.1", "0.3", "1", "3"]
    np.testing.assert_allclose(axis.tickvals, np.log10([0.03, 0.1, 0.3, 1, 3]))
    assert [tick.get_text() for tick in still.axes[0].get_zticklabels()] == list(axis.ticktext)
    np.testing.assert_allclose(still.axes[0].get_zticks(), axis.tickvals)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.002, 50, ["0.01", "0.03", "0.1", "0.3", "1", "3", "10"]),
        (0.3, 1, ["0.3", "1"]),
        (4, 8, ["4", "8"]),  # no round value in between
        (0.65432, 1.23456, ["0.654", "1.23"]),  # but one
        (2.5, 2.5, ["1.25", "2.5"]),
    ],
)
def test_no_scale_is_without_numbers(low: float, high: float, expected: list[str]) -> None:
    panels = {"a": drawn(steep(low, high))}
    figure = contour_maps(panels, 1, LABELS)
    figure.canvas.draw()
    assert numbers(figure.axes[-1]) == expected
    interactive, still = side_views(panels, LABELS)
    assert list(interactive.layout.scene.zaxis.ticktext) == expected
    assert [tick.get_text() for tick in still.axes[0].get_zticklabels()] == expected


def lonely() -> np.ndarray:
    return np.where(np.arange(35).reshape(5, 7) == 17, 1.3, np.nan)


DULL = {"equal": np.full((5, 7), 2.5), "zero": np.zeros((5, 7)), "none": np.full((5, 7), np.nan), "one": lonely()}


@pytest.mark.parametrize(("name", "beside"), [("equal", 0), ("one", 0), *((name, 1) for name in DULL)])
def test_surfaces_with_nothing_to_tell_are_drawn_without_a_warning(name: str, beside: int) -> None:
    panels = {**({"rough": drawn(rough())} if beside else {}), "a": drawn(DULL[name])}
    figure = contour_maps(panels, len(panels), LABELS)
    interactive, still = side_views(panels, LABELS)
    still.canvas.draw()
    (colour,) = pixels(figure, (figure.axes[beside], [INSIDE]))
    assert near(colour, GREY, 2) == (name in ("none", "one"))
    np.testing.assert_array_equal(np.isnan(interactive.data[-1].z), np.isnan(DULL[name].T))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_no_finite_loss_is_nothing_to_draw(value: float) -> None:
    panels = {"a": drawn(np.full((5, 7), value)), "b": drawn(np.full((5, 7), np.nan))}
    for draw in (lambda: contour_maps(panels, 2, LABELS), lambda: side_views(panels, LABELS)):
        with pytest.raises(ValueError, match="no surface has a finite loss above zero: nothing to draw"):
            draw()
    assert not plt.get_fignums()
