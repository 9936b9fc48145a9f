"""The look of every figure: colours, type, labels that an axis must have, the places of panels, how it is shown."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import plotly.graph_objects as go
from cycler import cycler
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image
from plotly.subplots import make_subplots

from descent.repro.records import save_figure

Figures = tuple[go.Figure, Figure]  # an interactive one, and its still picture
Still = tuple[Figure, list[Any]]  # a figure and its axes
PLOTLY = "application/vnd.plotly.v1+json"
EXPLORABLE = "application/vnd.descent.explorable+json"  # what a page computes and draws as its reader moves something
# Okabe and Ito's palette, whose colours differ with every common kind of colour blindness
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#222222", "#8C8C8C"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
STYLE: dict[Any, Any] = {
    "figure.figsize": (8, 4),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 12,  # wide figures shrink to a page of about 700 pixels
    "legend.frameon": False,
    "image.cmap": "viridis",
    "svg.hashsalt": "descent",  # equal figures are equal files
}


@dataclass(frozen=True)
class Labels:
    """The labels of axes, units included.

    Attributes:
        x: label of the horizontal axis.
        y: label of the vertical axis.
        z: label of the third axis, or of the colour bar, where there is one.

    Raises:
        ValueError: a label of the horizontal or the vertical axis is empty.
    """

    x: str
    y: str
    z: str = ""

    def __post_init__(self) -> None:
        if not (self.x.strip() and self.y.strip()):
            raise ValueError(f"x={self.x!r}, y={self.y!r}: expected a label with its unit on both axes")


def use_style() -> None:
    """Set the book's matplotlib style for this process."""
    plt.rcParams.update(STYLE)


def panel_grid(count: int, columns: int, size: tuple[float, float], margin: float = 0.5, share: bool = True) -> Still:
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


def interactive_row(titles: Iterable[str], spacing: float = 0.02) -> go.Figure:
    """An empty interactive figure with a three-dimensional panel for each title, side by side."""
    names = list(titles)
    scenes = [[{"type": "scene"}] * len(names)]
    return make_subplots(1, len(names), specs=scenes, subplot_titles=names, horizontal_spacing=spacing)


def still_row(titles: Iterable[str], size: tuple[float, float], view: tuple[float, float], **settings: Any) -> Still:
    """A still figure with a three-dimensional panel for each title, side by side, and its axes.

    Args:
        titles: one for each panel.
        size: width and height of the figure in inches.
        view: elevation and azimuth of the camera in degrees.
        settings: of all axes, such as their labels.
    """
    names, figure = list(titles), plt.figure(figsize=size)
    axes = [figure.add_subplot(1, len(names), number, projection="3d") for number in range(1, len(names) + 1)]
    for axis, name in zip(axes, names, strict=True):
        axis.set(title=name, **settings)
        axis.view_init(*view)
        axis.tick_params(labelsize=8, pad=0)
        axis.set_box_aspect((1, 1, 0.75), zoom=0.95)
        for pane in (axis.xaxis, axis.yaxis, axis.zaxis):
            pane.pane.set_alpha(0.0)
    return figure, axes


def _picture(figure: Figure) -> bytes:
    """The figure as PNG in 256 colours chosen for it, which takes about a third of the bytes of a full one."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", metadata={"Software": None})
    drawn = Image.open(full).convert("RGB")
    drawn.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def show(figure: Figure, alt: str, interactive: go.Figure | None = None) -> None:
    """Display one output: the picture, a text for those who do not see it, and the interactive figure if there is one.

    The book and JupyterLab draw the interactive figure, a viewer without scripts the picture. Colab gets only the
    interactive figure, as it does not draw it from such an output.

    Raises:
        ValueError: `alt` has fewer than 20 characters, and cannot say what the figure shows.
    """
    if len(alt.strip()) < 20:
        raise ValueError(f"alt={alt!r}: expected a sentence that says what the figure shows")
    if interactive is not None and os.environ.get("COLAB_RELEASE_TAG"):
        plt.close(figure)
        interactive.show(renderer="colab")
        return
    bundle = {"image/png": base64.b64encode(_picture(figure)).decode(), "text/plain": alt}
    plt.close(figure)
    if interactive is not None:
        bundle[PLOTLY] = json.loads(interactive.to_json())
    display(bundle, raw=True)  # type: ignore[no-untyped-call]


def show_figure(figure: Figure, name: str, folder: str | Path = "", forms: Mapping[str, Any] | None = None) -> None:
    """Display a figure whose caption and alternative text stand once, in its cell's metadata, and keep a copy of it.

    Args:
        figure: is closed afterwards.
        name: of the file, without a suffix; a viewer that shows no picture shows it instead.
        folder: in which the figure is kept as PNG, SVG and PDF; if empty, it is not kept.
        forms: MIME type -> plain JSON values, other forms of the same output, such as one that a reader can move.
            A viewer that does not know them shows the picture.

    Raises:
        ValueError: the name is empty.
    """
    if not name.strip():
        raise ValueError(f"name={name!r}: expected the name of the figure's file")
    save_figure(figure, folder, name)
    bundle = {"image/png": base64.b64encode(_picture(figure)).decode(), "text/plain": name, **(forms or {})}
    plt.close(figure)
    display(bundle, raw=True)  # type: ignore[no-untyped-call]
