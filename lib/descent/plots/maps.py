"""Maps of values on grids, such as loss surfaces, from above and from the side; nothing is computed or saved here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from descent.plots.style import RED, Figures, Labels, interactive_row, label_panels, panel_grid, still_row

Array = NDArray[Any]
CLIP = 10.0  # the loss above which everything has one colour, as in the pictures of Li et al. 2018
MAP = "viridis"
HOLE = "#dddddd"
Heights = Mapping[str, tuple[Array, Array, Array]]  # title -> (alpha, beta, logarithm of the loss)


class Surface(Protocol):
    """What is drawn: a loss on a grid, such as `descent.landscape.LossSurface`."""

    @property
    def alpha(self) -> Array:
        """The coordinate along the first direction, `(m,)`."""

    @property
    def beta(self) -> Array:
        """The coordinate along the second direction, `(n,)`."""

    @property
    def loss(self) -> Array:
        """The loss, `(m, n)`, mean per example; NaN and infinity are holes."""


def _range(panels: Mapping[str, Surface], clip: float) -> tuple[float, float]:
    """The least finite positive loss of all panels and the greatest, neither above `clip`; an octave if these agree."""
    every = np.concatenate([surface.loss.ravel() for surface in panels.values()])
    every = every[np.isfinite(every) & (every > 0)]
    if every.size == 0:
        raise ValueError("no surface has a finite loss above zero: nothing to draw")
    low, high = float(min(every.min(), clip)), float(min(every.max(), clip))
    return (low, high) if high > low else (high / 2, high)


def _ticks(low: float, high: float) -> list[float]:
    """Round values in the range, or its ends where it has fewer than two, so that no scale is without numbers."""
    ticks = [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100) if low <= tick <= high]
    return ticks if len(ticks) > 1 else [low, high]


def _shown(values: Array, low: float, high: float) -> Array:
    """The values clipped to the range; NaN, which is drawn as a hole, where a value is not finite."""
    return np.where(np.isfinite(values), np.clip(values, low, high), np.nan)


def contour_maps(
    panels: Mapping[str, Surface | None],
    columns: int,
    labels: Labels,
    *,
    clip: float = CLIP,
    paths: Mapping[str, Array] | None = None,
) -> Figure:
    """Surfaces from above as filled contours, on one logarithmic colour scale; holes are grey.

    Args:
        panels: title -> surface, or None for a place that stays empty.
        columns: panels in a row.
        labels: x and y of every panel, z of the colour bar.
        clip: losses above it have its colour.
        paths: title -> `(t, 2)`, a path over that panel, whose end is marked; the other panels mark their centre.

    Raises:
        ValueError: no loss is finite and above zero.

    Example:
        >>> from types import SimpleNamespace
        >>> alpha, beta = np.linspace(-1, 1, 5), np.linspace(-1, 1, 7)
        >>> bowl = SimpleNamespace(alpha=alpha, beta=beta, loss=0.1 + alpha[:, None] ** 2 + beta**2)
        >>> figure = contour_maps({"a bowl": bowl}, 1, Labels("α", "β", "loss (nats)"))
        >>> [(axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes]
        [('a bowl', 'α', 'β'), ('', '', 'loss (nats)')]
    """
    _check_some(panels)
    low, high = _range({name: surface for name, surface in panels.items() if surface}, clip)
    norm, levels = LogNorm(low, high), np.geomspace(low, high, 21)
    figure, axes = panel_grid(len(panels), columns, _size(columns), share=not paths)
    label_panels(axes, columns, list(panels), labels)
    for axis, (title, surface) in zip(axes, panels.items(), strict=True):
        if surface is None:
            axis.set_axis_off()
            axis.set_title("")
            continue
        shown = _shown(surface.loss, low, high).T
        axis.set_facecolor(HOLE)
        filled = axis.contourf(surface.alpha, surface.beta, shown, levels, norm=norm, cmap=MAP, extend="neither")
        axis.contour(surface.alpha, surface.beta, shown, levels[::2], colors="white", linewidths=0.5, alpha=0.7)
        if paths and title in paths:
            axis.plot(*paths[title].T, color=RED, lw=1.6, marker=".", ms=4)
            axis.plot(*paths[title][-1:].T, "o", color=RED, ms=7, mec="white")
        else:
            axis.plot(0, 0, "+", color="white", ms=9, mew=1.5)
        axis.grid(visible=False)
    bar = figure.colorbar(filled, ax=axes, label=labels.z, shrink=0.9, pad=0.02)
    bar.set_ticks(_ticks(low, high))
    bar.ax.yaxis.set_major_formatter("{x:.3g}")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return figure


def heat_maps(
    panels: Mapping[str, tuple[Array, Array, Array] | None],
    columns: int,
    labels: Labels,
    ends: tuple[float, float] = (0.0, 1.0),
    colours: str = MAP,
) -> Figure:
    """Values on grids as coloured squares, on one linear scale; NaN and infinity are holes, which are grey.

    Args:
        panels: title -> (alpha `(m,)`, beta `(n,)`, values `(m, n)`), or None for a place that stays empty.
        columns: panels in a row.
        labels: x and y of every panel, z of the colour bar.
        ends: those of the scale; a value beyond has the colour of the nearer one.
        colours: a colour map of matplotlib; one that diverges, such as `RdBu`, where the middle is special.

    Raises:
        ValueError: no panel at all, or only empty places.
    """
    _check_some(panels)
    figure, axes = panel_grid(len(panels), columns, _size(columns))
    label_panels(axes, columns, list(panels), labels)
    for axis, panel in zip(axes, panels.values(), strict=True):
        if panel is None:
            axis.set_axis_off()
            axis.set_title("")
            continue
        alpha, beta, values = panel
        axis.set_facecolor(HOLE)
        shown = np.where(np.isfinite(values), values, np.nan)
        image = axis.pcolormesh(alpha, beta, shown.T, norm=Normalize(*ends), cmap=colours, shading="nearest")
        axis.grid(visible=False)
    every = np.concatenate([panel[2][np.isfinite(panel[2])] for panel in panels.values() if panel])
    beyond = bool((every < ends[0]).any()), bool((every > ends[1]).any())
    extend = {(True, False): "min", (False, True): "max", (True, True): "both"}.get(beyond, "neither")
    figure.colorbar(image, ax=axes, label=labels.z, shrink=0.9, pad=0.02, extend=extend)
    return figure


def _check_some(panels: Mapping[str, object]) -> None:
    if not any(panel is not None for panel in panels.values()):
        raise ValueError(f"panels={dict(panels)}: expected one or more that are not None")


def _size(columns: int) -> tuple[float, float]:
    """Width of a figure and height of a row in inches, so that panels are nearly square."""
    return 10, 10 / columns * 0.92


def side_views(panels: Mapping[str, Surface], labels: Labels, clip: float = CLIP) -> Figures:
    """Surfaces from the side, log loss as height, on one colour scale, as an interactive figure and its still picture.

    The interactive figure has buttons for the view from the side and that from above.

    Args:
        panels: title -> surface.
        labels: those of all three axes; heights are labelled in units of the loss.
        clip: losses above it are cut off at it.

    Raises:
        ValueError: no loss is finite and above zero.
    """
    low, high = _range(panels, clip)
    heights = {name: (f.alpha, f.beta, np.log10(_shown(f.loss, low, high))) for name, f in panels.items()}
    ends = (float(np.log10(low)), float(np.log10(high)))
    ticks = {float(np.log10(tick)): f"{tick:.3g}" for tick in _ticks(low, high)}
    return _interactive(heights, labels, ends, ticks), _still(heights, labels, ends, ticks)


def _interactive(heights: Heights, labels: Labels, ends: tuple[float, float], ticks: Mapping[float, str]) -> go.Figure:
    figure = interactive_row(heights)
    for column, (alpha, beta, height) in enumerate(heights.values(), 1):
        x, y, z = (values.astype(np.float32) for values in (alpha, beta, height.T))
        colour = {"cmin": ends[0], "cmax": ends[1], "colorscale": MAP, "showscale": False}
        figure.add_trace(go.Surface(x=x, y=y, z=z, hoverinfo="skip", **colour), 1, column)
    distance = 1.7 + 0.3 * len(heights)
    side = {"eye": {"x": 0.6 * distance, "y": 0.6 * distance, "z": 0.4 * distance}, "up": {"x": 0, "y": 0, "z": 1}}
    above = {"eye": {"x": 0, "y": -0.01, "z": distance}, "up": {"x": 0, "y": 1, "z": 0}}
    axes = {f"{axis}axis_title_text": text for axis, text in zip("xyz", (labels.x, labels.y, labels.z), strict=True)}
    heights_axis = {"zaxis_range": ends, "zaxis_tickvals": list(ticks), "zaxis_ticktext": list(ticks.values())}
    figure.update_scenes(**axes, **heights_axis, camera=side, aspectmode="cube")
    names = ["scene" if column == 0 else f"scene{column + 1}" for column in range(len(heights))]
    views = [
        {"label": label, "method": "relayout", "args": [{f"{name}.camera": camera for name in names}]}
        for label, camera in (("from the side", side), ("from above", above))
    ]
    menu: dict[str, Any] = {"type": "buttons", "direction": "left", "buttons": views, "x": 0, "xanchor": "left"}
    menu |= {"y": -0.02, "yanchor": "top"}
    figure.update_layout(height=470, margin={"l": 0, "r": 0, "t": 30, "b": 50}, updatemenus=[menu])
    return figure


def _still(heights: Heights, labels: Labels, ends: tuple[float, float], ticks: Mapping[float, str]) -> Figure:
    size = max(6.4, 4.8 * len(heights)), 4.4
    figure, axes = still_row(heights, size, (32, 48), xlabel=labels.x, ylabel=labels.y, zlabel=labels.z)
    for axis, (alpha, beta, height) in zip(axes, heights.values(), strict=True):
        x, y = np.meshgrid(alpha, beta, indexing="ij")
        axis.plot_surface(x, y, height, cmap=MAP, vmin=ends[0], vmax=ends[1], rcount=80, ccount=80, lw=0)
        axis.set_zlim(ends)
        axis.set_zticks(list(ticks), list(ticks.values()))
    return figure
