"""What a page shows of the kept weights of a network that comes to add, in a real browser, against the data."""

from pathlib import Path

import numpy as np
import pytest
from test_explorables import page_with
from test_pages import Visit, browser  # noqa: F401  the fixture

pytestmark = pytest.mark.browser
P, KEYS, STEPS = 7, [2, 3], [0, 100, 200, 300]
DRAW = np.random.default_rng(0)
DATA = {
    "kind": "grokking",
    "p": P,
    "keys": KEYS,
    "steps": STEPS,
    "losses": [[2.0, 0.5, 0.01, 0.001], [2.1, 5.0, 4.0, 0.2], [1.9, 1.5, 0.7, 0.01], [2.0, 0.4, 3.0, 6.0]],
    "spectrum": np.round(DRAW.random((4, 3)), 2).tolist(),
    "rings": np.round(DRAW.normal(size=(4, 2, P, 2)), 2).tolist(),
    "first": 1,
}
RING = """(() => { const [path] = document.querySelector('.explorable-ring').data;
  return path.x.map((x, i) => [Number(path.text[i]), x, path.y[i]]); })()"""
BARS = "document.querySelector('.explorable-spectrum').data[0].y"
MARKER = "document.querySelector('.explorable-losses').layout.shapes[0].x0"


def expected(frame: int, number: int) -> np.ndarray:
    """The numbers and their places, so that k a goes 0, 1, 2, ... modulo p, and back to the first."""
    order = sorted(range(P), key=lambda a: KEYS[number] * a % P)
    return np.array([[a, *DATA["rings"][frame][number][a]] for a in [*order, order[0]]])  # type: ignore[index]


@pytest.mark.parametrize("width", [1300, 390])
def test_the_slider_shows_the_weights_of_its_step(browser: object, tmp_path: Path, width: int) -> None:  # noqa: F811
    visit = Visit(browser, page_with(tmp_path, DATA), width)
    assert visit.until("document.querySelector('.explorable-ring .main-svg')")
    page, slider = visit.page, visit.page.get_by_role("slider", name="Step")
    assert visit.until(f"{MARKER} === 100")
    np.testing.assert_array_equal(page.evaluate(RING), expected(1, 0))
    slider.focus()
    for key, frame in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowRight", 3), ("Home", 0), ("ArrowRight", 1)):
        page.keyboard.press(key)
        assert visit.until(f"{MARKER} === {STEPS[frame]}")
        assert page.evaluate(BARS) == DATA["spectrum"][frame]  # type: ignore[index]
        np.testing.assert_array_equal(page.evaluate(RING), expected(frame, 0))
        assert f"step {STEPS[frame]}" in slider.get_attribute("aria-valuetext")
    assert "test 5" in page.evaluate("document.querySelector('.explorable-said').value")
    page.get_by_role("combobox", name="Plane of frequency").select_option("1")
    assert visit.until(f"{RING}[1][0] === {int(expected(1, 1)[1][0])}")
    np.testing.assert_array_equal(page.evaluate(RING), expected(1, 1))
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.evaluate("document.querySelector('.explorable img').hidden")
    assert visit.faults == []
    page.close()


def test_a_run_without_key_frequencies_has_no_ring(browser: object, tmp_path: Path) -> None:  # noqa: F811
    bare = DATA | {"keys": [], "rings": [[], [], [], []]}
    visit = Visit(browser, page_with(tmp_path, bare))
    assert visit.until("document.querySelector('.explorable-ring .main-svg')")
    assert visit.page.evaluate(RING) == []
    assert visit.page.get_by_role("combobox").count() == 0
    assert visit.faults == []
    visit.page.close()
