"""The look of every figure: colours, type, the labels that an axis must have, and how a figure is shown."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import plotly.graph_objects as go
from cycler import cycler
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

PLOTLY = "application/vnd.plotly.v1+json"
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
