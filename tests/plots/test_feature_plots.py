import numpy as np
import pytest

from descent.features.geometry import cluster_edges, figure_frame
from descent.plots.features import Solid, feature_rays, solid_panels
from descent.plots.style import Labels, use_style

LABELS = Labels("feature", "length", "interference")


def solid(name: str) -> Solid:
    points = figure_frame(name)
    return Solid(points.T.numpy(), cluster_edges(points), np.full(points.shape[1], 0.5))


def test_panels_have_labels_at_the_edge() -> None:
    use_style()
    planes = feature_rays({f"{i}": np.eye(2) for i in range(5)}, 3, LABELS)
    assert [axis.get_xlabel() for axis in planes.axes[:5]] == ["", "", "feature", "feature", "feature"]
    assert [axis.get_ylabel() for axis in planes.axes[:5]] == ["length", "", "", "length", ""]
    assert not planes.axes[5].get_visible()


def test_planes_draw_a_ray_for_each_feature() -> None:
    figure = feature_rays({"a": np.eye(2), "b": np.ones((2, 3))}, 2, LABELS, [0, 0, 1])
    assert [len(axis.lines) for axis in figure.axes] == [1 + 2 * 2, 1 + 2 * 3]
    colours = [line.get_color() for line in figure.axes[1].lines[1::2]]
    assert colours[0] == colours[1] != colours[2]


@pytest.mark.parametrize(("count", "columns"), [(4, 4), (6, 3), (5, 4), (2, 2), (1, 1)])
def test_planes_have_room_for_their_titles(count: int, columns: int) -> None:
    use_style()
    figure = feature_rays({f"{number} times": np.eye(2) for number in range(count)}, columns, LABELS)
    figure.canvas.draw()
    for axis in figure.axes[:count]:
        box = axis.get_tightbbox()
        assert box is not None
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


def test_solids_come_interactive_and_still_with_their_edges() -> None:
    interactive, still = solid_panels(
        {"tetrahedron": solid("tetrahedron"), "antiprism": solid("square antiprism")}, "share"
    )
    assert len(interactive.data) == 6
    assert len(interactive.data[1].x) == 3 * 6, "six edges, a gap after each"
    assert len(interactive.data[4].x) == 3 * 16
    drawn = [interactive.data[2].marker, interactive.data[5].marker]
    assert [(marker.cmin, marker.cmax) for marker in drawn] == [(0, 1), (0, 1)], "one scale of colours"
    assert [marker.showscale for marker in drawn] == [True, False], "and one bar"
    assert drawn[0].colorbar.title.text == "share"
    assert [axis.get_title() for axis in still.axes[:2]] == ["tetrahedron", "antiprism"]
    assert len(still.axes[0].lines) == 4 + 6


def test_points_that_are_not_in_space_are_refused() -> None:
    with pytest.raises(ValueError, match=r"points of shape \(4, 2\), 4 colours: expected \(n, 3\)"):
        Solid(np.zeros((4, 2)), [], np.zeros(4))
