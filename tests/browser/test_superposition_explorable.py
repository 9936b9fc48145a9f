"""Features that a page trains, in a real browser, against the library's trainer."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_explorables import page_with
from test_pages import Visit, browser  # noqa: F401  the fixture

from descent.experiments import toy_models
from descent.experiments.toy_models import ToyModels, ToyTraining, train_toy_models
from descent.features import dimensionality

pytestmark = pytest.mark.browser
FIRST = {
    "features": 5, "density": 0.2, "importance": 0.9, "start": 3, "steps": 120, "rate": 0.01, "batch": 32,
}  # fmt: skip
COLUMNS = """document.querySelector('.explorable-map').data.filter(each => each.name.startsWith('feature'))
  .map(each => [each.x[1], each.y[1]])"""
SHARES = "document.querySelector('.explorable-distance').data[0].y"
LOSSES = "(() => { const line = document.querySelector('.explorable-loss').data[0]; return [line.x, line.y]; })()"
STEP = "Number(document.querySelector('.explorable').dataset.step)"


def uniform_numbers(seed: int) -> Iterator[float]:
    """The numbers of mulberry32."""
    a, mask = seed, 0xFFFFFFFF
    while True:
        a = (a + 0x6D2B79F5) & mask
        t = ((a ^ (a >> 15)) * (1 | a)) & mask
        t = (((t + (((t ^ (t >> 7)) * (61 | t)) & mask)) & mask) ^ t) & mask
        yield (t ^ (t >> 14)) / 2**32


def drawn(stream: Iterator[float], count: int) -> np.ndarray:
    return np.array([next(stream) for _ in range(count)])


def start_of(n: int, seed: int) -> torch.Tensor:
    """The page's first columns, normal numbers with the library's variance, `(1, 2, n)`."""
    first, second = drawn(uniform_numbers(seed), 2 * n).reshape(n, 2).T
    radius = np.sqrt(-2 * np.log(1 - first)) * np.sqrt(2 / (2 + n))
    angle = 2 * np.pi * second
    return torch.from_numpy(np.stack([radius * np.cos(angle), radius * np.sin(angle)])[None])


def trained(monkeypatch: pytest.MonkeyPatch, **settings: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The library's trainer, in float64, on the page's start and the page's inputs: W `(2, n)` and b `(n,)`."""
    now = FIRST | settings
    n, batch, stream = int(now["features"]), int(now["batch"]), uniform_numbers(1000 + int(now["start"]))

    class PageInputs(toy_models.ToyInputs):
        def draw(self) -> None:
            self.uniform = torch.from_numpy(drawn(stream, batch * n).reshape(1, batch, n)).mT.contiguous()
            self.gaussian = None

    monkeypatch.setattr(toy_models, "FLOAT", torch.float64)
    monkeypatch.setattr(toy_models, "ToyInputs", PageInputs)
    weights = torch.tensor([[now["importance"] ** i for i in range(n)]], dtype=torch.float64)
    toys = ToyModels(n, 2, [0], now["density"], weights)
    recipe = ToyTraining(int(now["steps"]), batch, now["rate"], 0.01)
    done = train_toy_models(toys, recipe, start=start_of(n, int(now["start"])))
    return done.W[0], done.b[0]


def visit_of(browser: object, folder: Path, width: int = 1300, **settings: object) -> Visit:  # noqa: F811
    presets = [["first", FIRST | settings], ["second", FIRST | {"features": 3, "steps": 40}]]
    visit = Visit(browser, page_with(folder, {"kind": "superposition", "presets": presets}), width)
    assert visit.until("document.querySelector('.explorable-handle').style.left")
    return visit


@pytest.mark.parametrize(
    "settings",
    [{}, {"density": 0.05, "start": 8}, {"features": 8, "importance": 0.6}, {"features": 2, "density": 1.0}],
    ids=str,
)
def test_the_page_trains_as_the_library_does(
    browser: object,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, float],
) -> None:
    visit = visit_of(browser, tmp_path, **settings)
    W, b = trained(monkeypatch, **settings)
    assert visit.page.evaluate(STEP) == FIRST["steps"]
    found = np.array(visit.page.evaluate(COLUMNS)).T
    assert np.abs(found - start_of(W.shape[1], int((FIRST | settings)["start"]))[0].numpy()).max() > 0.1, "it trained"
    np.testing.assert_allclose(found, W.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(visit.page.evaluate(SHARES), dimensionality(W).numpy(), rtol=0, atol=1e-6)
    steps, losses = visit.page.evaluate(LOSSES)
    assert steps[-1] == FIRST["steps"]
    now, n = FIRST | settings, W.shape[1]
    u = drawn(uniform_numbers(0), 1000 * n).reshape(1000, n)
    x = np.maximum(0, (u - 1 + now["density"]) / now["density"])
    out = np.maximum(0, x @ W.numpy().T @ W.numpy() + b.numpy())
    expected = ((out - x) ** 2 * now["importance"] ** np.arange(n)).mean()
    assert losses[-1] == pytest.approx(expected, abs=1e-6)
    assert visit.faults == []
    visit.page.close()


@pytest.mark.parametrize("width", [1300, 390])
def test_columns_density_and_start_are_under_the_readers_hand(
    browser: object,  # noqa: F811
    tmp_path: Path,
    width: int,
) -> None:
    visit = visit_of(browser, tmp_path, width)
    page, head = visit.page, visit.page.locator(".explorable-head").nth(1)
    before = page.evaluate(COLUMNS)
    head.focus()
    page.keyboard.press("ArrowUp")
    after = page.evaluate(COLUMNS)
    assert after[1] == pytest.approx([before[1][0], before[1][1] + 0.1])
    assert after[0] == before[0]
    assert page.evaluate(STEP) == 120, "a column that is moved does not train"
    assert f"{after[1][1]:.2f}" in head.get_attribute("aria-label")
    head.scroll_into_view_if_needed()
    box = head.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 20, middle[1] + 30, steps=4)
    page.mouse.up()
    moved = head.bounding_box()
    assert moved["x"] - box["x"] == pytest.approx(20, abs=1.5), "the head does not follow"
    assert moved["y"] - box["y"] == pytest.approx(30, abs=1.5)
    page.get_by_role("button", name="Train on").click()
    assert visit.until(f"{STEP} === 240")
    slider = page.get_by_role("slider", name="Density")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert float(slider.get_attribute("aria-valuetext")) == pytest.approx(0.2, abs=0.011)
    assert visit.until(f"{STEP} === 360"), "another density trains on from where it is"
    assert "Step 360: loss" in page.locator(".explorable-said").inner_text()
    assert page.get_by_role("combobox", name="Preset").input_value() == ""
    page.get_by_role("slider", name="Start").focus()
    page.keyboard.press("ArrowRight")
    assert visit.until(f"{STEP} === 120"), "another start begins again"
    page.get_by_role("combobox", name="Preset").select_option("second")
    assert visit.until(f"{STEP} === 40")
    assert visit.count(".explorable-head") == len(page.evaluate(COLUMNS)) == 3
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.evaluate("document.querySelector('.explorable img').hidden")
    assert visit.faults == []
    page.close()


def test_a_training_is_stopped_by_its_button(browser: object, tmp_path: Path) -> None:  # noqa: F811
    visit = visit_of(browser, tmp_path, steps=4000)
    page = visit.page
    page.get_by_role("button", name="Train on").click()
    page.get_by_role("button", name="Pause").click()
    assert visit.until("document.querySelector('.explorable-controls button').innerText === 'Train on'")
    stopped = page.evaluate(STEP)
    assert 4000 <= stopped < 8000
    assert visit.faults == []
    page.close()
