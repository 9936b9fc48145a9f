"""From arrays to figures: never computes, never saves. Colours and style come from here alone."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from cycler import cycler
from IPython.display import display
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

Array = NDArray[Any]
PLOTLY = "application/vnd.plotly.v1+json"
# Okabe and Ito's palette, told apart with every common kind of colour blindness
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#222222"
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
    """Axis labels, units included; a figure without them is refused.

    Attributes:
        x: label of the horizontal axis.
        y: label of the vertical axis.
        z: label of the third axis, or of the colour bar, where there is one.
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


def normalised_spectra(curves: Mapping[str, Array], fractions: Sequence[float], dashed: Sequence[str] = ()) -> Figure:
    """Normalised singular values on a linear and a logarithmic axis.

    Args:
        curves: label -> `(seeds, n)` values divided by the first; the mean is drawn, and a band from least to greatest.
        fractions: thresholds to mark by horizontal lines.
        dashed: labels to draw dashed, such as null models.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, scale in zip(axes, ("linear", "log"), strict=True):
        for label, values in curves.items():
            line = _band(axis, np.arange(1, values.shape[1] + 1), values, label, full_range=True)
            line.set_linestyle("--" if label in dashed else "-")
        for fraction in fractions:
            axis.axhline(fraction, color=BLACK, lw=0.8, ls=":")
            axis.annotate(
                f"{fraction:g}", (1, fraction), xycoords=("axes fraction", "data"), fontsize=9, ha="right", va="bottom"
            )
        axis.set(yscale=scale, xlabel="index i", ylabel="σᵢ / σ₁", xlim=(0, None))
    axes[0].set_ylim(0, 1.02)
    axes[1].set_ylim(1e-3, 1.2)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(curves), fontsize=11)
    return figure


def _band(axis: Any, x: Array, values: Array, label: str, full_range: bool = False) -> Any:
    """The mean of `(seeds, n)` values with a band: one standard deviation, or from the least seed to the greatest."""
    mean = values.mean(axis=0)
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
    low, high = (values.min(axis=0), values.max(axis=0)) if full_range else (mean - spread, mean + spread)
    (line,) = axis.plot(x, mean, label=label, marker="o" if len(x) < 16 else None, ms=4)
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.2, lw=0)
    return line


def curves(panels: Mapping[str, Mapping[str, tuple[Array, Array]]], labels: Labels, log_x: bool = False) -> Figure:
    """Panels side by side, each with its curves: mean over seeds with a band of one standard deviation.

    Args:
        panels: title -> label -> (x `(n,)`, values `(seeds, n)`).
        labels: of all panels.
        log_x: a logarithmic horizontal axis.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), sharey=True, squeeze=False)
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for label, (x, values) in lines.items():
            _band(axis, x, values, label)
        axis.set(title=title, xlabel=labels.x, xscale="log" if log_x else "linear")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend()
    axes[0, 0].set_ylabel(labels.y)
    return figure


def intervals(values: Mapping[str, Mapping[str, Array]], band: tuple[float, float], labels: Labels) -> Figure:
    """One row per setting: each seed a dot, the mean with a bar of one standard deviation, the source's band behind.

    Args:
        values: group (colour) -> setting (row) -> `(seeds,)`. Every group has the same settings.
        band: the source's interval.
        labels: x is the measured quantity, y what a row is.
    """
    rows = list(next(iter(values.values())))
    figure, axis = plt.subplots(figsize=(8, 0.55 * len(rows) + 1.4))
    axis.axvspan(*band, color=BLACK, alpha=0.12, lw=0, label=f"source: {band[0]:.1f} to {band[1]:.1f}")
    offsets = np.linspace(0.25, -0.25, len(values))
    for (group, settings), colour, offset in zip(values.items(), COLOURS, offsets, strict=False):
        for row, name in enumerate(rows):
            sample = settings[name]
            axis.plot(sample, np.full(len(sample), row + offset), ".", color=colour, alpha=0.35, ms=5)
            spread = sample.std(ddof=1) if len(sample) > 1 else 0
            axis.errorbar(sample.mean(), row + offset, xerr=spread, fmt="o", color=colour, ms=5, capsize=2,
                          label=group if row == 0 else None)  # fmt: skip
    axis.set(yticks=range(len(rows)), yticklabels=rows, xlabel=labels.x, ylabel=labels.y, xlim=(0, None))
    axis.invert_yaxis()
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(values) + 1)
    return figure


