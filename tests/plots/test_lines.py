import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from descent.plots import lines, scenes, style
from descent.plots.lines import LinePanel
from descent.plots.scenes import Relief
from descent.plots.style import Labels

seeds = np.random.default_rng(0)


def figures() -> dict[str, plt.Figure]:
    spectrum = {"a": np.tile(1 / np.arange(1, 40), (3, 1)), "null": np.ones((1, 39))}
    return {
        "spectra": lines.spectrum_panels(spectrum, (0.1,), dashed=["null"]),
        "intervals": lines.interval_plot({"SGD": {"net": seeds.random(5)}}, (0.2, 0.4), Labels("count", "network")),
        "reliefs": scenes.relief_panels({"a": relief(), "b": relief()}, Labels("x", "y", "z"))[1],
        "panels": lines.line_panels(panels(), 2),
    }


def panels() -> list[LinePanel]:
    x = np.arange(1, 6)
    band = {"a": (x, x**2, x, x**3), "b": (x, 1 / x)}
    return [
        LinePanel(Labels("step", "loss"), band, log="xy", levels={"zero": 1.0}),
        LinePanel(Labels("step", "norm"), {"b": (x, x)}, title="second"),
        LinePanel(Labels("size", "probability"), {"a": (x, x, x - 0.5, x + 0.5)}, points=["a"]),
    ]


def relief() -> Relief:
    x, y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 7)  # unequal sides: a swapped axis cannot pass
    paths = {name: np.cumsum(seeds.random((4, 3)), 0) for name in ("SGD", "Adam")}
    return Relief(x, y, x**2 - y[:, None] ** 2, paths)


def test_every_figure_has_labelled_axes() -> None:
    style.use_style()
    for name, figure in figures().items():
        main = figure.axes[0]
        assert main.get_xlabel(), name
        assert main.get_ylabel(), name


def test_labels_and_alt_text_are_mandatory() -> None:
    with pytest.raises(ValueError, match="expected a label with its unit on both axes"):
        Labels("step", " ")
    figure, _ = plt.subplots()
    with pytest.raises(ValueError, match="expected a sentence"):
        style.show(figure, "plot")
    plt.close(figure)


def test_show_displays_one_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, object]] = []
    monkeypatch.setattr(style, "display", lambda bundle, raw: shown.append(bundle))
    interactive, static = scenes.relief_panels({"a": relief()}, Labels("x", "y", "z"))
    style.show(static, "Two paths of four points on a relief.", interactive)
    assert set(shown[0]) == {"image/png", "text/plain", style.PLOTLY}
    assert not plt.get_fignums()


def test_a_figure_whose_text_stands_in_its_cell_is_kept_and_shown_with_its_other_forms(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: list[dict[str, object]] = []
    monkeypatch.setattr(style, "display", lambda bundle, raw: shown.append(bundle))
    figure, _ = plt.subplots()
    style.show_figure(figure, "bend", tmp_path, {style.EXPLORABLE: {"kind": "threshold"}})
    assert shown[0].keys() == {"image/png", "text/plain", style.EXPLORABLE}
    assert (shown[0]["text/plain"], shown[0][style.EXPLORABLE]) == ("bend", {"kind": "threshold"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bend.pdf", "bend.png", "bend.svg"]
    assert not plt.get_fignums()


def test_a_figure_needs_a_name() -> None:
    figure, _ = plt.subplots()
    with pytest.raises(ValueError, match="name=' ': expected the name of the figure's file"):
        style.show_figure(figure, " ")
    plt.close(figure)


def test_a_relief_has_its_grid_with_it() -> None:
    with pytest.raises(ValueError, match=r"shape \(5, 7\): expected \(len\(y\), len\(x\)\) = \(7, 5\)"):
        Relief(np.zeros(5), np.zeros(7), np.zeros((5, 7)))


def test_a_label_has_one_colour_in_all_panels() -> None:
    figure = lines.line_panels(panels(), 2)
    second = [figure.axes[0].get_lines()[1].get_color(), figure.axes[1].get_lines()[0].get_color()]
    assert second[0] == second[1]
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    assert figure.axes[1].get_title() == "second"


def test_what_is_left_of_the_last_row_stays_empty() -> None:
    figure = lines.line_panels(panels(), 2)
    assert [axis.get_visible() for axis in figure.axes] == [True, True, True, False]


def test_an_axis_without_a_positive_value_is_linear_though_it_should_be_logarithmic() -> None:
    never, some = np.full(3, np.nan), np.array([np.nan, 3.0, 0.0])
    grid = [LinePanel(Labels("decay", "steps"), {"a": (np.arange(1, 4), values)}, "xy") for values in (never, some)]
    figure = lines.line_panels(grid, 2)
    figure.canvas.draw()  # matplotlib refuses to draw a logarithmic axis of nothing
    assert [axis.get_yscale() for axis in figure.axes] == ["linear", "log"]
    assert [axis.get_xscale() for axis in figure.axes] == ["log", "log"]


def test_a_picture_in_few_colours_looks_like_the_full_one() -> None:
    style.use_style()
    figure, axis = plt.subplots()
    axis.imshow(np.random.default_rng(0).random((200, 300)), cmap="viridis", aspect="auto")
    axis.plot(np.arange(200), color=style.RED)
    full, small = io.BytesIO(), style._picture(figure)
    figure.savefig(full, format="png")
    plt.close(figure)
    drawn, kept = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int) for data in (full.getvalue(), small))
    assert len(small) < len(full.getvalue()) / 2
    assert np.abs(drawn - kept).max() <= 24  # of 255, in any channel of any pixel
    assert kept[0, 0].tolist() == [255, 255, 255]
