"""Figures of features: rays in the plane and solids in space; nothing is computed or saved here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from numpy.typing import NDArray

from descent.plots.style import (
    BLUE,
    COLOURS,
    GREY,
    ORANGE,
    Figures,
    Labels,
    interactive_row,
    label_panels,
    panel_grid,
    still_row,
)

Array = NDArray[Any]
SHARED = "cividis"  # dark is a direction of its own, bright one that is shared


def feature_rays(panels: Mapping[str, Array], columns: int, labels: Labels, groups: Sequence[int] = ()) -> Figure:
    """The features of maps into the plane as rays from the origin, with the circle of radius one.

    Args:
        panels: title -> W `(2, n)`, a column for each feature.
        columns: panels in a row.
        labels: x and y of every panel.
        groups: `(n,)`; features with the same number have the same colour. Empty gives all features one colour.
    """
    figure, axes = panel_grid(len(panels), columns, (10, 10 / columns + 0.3))  # with room for titles
    label_panels(axes, columns, list(panels), labels)
    turn = np.linspace(0, 2 * np.pi, 200)
    for axis, W in zip(axes, panels.values(), strict=True):
        axis.plot(np.cos(turn), np.sin(turn), color=GREY, lw=0.8)
        for feature, (x, y) in enumerate(W.T):
            colour = COLOURS[groups[feature] % len(COLOURS)] if len(groups) else BLUE
            axis.plot([0, x], [0, y], color=colour, lw=1.6)
            axis.plot(x, y, "o", color=colour, ms=6)
        axis.set(aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
    return figure


@dataclass(frozen=True)
class Solid:
    """Points in space and the edges between them.

    Attributes:
        points: `(n, 3)`.
        edges: pairs of indices of points.
        colour: `(n,)`, the value that the colour of a point shows.

    Raises:
        ValueError: points that are not in space, or another number of colours.
    """

    points: Array
    edges: Sequence[tuple[int, int]]
    colour: Array

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 3 or len(self.colour) != len(self.points):
            raise ValueError(f"points of shape {self.points.shape}, {len(self.colour)} colours: expected (n, 3) and n")


def solid_panels(panels: Mapping[str, Solid], colour_label: str, ends: tuple[float, float] = (0.0, 1.0)) -> Figures:
    """Polytopes with a ray from the origin to each corner, as an interactive figure and its still picture.

    Args:
        panels: title -> solid.
        colour_label: label of the colour bar of the corners.
        ends: the values at the ends of the colour bar.
    """
    interactive = interactive_row(panels, 0.01)
    for column, solid in enumerate(panels.values(), 1):
        for trace in _traces(solid, colour_label if column == 1 else "", ends):
            interactive.add_trace(trace, 1, column)
    unseen = {"visible": False, "range": [-1.25, 1.25]}
    camera = {"eye": {"x": 1.2, "y": 1.0, "z": 0.7}}
    interactive.update_scenes(xaxis=unseen, yaxis=unseen, zaxis=unseen, aspectmode="cube", camera=camera)
    interactive.update_layout(height=380, margin={"l": 0, "r": 0, "t": 40, "b": 0}, showlegend=False)
    interactive.update_annotations(font_size=13)
    return interactive, _still(panels, colour_label, ends)


def _lines(pairs: Sequence[tuple[Array, Array]]) -> Array:
    """The ends of k line segments, one after the other with NaN between them, `(3 k, 3)`."""
    gap = np.full(3, np.nan)
    return np.array([point for start, end in pairs for point in (start, end, gap)], np.float32).reshape(-1, 3)


def _traces(solid: Solid, colour_label: str, ends: tuple[float, float]) -> list[go.Scatter3d]:
    edges = _lines([(solid.points[a], solid.points[b]) for a, b in solid.edges]).T
    rays = _lines([(np.zeros(3), point) for point in solid.points]).T
    marker: dict[str, Any] = {"size": 7, "color": solid.colour.astype(np.float32), "cmin": ends[0], "cmax": ends[1]}
    marker |= {"colorscale": SHARED.capitalize(), "showscale": bool(colour_label)}
    if colour_label:
        marker["colorbar"] = {"title": colour_label, "thickness": 12, "len": 0.8}
    text = [f"feature {number}<br>{value:.3f}" for number, value in enumerate(solid.colour)]
    x, y, z = solid.points.astype(np.float32).T
    quiet = {"mode": "lines", "hoverinfo": "skip"}
    return [
        go.Scatter3d(x=rays[0], y=rays[1], z=rays[2], line={"color": "#bbbbbb", "width": 2}, **quiet),
        go.Scatter3d(x=edges[0], y=edges[1], z=edges[2], line={"color": ORANGE, "width": 5}, **quiet),
        go.Scatter3d(x=x, y=y, z=z, mode="markers", marker=marker, text=text, hoverinfo="text"),
    ]


def _still(panels: Mapping[str, Solid], colour_label: str, ends: tuple[float, float]) -> Figure:
    figure, axes = still_row(panels, (10, 3.1), (22, 38), xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
    for axis, solid in zip(axes, panels.values(), strict=True):
        for point in solid.points:
            axis.plot(*np.stack([np.zeros(3), point]).T, color="#bbbbbb", lw=0.9)
        for a, b in solid.edges:
            axis.plot(*solid.points[[a, b]].T, color=ORANGE, lw=1.8)
        corners = {"cmap": SHARED, "vmin": ends[0], "vmax": ends[1], "s": 44, "depthshade": False}
        drawn = axis.scatter(*solid.points.T, c=solid.colour, **corners)
        axis.title.set_size(11)
        axis.set_axis_off()
        axis.set_box_aspect((1, 1, 1), zoom=1.3)
    figure.colorbar(drawn, ax=axes, label=colour_label, shrink=0.8, pad=0.01)
    return figure
