"""How the panels of a figure are placed: flat ones in rows, and those in three dimensions side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from descent.plots.style import Labels

Figures = tuple[go.Figure, Figure]  # an interactive one, and its still picture


def panel_grid(
    count: int, columns: int, size: tuple[float, float], margin: float = 0.5, share: bool = True
) -> tuple[Figure, list[Any]]:
    """A figure with `count` flat panels, row by row.

    Args:
        count: number of panels; what is left of the last row stays empty.
        columns: panels in a row.
        size: width of the figure and height of a row, in inches.
        margin: height that is added to that of the rows, in inches.
        share: whether all panels have the same ranges.
    """
    rows = -(-count // columns)
    inches = (size[0], size[1] * rows + margin)
    figure, axes = plt.subplots(rows, columns, figsize=inches, squeeze=False, sharex=share, sharey=share)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def label_panels(axes: Sequence[Any], columns: int, titles: Sequence[str], labels: Labels) -> None:
    """Give each panel its title, and the labels to the leftmost and to the lowest of each column only."""
    for number, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        lowest = number + columns >= len(axes)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel(labels.x if lowest else "")
        axis.set_ylabel(labels.y if number % columns == 0 else "")
        if lowest:  # also above a gap in the last row, whose unseen panels have the shared numbers
            axis.tick_params(labelbottom=True)


def interactive_row(titles: Sequence[str], spacing: float = 0.02) -> go.Figure:
    """An empty interactive figure with a three-dimensional panel for each title, side by side."""
    scenes = [[{"type": "scene"}] * len(titles)]
    return make_subplots(1, len(titles), specs=scenes, subplot_titles=list(titles), horizontal_spacing=spacing)


def still_row(count: int, size: tuple[float, float], **options: Any) -> tuple[Figure, list[Any]]:
    """A still figure of that size in inches with `count` three-dimensional panels side by side, and their axes."""
    figure = plt.figure(figsize=size)
    return figure, [figure.add_subplot(1, count, n, projection="3d", **options) for n in range(1, count + 1)]
