"""Loss surfaces as figures: from above and from the side, on one colour scale. Never computes, never saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from descent.plots.style import BLACK, RED, Labels

Array = NDArray[Any]
CLIP = 10.0  # the loss above which all is one colour, as in the pictures of Li et al. 2018
MAP = "viridis"


class Surface(Protocol):
    """What is drawn: a loss on a grid, such as `descent.landscape.LossSurface`."""

    @property
    def alpha(self) -> Array:
        """`(m,)`, the coordinate along the first direction."""

    @property
    def beta(self) -> Array:
        """`(n,)`, along the second."""

    @property
    def loss(self) -> Array:
        """`(m, n)`, mean per example."""


def _range(panels: Mapping[str, Surface], clip: float) -> tuple[float, float]:
    """The least finite positive loss of all panels and the greatest, neither above `clip`; an octave if these agree."""
    every = np.concatenate([surface.loss.ravel() for surface in panels.values()])
    every = every[np.isfinite(every) & (every > 0)]
    if every.size == 0:
        raise ValueError("no surface has a finite loss above zero: nothing to draw")
    low, high = float(min(every.min(), clip)), float(min(every.max(), clip))
    return (low, high) if high > low else (high / 2, high)


def _ticks(low: float, high: float) -> list[float]:
    """Round values in the range, or its ends where it has fewer than two: no scale is without numbers."""
    found = [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if low <= tick <= high]
    return found if len(found) > 1 else [low, high]


def _shown(values: Array, low: float, high: float) -> Array:
    """Clipped to the range; NaN, a hole, where the value is not finite."""
    return np.where(np.isfinite(values), np.clip(values, low, high), np.nan)


def contour_maps(
    panels: Mapping[str, Surface],
    columns: int,
    labels: Labels,
    *,
    clip: float = CLIP,
    paths: Mapping[str, Array] | None = None,
) -> Figure:
    """Surfaces from above: filled contours, one logarithmic colour scale for all, holes grey.

    Args:
        panels: title -> surface.
        columns: panels in a row.
        labels: x and y of every panel, z of the colour bar.
        clip: losses above it have its colour.
        paths: title -> `(t, 2)`, a path over that panel, its end marked.
    """
    low, high = _range(panels, clip)
    norm, levels = LogNorm(low, high), np.geomspace(low, high, 21)
    figure, axes = _grid(len(panels), columns, share=not paths)
    for axis, (title, surface) in zip(axes.flat, panels.items(), strict=False):
        shown = _shown(surface.loss, low, high).T
        axis.set_facecolor("#dddddd")
        filled = axis.contourf(surface.alpha, surface.beta, shown, levels, norm=norm, cmap=MAP, extend="neither")
        axis.contour(surface.alpha, surface.beta, shown, levels[::2], colors="white", linewidths=0.5, alpha=0.7)
        if paths and title in paths:
            axis.plot(*paths[title].T, color=RED, lw=1.6, marker=".", ms=4)
            axis.plot(*paths[title][-1:].T, "o", color=RED, ms=7, mec="white")
        else:
            axis.plot(0, 0, "+", color="white", ms=9, mew=1.5)
        axis.set_title(title, fontsize=11)
        axis.grid(visible=False)
    _name(axes, len(panels), columns, labels)
    bar = figure.colorbar(filled, ax=axes, label=labels.z, shrink=0.9, pad=0.02)
    bar.set_ticks(_ticks(low, high))
    bar.ax.yaxis.set_major_formatter("{x:.3g}")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return figure


def heat_maps(
    panels: Mapping[str, tuple[Array, Array, Array]],
    columns: int,
    labels: Labels,
    ends: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Values on grids as coloured squares, one linear scale for all, holes grey.

    Args:
        panels: title -> (alpha `(m,)`, beta `(n,)`, values `(m, n)`).
        columns: panels in a row.
        labels: x and y of every panel, z of the colour bar.
        ends: of the scale; a value beyond has the colour of the nearer one.
    """
    figure, axes = _grid(len(panels), columns, share=True)
    for axis, (title, (alpha, beta, values)) in zip(axes.flat, panels.items(), strict=False):
        axis.set_facecolor("#dddddd")
        image = axis.pcolormesh(alpha, beta, values.T, norm=Normalize(*ends), cmap=MAP, shading="nearest")
        axis.set_title(title, fontsize=11)
        axis.grid(visible=False)
    _name(axes, len(panels), columns, labels)
    every = np.concatenate([values[np.isfinite(values)] for _, _, values in panels.values()])
    beyond = bool((every < ends[0]).any()), bool((every > ends[1]).any())
    extend = {(True, False): "min", (False, True): "max", (True, True): "both"}.get(beyond, "neither")
    figure.colorbar(image, ax=axes, label=labels.z, shrink=0.9, pad=0.02, extend=extend)
    return figure


