"""The steps that a page's saddle takes, in a real browser, against the library's optimisers."""

import copy
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_explorables import page_with
from test_pages import Visit, browser  # noqa: F401  the fixture

from descent.experiments.saddle_race import OPTIMISERS, saddle_free_path
from descent.saddles import classic_saddle, follow_optimiser, monkey_saddle, quadratic

pytestmark = pytest.mark.browser
FIRST = {
    "surface": "classic", "optimiser": "momentum", "rate": 0.01, "momentum": 0.9, "noise": 0.0,
    "condition": 30.0, "x": 1.0, "y": 0.03, "steps": 60,
}  # fmt: skip
TURN = math.pi / 6
SURFACES = {
    "classic": classic_saddle(),
    "monkey": monkey_saddle(),
    "tilted": quadratic([1.0, -1 / 30], [[math.cos(TURN), math.sin(TURN)], [-math.sin(TURN), math.cos(TURN)]]),
}
PATH = """(() => { const path = document.querySelector('.explorable-map').data.find(each => each.name === 'path');
  return path.x.map((x, i) => [x, path.y[i]]); })()"""
PREDICTED = "document.querySelector('.explorable-distance').data.find(each => each.name === 'predicted').y"


def visit_of(browser: object, folder: Path, width: int = 1300, **settings: object) -> Visit:  # noqa: F811
    presets = [["first", FIRST | settings], ["second", FIRST | {"y": 0.5}]]
    visit = Visit(browser, page_with(folder, {"kind": "saddle", "presets": presets}), width)
    assert visit.until("document.querySelector('.explorable-handle').style.left")  # it stands where the start is drawn
    return visit


def library_path(surface: str, optimiser: str, settings: dict[str, float]) -> np.ndarray:
    start = torch.tensor([settings["x"], settings["y"]], dtype=torch.float64)
    if optimiser == "saddle-free Newton":
        return saddle_free_path(SURFACES[surface], start, int(settings["steps"]))
    make = partial(OPTIMISERS[optimiser], lr=settings["rate"])
    return follow_optimiser(SURFACES[surface], start, make, int(settings["steps"])).points


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("optimiser", [*[*OPTIMISERS][:-1], "saddle-free Newton"])
def test_the_page_takes_the_librarys_steps(browser: object, tmp_path: Path, optimiser: str, surface: str) -> None:  # noqa: F811
    steps = 6 if optimiser == "saddle-free Newton" else 60
    visit = visit_of(browser, tmp_path, optimiser=optimiser, surface=surface, steps=steps)
    taken = np.array(visit.page.evaluate(PATH))
    assert len(taken) == steps + 1 or np.linalg.norm(taken[-1]) >= 100, "a run ends a hundred units away"
    assert len(taken) > min(40, steps)
    wanted = library_path(surface, optimiser, FIRST | {"steps": steps})[: len(taken)]
    np.testing.assert_allclose(taken, wanted, rtol=1e-9, atol=1e-9)
    assert visit.faults == []
    visit.page.close()


@pytest.mark.parametrize("optimiser", ["SGD", "momentum", "Nesterov", "saddle-free Newton"])
def test_what_is_predicted_is_the_distance_along_the_unstable_axis(
    browser: object,  # noqa: F811
    tmp_path: Path,
    optimiser: str,
) -> None:
    visit = visit_of(browser, tmp_path, optimiser=optimiser, surface="tilted", steps=6)
    across = np.array(visit.page.evaluate(PATH)) @ [-math.sin(TURN), math.cos(TURN)]
    np.testing.assert_allclose(visit.page.evaluate(PREDICTED), np.abs(across), rtol=1e-9)
    visit.page.close()


def uniform_numbers(count: int) -> np.ndarray:
    """The numbers of mulberry32 from seed 1."""
    a, drawn, mask = 1, [], 0xFFFFFFFF
    for _ in range(count):
        a = (a + 0x6D2B79F5) & mask
        t = ((a ^ (a >> 15)) * (1 | a)) & mask
        t = (((t + (((t ^ (t >> 7)) * (61 | t)) & mask)) & mask) ^ t) & mask
        drawn.append((t ^ (t >> 14)) / 2**32)
    return np.array(drawn)


def test_noise_is_normal_of_the_size_that_is_said(browser: object, tmp_path: Path) -> None:  # noqa: F811
    visit = visit_of(browser, tmp_path, optimiser="SGD", noise=0.05, steps=40)
    first, second = uniform_numbers(80).reshape(40, 2).T
    radius, point, wanted = np.sqrt(-2 * np.log(1 - first)), np.array([1.0, 0.03]), []
    for r, angle in zip(radius, 2 * np.pi * second, strict=True):
        wanted.append(point)
        gradient = np.array([2, -2]) * point + 0.05 * r * np.array([np.cos(angle), np.sin(angle)])
        point = point - 0.01 * gradient
    np.testing.assert_allclose(visit.page.evaluate(PATH), [*wanted, point], rtol=1e-9)
    many = uniform_numbers(20_000).reshape(-1, 2)
    normal = np.sqrt(-2 * np.log(1 - many[:, 0])) * np.cos(2 * np.pi * many[:, 1])
    assert normal.mean() == pytest.approx(0, abs=0.04)
    assert normal.std() == pytest.approx(1, abs=0.03)
    visit.page.close()


