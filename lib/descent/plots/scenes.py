"""Figures in three dimensions, each with its still picture; nothing is computed or saved here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from descent.plots.style import COLOURS, Figures, Labels, interactive_row, still_row

Array = NDArray[Any]
WHITE_TO_BLUE = ("#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b")  # pale, so that the paths stand out


@dataclass(frozen=True)
class Relief:
    """A surface with paths on it.

    Attributes:
        x: `(m,)`, the grid of the first coordinate.
        y: `(n,)`, the grid of the second coordinate.
        z: `(n, m)`, heights; one that is NaN, infinite or beyond float32 is left out of the picture.
        paths: label -> `(t, 3)`, points in order; left out where one is not finite.

    Raises:
        ValueError: heights of another shape, or none that can be drawn.
    """

    x: Array
    y: Array
    z: Array
    paths: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.z.shape != (len(self.y), len(self.x)):
            raise ValueError(f"z of shape {self.z.shape}: expected (len(y), len(x)) = {len(self.y), len(self.x)}")
        if np.isnan(_finite(self.z)).all():
            raise ValueError("none of the heights z is finite: nothing to draw")


def _finite(values: Array) -> Array:
    """The values; NaN, which is not drawn, where one is not finite as float32."""
    return np.where(np.abs(values) < np.finfo(np.float32).max, values, np.nan)


def relief_panels(panels: Mapping[str, Relief], labels: Labels) -> Figures:
    """Surfaces side by side with the paths on them, as an interactive figure and its still picture.

    Args:
        panels: title -> relief. A label of a path has one colour in all panels.
        labels: those of all three axes.
    """
    names = dict.fromkeys(name for panel in panels.values() for name in panel.paths)
    colour = dict(zip(names, COLOURS[1:], strict=False))
    interactive = interactive_row(panels)
    for column, panel in enumerate(panels.values(), 1):
        interactive.add_trace(_surface(panel), 1, column)
        for name, path in panel.paths.items():
            interactive.add_trace(_trail(path, name, colour[name], column == 1), 1, column)
    interactive.update_scenes(**_axes(labels), camera=_camera(1.7 + 0.4 * len(panels)))
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.02}
    interactive.update_layout(height=460, margin={"l": 0, "r": 0, "t": 30, "b": 0}, legend=legend)
    return interactive, _still(panels, colour, labels)


def _surface(relief: Relief) -> go.Surface:
    z = _finite(relief.z)
    low, high = float(np.nanmin(z)), float(np.nanmax(z))
    lines = {"show": high > low, "start": low, "end": high, "size": (high - low) / 14, "color": "rgba(255,255,255,0.6)"}
    return go.Surface(
        x=relief.x.astype(np.float32), y=relief.y.astype(np.float32), z=z.astype(np.float32),
        colorscale=WHITE_TO_BLUE, reversescale=True, showscale=False, opacity=0.93,
        contours={"z": lines}, hoverinfo="skip",
    )  # fmt: skip


def _trail(path: Array, name: str, colour: str, in_legend: bool) -> go.Scatter3d:
    """A path with a bead at its end."""
    trail = go.Scatter3d(
        name=name, mode="lines+markers", line={"color": colour, "width": 6}, legendgroup=name,
        marker={"color": colour, "line": {"width": 0}}, showlegend=in_legend,
    )  # fmt: skip
    return trail.update(_course(path))


def _course(path: Array) -> dict[str, Any]:
    """The part of a trail that changes as its path grows, which is all that a frame of an animation holds."""
    x, y, z = _finite(path).astype(np.float32).T
    size = np.zeros(len(path), np.uint8)
    size[-1] = 10  # wider than the line, which would hide it
    lifted = z + np.float32(0.02)  # above the surface, which would hide parts of a line within it
    return {"x": x, "y": y, "z": lifted, "marker": {"size": size}}


def _axes(labels: Labels) -> dict[str, Any]:
    names = zip("xyz", (labels.x, labels.y, labels.z), strict=True)
    return {f"{axis}axis": {"title": {"text": text}, "showbackground": False} for axis, text in names}


def _camera(distance: float) -> dict[str, dict[str, float]]:
    """A view from the side to which x and y grow, where the paths of this book leave."""
    return {"eye": {"x": 0.62 * distance, "y": 0.62 * distance, "z": 0.48 * distance}}


def _still(panels: Mapping[str, Relief], colour: Mapping[str, str], labels: Labels) -> Figure:
    size = max(6.4, 4.6 * len(panels)), 4.4
    figure, axes = still_row(panels, size, (38, 52), xlabel=labels.x, ylabel=labels.y, zlabel=labels.z)
    for axis, relief in zip(axes, panels.values(), strict=True):
        x, y = np.meshgrid(relief.x, relief.y)
        axis.computed_zorder = False  # the paths lie above the surface
        z = _finite(relief.z)
        axis.plot_surface(x, y, z, cmap="Blues_r", alpha=0.75, rcount=60, ccount=60, lw=0.15, edgecolor="white")
        for name, path in relief.paths.items():
            axis.plot(*_finite(path).T, color=colour[name], lw=2.2, zorder=5)
            axis.plot(*_finite(path[-1:]).T, "o", color=colour[name], ms=5, zorder=6)
    handles = [Line2D([], [], color=shade, lw=2.5, label=name) for name, shade in colour.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    return figure
