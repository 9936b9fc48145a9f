"""Flat figures drawn from arrays: curves, points and bars; nothing is computed or saved here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from descent.plots.style import BLACK, COLOURS, GREY, Labels, panel_grid

Array = NDArray[Any]


def spectrum_panels(curves: Mapping[str, Array], fractions: Sequence[float], dashed: Sequence[str] = ()) -> Figure:
    """Normalised singular values over their index, on a linear and on a logarithmic axis.

    Args:
        curves: label -> `(seeds, n)` values divided by the first; the mean is drawn, and a band from least to greatest.
        fractions: thresholds to mark by horizontal lines.
        dashed: labels to draw dashed, such as null models.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, scale in zip(axes, ("linear", "log"), strict=True):
        for label, values in curves.items():
            line = _band(axis, np.arange(1, values.shape[1] + 1), values, label)
            line.set_linestyle("--" if label in dashed else "-")
        for fraction in fractions:
            _level(axis, fraction, f"{fraction:g}", 1, 0.8)
        axis.set(yscale=scale, xlabel="index i", ylabel="σᵢ / σ₁", xlim=(0, None))
    axes[0].set_ylim(0, 1.02)
    axes[1].set_ylim(1e-3, 1.2)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(curves), fontsize=11)
    return figure


def _band(axis: Any, x: Array, values: Array, label: str) -> Any:
    """The mean of `(seeds, n)` values with a band from the least seed to the greatest."""
    mean, low, high = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
    (line,) = axis.plot(x, mean, label=label, marker="o" if len(x) < 16 else None, ms=4)
    axis.fill_between(x, low, high, color=line.get_color(), alpha=0.2, lw=0)
    return line


def _level(axis: Any, height: float, name: str, x: float, width: float) -> None:
    """A dotted horizontal line, its name above its right end, at the fraction `x` of the axis."""
    axis.axhline(height, color=BLACK, lw=width, ls=":")
    axis.annotate(name, (x, height), xycoords=("axes fraction", "data"), fontsize=9, ha="right", va="bottom")


def interval_plot(values: Mapping[str, Mapping[str, Array]], band: tuple[float, float], labels: Labels) -> Figure:
    """A row for each setting: each seed a dot, the mean with a bar of one standard deviation, the source's band behind.

    Args:
        values: group (colour) -> setting (row) -> `(seeds,)`; every group has the same settings.
        band: ends of the source's interval.
        labels: x is the measured quantity, y what a row is.
    """
    rows = list(next(iter(values.values())))
    figure, axis = plt.subplots(figsize=(8, 0.55 * len(rows) + 1.4))
    axis.axvspan(*band, color=BLACK, alpha=0.12, lw=0, label=f"source: {band[0]:.1f} to {band[1]:.1f}")
    offsets = np.linspace(0.25, -0.25, len(values)) if len(values) > 1 else np.zeros(1)
    for (group, settings), colour, offset in zip(values.items(), COLOURS, offsets, strict=False):
        for row, name in enumerate(rows):
            sample = settings[name]
            axis.plot(sample, np.full(len(sample), row + offset), ".", color=colour, alpha=0.35, ms=5)
            spread = sample.std(ddof=1) if len(sample) > 1 else 0
            axis.errorbar(sample.mean(), row + offset, xerr=spread, fmt="o", color=colour, ms=5, capsize=2,
                          label=group if row == 0 else None)  # fmt: skip
    axis.set(yticks=range(len(rows)), yticklabels=rows, xlabel=labels.x, ylabel=labels.y, xlim=(0, None))
    axis.invert_yaxis()
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@dataclass(frozen=True)
class LinePanel:
    """A pair of axes with its lines.

    Attributes:
        labels: those of its axes.
        lines: label -> (x, y) `(n,)` each, or (x, y, low, high) for a line with a band; NaN is a gap.
        log: the axes that are logarithmic: "", "x", "y" or "xy".
        title: the title above it.
        points: labels to draw as points, with bars instead of a band.
        levels: label -> height of a dotted line.
    """

    labels: Labels
    lines: Mapping[str, tuple[Array, ...]]
    log: str = ""
    title: str = ""
    points: Sequence[str] = ()
    levels: Mapping[str, float] = field(default_factory=dict)


def line_panels(
    grid: Sequence[LinePanel], columns: int, height: float = 3.4, share: bool = False, skip: int = 0
) -> Figure:
    """Panels in rows of `columns`; a label has one colour in all of them, and the legend stands above them.

    Args:
        grid: the panels, row by row.
        columns: panels in a row.
        height: inches of one row.
        share: whether panels share their axes' ranges, and only the outer ones are labelled.
        skip: colours to pass over; one, to match the paths on a blue relief.

    Example:
        >>> step = np.arange(1, 6)
        >>> lines = {"training": (step, 1 / step), "test": (step, 2 / step)}
        >>> panel = LinePanel(Labels("step", "loss (nats)"), lines, log="y")
        >>> figure = line_panels([panel, panel], columns=2)
        >>> [(axis.get_xlabel(), axis.get_yscale(), len(axis.lines)) for axis in figure.axes]
        [('step', 'log', 2), ('step', 'log', 2)]
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['training', 'test']
    """
    figure, axes = panel_grid(len(grid), columns, (10 if columns > 1 else 8, height), 0.6, share)
    names = dict.fromkeys(name for panel in grid for name in panel.lines)
    colour = dict(zip(names, (*COLOURS, GREY)[skip:], strict=False))
    for number, (panel, axis) in enumerate(zip(grid, axes, strict=True)):
        _draw_lines(axis, panel, colour)
        bottom, left = number + columns >= len(grid), number % columns == 0
        axis.set(xscale=_scale(panel, 0), yscale=_scale(panel, 1))
        axis.set(title=panel.title, xlabel=panel.labels.x if bottom or not share else "")
        axis.set_ylabel(panel.labels.y if left or not share else "")
    entries = [axis.get_legend_handles_labels() for axis in axes]  # a panel's only line is named by its axis
    handles = {name: line for entry in entries if len(entry[0]) > 1 for line, name in zip(*entry, strict=True)}
    if len(handles) > 1:
        per_row = 4 if columns > 1 else 3
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=min(per_row, len(handles)))
    return figure


def _scale(panel: LinePanel, number: int) -> str:
    """The scale of the horizontal axis (0) or the vertical one (1): a logarithmic one needs a positive value."""
    positive = any((np.asarray(line[number]) > 0).any() for line in panel.lines.values())
    return "log" if "xy"[number] in panel.log and positive else "linear"


def _draw_lines(axis: Any, panel: LinePanel, colour: Mapping[str, str]) -> None:
    for name, (x, y, *band) in panel.lines.items():
        if name in panel.points:
            bars = np.abs(np.stack(band) - y) if band else None
            axis.errorbar(x, y, bars, fmt="o", ms=5, capsize=3, color=colour[name], label=name)
            continue
        axis.plot(x, y, color=colour[name], label=name, marker="o" if len(x) < 10 else None, ms=4)
        if band:
            axis.fill_between(x, *band, color=colour[name], alpha=0.18, lw=0)
    for name, height in panel.levels.items():
        _level(axis, height, name, 0.99, 0.9)