def heat_with_shares(heats: Mapping[str, Array], shares: Mapping[str, Array], end: float, labels: Labels) -> Figure:
    """Heat maps side by side, one row per component, then a stacked bar per component.

    Args:
        heats: title -> `(components, bins)`, each row a distribution over the horizontal axis that sums to 1.
        shares: name (such as a layer) -> `(components,)`, fractions that sum to 1 over the names.
        end: last value of the horizontal axis, which starts at 0.
        labels: x and y of the heat maps, z of their common colour bar.
    """
    ratios = (*[2] * len(heats), 1.6)
    figure, axes = plt.subplots(1, len(heats) + 1, figsize=(11, 4.8), width_ratios=ratios, sharey=True)
    count = len(next(iter(heats.values())))
    scale = PowerNorm(0.5, 0, max(heat.max() for heat in heats.values()))  # a square root lets faint rows be seen
    for axis, (title, heat) in zip(axes, heats.items(), strict=False):
        extent = (0, end, count + 0.5, 0.5)
        image = axis.imshow(heat, aspect="auto", extent=extent, interpolation="nearest", norm=scale)
        axis.set(title=title, xlabel=labels.x)
        axis.grid(visible=False)
    axes[0].set_ylabel(labels.y)
    axes[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=axes[-2], label=labels.z)
    start = np.zeros(count)
    for name, part in shares.items():
        axes[-1].barh(np.arange(1, count + 1), part, left=start, height=0.85, label=name)
        start = start + part
    axes[-1].set(xlabel="share of squared entries", xlim=(0, 1))
    axes[-1].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=9)
    return figure


def path_3d(points: Array, colour: Array, labels: Labels, colour_label: str) -> tuple[go.Figure, Figure]:
    """A path in three dimensions: an interactive plotly figure, and its static stand-in.

    Args:
        points: `(n, 3)`, in order.
        colour: `(n,)`, what the colour of each point says.
        labels: all three axes.
        colour_label: of the colour bar.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points of shape {points.shape}: expected (n, 3)")
    x, y, z = points.astype(np.float32).T
    marker = {
        "size": 3,
        "color": colour.astype(np.float32),
        "colorscale": "Viridis",
        "colorbar": {"title": colour_label},
    }
    line = {"color": "rgba(120,120,120,0.25)", "width": 2}
    interactive = go.Figure(go.Scatter3d(x=x, y=y, z=z, mode="lines+markers", marker=marker, line=line))
    scene = {
        f"{axis}axis": {"title": {"text": text}}
        for axis, text in zip("xyz", (labels.x, labels.y, labels.z), strict=True)
    }
    interactive.update_layout(
        scene=scene, height=560, margin={"l": 0, "r": 0, "t": 10, "b": 0}, template="plotly_white"
    )
    static = plt.figure(figsize=(8, 5.5))
    axis = static.add_subplot(projection="3d")
    axis.plot(x, y, z, color="grey", lw=0.4, alpha=0.4)
    dots = axis.scatter(x, y, z, c=colour, s=6)
    axis.set(xlabel=labels.x, ylabel=labels.y, zlabel=labels.z)
    axis.tick_params(labelsize=8)
    axis.set_box_aspect(None, zoom=0.85)
    static.colorbar(dots, ax=axis, label=colour_label, shrink=0.7, pad=0.12)
    return interactive, static


def show(figure: Figure, alt: str, interactive: go.Figure | None = None) -> None:
    """Display one output: the picture, its text for those who do not see it, the interactive figure if there is one.

    The book and JupyterLab draw the interactive part, a viewer without scripts the picture; Colab has its own way.

    Raises:
        ValueError: no alt text.
    """
    if len(alt.strip()) < 20:
        raise ValueError(f"alt={alt!r}: expected a sentence that says what the figure shows")
    if interactive is not None and os.environ.get("COLAB_RELEASE_TAG"):
        plt.close(figure)
        interactive.show(renderer="colab")
        return
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(figure)
    bundle = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": alt}
    if interactive is not None:
        bundle[PLOTLY] = json.loads(interactive.to_json())
    display(bundle, raw=True)  # type: ignore[no-untyped-call]
