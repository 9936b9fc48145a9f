"""A spectrum on its way from true data to a null, moved in a real browser."""

from pathlib import Path

import numpy as np
import pytest
from test_explorables import page_with
from test_pages import Visit, browser  # noqa: F401  the fixture

pytestmark = pytest.mark.browser
INDEX = [1, 2, 5, 10, 20]
DRAWN = "document.querySelector('.explorable-canvas').data.map(each => each.y)"


def frames(seed: int, amounts: list[float]) -> list[tuple[float, float, list[float]]]:
    draw = np.random.default_rng(seed)
    spectra = [[1.0, *sorted(draw.random(4).round(3).tolist(), reverse=True)] for _ in amounts]
    return [(a, round(float(np.mean(np.array(y) >= 0.1)), 2), y) for a, y in zip(amounts, spectra, strict=True)]


DATA = {
    "kind": "interpolation",
    "index": INDEX,
    "choices": [("noise", frames(0, [0, 0.25, 0.5, 0.75, 1])), ("labels", frames(1, [0, 0.5, 1]))],
    "choice": "noise",
}


@pytest.mark.parametrize("width", [1300, 390])
def test_the_curve_is_the_recorded_one_at_each_amount(browser: object, tmp_path: Path, width: int) -> None:  # noqa: F811
    visit = Visit(browser, page_with(tmp_path, DATA), width)
    assert visit.until("document.querySelector('.explorable-canvas .main-svg')")
    page, slider = visit.page, visit.page.get_by_role("slider", name="Amount")
    noise, labels = (dict(DATA["choices"])[name] for name in ("noise", "labels"))  # type: ignore[call-overload]
    assert page.evaluate(DRAWN) == [noise[0][2], noise[4][2], noise[2][2]]  # it opens between the ends
    slider.focus()
    for key, at in (("ArrowRight", 3), ("End", 4), ("ArrowRight", 4), ("Home", 0), ("ArrowRight", 1)):
        page.keyboard.press(key)
        assert page.evaluate(DRAWN)[2] == noise[at][2]
        said = page.evaluate("document.querySelector('.explorable-said').value")
        assert said == f"noise, amount {noise[at][0]:g}: {100 * noise[at][1]:.0f} % of the values are above a tenth."
        assert slider.get_attribute("aria-valuetext") == said
    page.keyboard.press("End")
    page.get_by_role("combobox", name="Change").select_option(
        "labels"
    )  # has fewer amounts: the slider keeps to its end
    assert page.evaluate(DRAWN) == [labels[0][2], labels[2][2], labels[2][2]]
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert visit.faults == []
    page.close()