@pytest.mark.parametrize("width", [1300, 390])
def test_the_start_follows_mouse_and_keys_and_controls_are_the_pages_own(
    browser: object,  # noqa: F811
    tmp_path: Path,
    width: int,
) -> None:
    visit = visit_of(browser, tmp_path, width)
    page, handle = visit.page, visit.page.locator(".explorable-handle")
    assert page.evaluate(f"{PATH}[0]") == [1.0, 0.03]
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 40, middle[1] - 60, steps=4)
    page.mouse.up()
    x, y = page.evaluate(f"{PATH}[0]")
    assert x < 0.95
    assert y > 0.1
    moved = handle.bounding_box()
    assert moved["x"] - box["x"] == pytest.approx(-40, abs=1.5), "the handle does not follow"
    assert moved["y"] - box["y"] == pytest.approx(-60, abs=1.5)
    handle.focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(f"{PATH}[0]") == pytest.approx([x - 0.05, y])
    page.keyboard.press("Shift+ArrowUp")
    assert page.evaluate(f"{PATH}[0]") == pytest.approx([x - 0.05, y + 0.001])
    assert page.get_by_role("combobox", name="Preset").input_value() == ""
    page.get_by_role("combobox", name="Preset").select_option("second")
    assert page.evaluate(f"{PATH}[0]") == [1.0, 0.5]
    escaped = next(t for t, (x, y) in enumerate(page.evaluate(PATH)) if x * x - y * y <= -1)
    assert page.locator(".explorable-said").inner_text() == f"Escaped after {escaped} steps."
    assert page.get_by_role("slider", name="Condition number").is_disabled()
    page.get_by_role("combobox", name="Surface").select_option("tilted")
    assert page.get_by_role("slider", name="Condition number").is_enabled()
    page.get_by_role("combobox", name="Method").select_option("saddle-free Newton")
    assert page.get_by_role("slider", name="Step size").is_disabled()
    count = len(page.evaluate(PATH))
    page.get_by_role("combobox", name="Method").select_option("SGD")
    page.get_by_role("slider", name="Steps").focus()
    page.keyboard.press("End")
    assert len(page.evaluate(PATH)) > count
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.evaluate("document.querySelector('.explorable img').hidden")
    assert visit.faults == []
    page.close()


def test_a_start_on_the_axis_stays_and_is_predicted_nothing(browser: object, tmp_path: Path) -> None:  # noqa: F811
    settings = copy.deepcopy(FIRST) | {"y": 0.0, "steps": 2000}
    visit = visit_of(browser, tmp_path, **settings)
    assert {y for _, y in visit.page.evaluate(PATH)} == {0}
    assert visit.page.evaluate(PREDICTED) == []
    assert "Not escaped after 2000 steps." in visit.page.locator(".explorable-said").inner_text()
    visit.page.close()


@pytest.mark.parametrize("optimiser", ["SGD", "momentum", "Adam", "saddle-free Newton"])
def test_an_escape_is_judged_by_the_loss_as_in_the_race(browser: object, tmp_path: Path, optimiser: str) -> None:  # noqa: F811
    settings = {"surface": "tilted", "optimiser": optimiser, "x": 0.01, "y": 0.0, "rate": 0.5, "steps": 300}
    visit = visit_of(browser, tmp_path, **settings)
    path = torch.tensor(visit.page.evaluate(PATH), dtype=torch.float64)
    low = (SURFACES["tilted"].value(path) <= -1 / 60).numpy()
    steps = int(low.argmax()) if low.any() else len(path) - 1
    said = f"Escaped after {steps} steps." if low.any() else f"Not escaped after {steps} steps."
    assert visit.page.locator(".explorable-said").inner_text() == said
    visit.page.close()


def test_one_step_is_one_step(browser: object, tmp_path: Path) -> None:  # noqa: F811
    visit = visit_of(browser, tmp_path, optimiser="saddle-free Newton", x=0.0, y=0.7, steps=10)
    assert visit.page.locator(".explorable-said").inner_text() == "Escaped after 1 step."
    visit.page.close()


@pytest.mark.parametrize("changed", [{"optimiser": "Adam"}, {"surface": "monkey"}, {"noise": 0.01}])
def test_nothing_is_predicted_where_no_equation_says_it(
    browser: object,  # noqa: F811
    tmp_path: Path,
    changed: dict[str, object],
) -> None:
    visit = visit_of(browser, tmp_path, **changed)
    assert visit.page.evaluate(PREDICTED) == []
    visit.page.close()


def test_a_group_that_is_a_tool_is_described_as_one(browser: object, tmp_path: Path) -> None:  # noqa: F811
    visit = visit_of(browser, tmp_path, y=0.0, steps=2000)
    assert "to play with" in visit.page.locator(".explorable").get_attribute("aria-label")
    ticks = visit.page.evaluate("document.querySelectorAll('.explorable-distance .ytick').length")
    assert 2 <= ticks <= 8, "ticks of the distance run together"
    visit.page.close()
