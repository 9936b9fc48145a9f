import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt

from descent import plots
from descent.plots import Labels

seeds = np.random.default_rng(0)


def figures() -> dict[str, plt.Figure]:
    spectrum = {"a": np.tile(1 / np.arange(1, 40), (3, 1)), "null": np.ones((1, 39))}
    line = {"random": {"above 0.1": (np.arange(1, 6), seeds.random((3, 5)))}}
    shares = {"layer 1": np.full(4, 0.25), "layer 2": np.full(4, 0.75)}
    labels = Labels("step", "component", "share")
    return {
        "spectra": plots.normalised_spectra(spectrum, (0.1,), dashed=["null"]),
        "curves": plots.curves(line, Labels("steps", "count"), log_x=True),
        "intervals": plots.intervals({"SGD": {"net": seeds.random(5)}}, (0.2, 0.4), Labels("count", "network")),
        "heat": plots.heat_with_shares({"run": seeds.random((4, 7))}, shares, 100, labels),
        "path": plots.path_3d(seeds.random((9, 3)), np.arange(9), Labels("x", "y", "z"), "step")[1],
    }


def test_every_figure_has_labelled_axes() -> None:
    plots.use_style()
    for name, figure in figures().items():
        main = figure.axes[0]
        assert main.get_xlabel(), name
        assert main.get_ylabel(), name
    plt.close("all")


def test_labels_and_alt_text_are_mandatory() -> None:
    with pytest.raises(ValueError, match="expected a label with its unit on both axes"):
        Labels("step", " ")
    figure, _ = plt.subplots()
    with pytest.raises(ValueError, match="expected a sentence"):
        plots.show(figure, "plot")
    plt.close(figure)


def test_show_displays_one_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, object]] = []
    monkeypatch.setattr(plots, "display", lambda bundle, raw: shown.append(bundle))
    interactive, static = plots.path_3d(seeds.random((9, 3)), np.arange(9), Labels("x", "y", "z"), "step")
    plots.show(static, "A path of nine points in three dimensions.", interactive)
    assert set(shown[0]) == {"image/png", "text/plain", plots.PLOTLY}
    assert not plt.get_fignums()


def test_path_needs_three_columns() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 2\): expected \(n, 3\)"):
        plots.path_3d(np.zeros((4, 2)), np.arange(4), Labels("x", "y", "z"), "step")