def _grid(count: int, columns: int, share: bool) -> tuple[Figure, Any]:
    rows = -(-count // columns)
    size = (10, 10 / columns * 0.92 * rows + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=share, sharey=share)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes


def _name(axes: Any, count: int, columns: int, labels: Labels) -> None:
    for number, axis in enumerate(axes.flat[:count]):
        lowest = number + columns >= count
        axis.set_xlabel(labels.x if lowest else "")
        axis.set_ylabel(labels.y if number % columns == 0 else "")
        if lowest:  # also above a gap in the last row, whose unseen panels have the shared numbers
            axis.tick_params(labelbottom=True)


def side_views(panels: Mapping[str, Surface], labels: Labels, clip: float = CLIP) -> tuple[go.Figure, Figure]:
    """Surfaces from the side, log loss as height, one colour scale: an interactive figure, and its still picture.

    The interactive one has two buttons, for the view from the side and the bird's-eye view.

    Args:
        panels: title -> surface, side by side.
        labels: all three axes; heights are labelled in units of the loss.
        clip: losses above it are cut off at it.
    """
    low, high = _range(panels, clip)
    ticks = _ticks(low, high)
    height = {title: np.log10(_shown(surface.loss, low, high)) for title, surface in panels.items()}
    ends = (float(np.log10(low)), float(np.log10(high)))
    return _interactive(panels, height, labels, ends, ticks), _still(panels, height, labels, ends, ticks)


def _interactive(
    panels: Mapping[str, Surface],
    height: Mapping[str, Array],
    labels: Labels,
    ends: tuple[float, float],
    ticks: Sequence[float],
) -> go.Figure:
    scenes = [[{"type": "scene"}] * len(panels)]
    figure = make_subplots(1, len(panels), specs=scenes, subplot_titles=list(panels), horizontal_spacing=0.02)
    for column, (title, surface) in enumerate(panels.items(), 1):
        trace = go.Surface(
            x=surface.alpha.astype(np.float32), y=surface.beta.astype(np.float32),
            z=height[title].T.astype(np.float32), cmin=ends[0], cmax=ends[1], colorscale=MAP,
            showscale=False, hoverinfo="skip",
        )  # fmt: skip
        figure.add_trace(trace, 1, column)
    text = [f"{tick:.3g}" for tick in ticks]
    z_axis = {"title": {"text": labels.z}, "range": list(ends), "tickvals": np.log10(ticks).tolist(), "ticktext": text}
    axes = {"xaxis": {"title": {"text": labels.x}}, "yaxis": {"title": {"text": labels.y}}, "zaxis": z_axis}
    distance = 1.7 + 0.3 * len(panels)
    side = {"eye": {"x": 0.6 * distance, "y": 0.6 * distance, "z": 0.4 * distance}, "up": {"x": 0, "y": 0, "z": 1}}
    above = {"eye": {"x": 0, "y": -0.01, "z": distance}, "up": {"x": 0, "y": 1, "z": 0}}
    figure.update_scenes(**axes, camera=side, aspectmode="cube")
    names = ["scene" if column == 0 else f"scene{column + 1}" for column in range(len(panels))]
    views = [
        {"label": label, "method": "relayout", "args": [{f"{name}.camera": camera for name in names}]}
        for label, camera in (("from the side", side), ("from above", above))
    ]
    menu: dict[str, Any] = {"type": "buttons", "direction": "left", "buttons": views}
    menu.update({"x": 0, "xanchor": "left", "y": -0.02, "yanchor": "top"})
    figure.update_layout(height=470, margin={"l": 0, "r": 0, "t": 30, "b": 50}, updatemenus=[menu])
    return figure


def _still(
    panels: Mapping[str, Surface],
    height: Mapping[str, Array],
    labels: Labels,
    ends: tuple[float, float],
    ticks: Sequence[float],
) -> Figure:
    figure = plt.figure(figsize=(max(6.4, 4.8 * len(panels)), 4.4))
    for column, (title, surface) in enumerate(panels.items(), 1):
        axis: Any = figure.add_subplot(1, len(panels), column, projection="3d")
        a, b = np.meshgrid(surface.alpha, surface.beta, indexing="ij")
        axis.plot_surface(a, b, height[title], cmap=MAP, vmin=ends[0], vmax=ends[1], rcount=80, ccount=80, lw=0)
        axis.set(title=title, xlabel=labels.x, ylabel=labels.y, zlabel=labels.z, zlim=ends)
        axis.set_zticks(np.log10(ticks), [f"{tick:.3g}" for tick in ticks])
        axis.view_init(elev=32, azim=48)
        axis.tick_params(labelsize=8, pad=0, colors=BLACK)
        axis.set_box_aspect((1, 1, 0.75), zoom=0.95)
        for pane in (axis.xaxis, axis.yaxis, axis.zaxis):
            pane.pane.set_alpha(0.0)
    return figure
