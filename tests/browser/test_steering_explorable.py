"""What a page computes of edited concepts as origin, mean and alpha are moved, in a real browser, against numpy."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_explorables import page_with
from test_pages import Visit, browser  # noqa: F401  the fixture

pytestmark = pytest.mark.browser
SHOWN = "document.querySelector('.explorable').steering"
CANVAS = "document.querySelector('.explorable-{}')"
TRACES = f"Object.fromEntries({CANVAS}.data.map(each => [each.name, [each.x, each.y]]))"
LAYOUT = f"(each => [each.shapes, each.annotations])({CANVAS}.layout)"
SCALE = f"""(axis => Math.abs(axis.p2d(1) - axis.p2d(0)))({CANVAS.format("plane")}._fullLayout.{{}}axis)"""
CLASSES = ("harmless", "harmful")
METHODS = ("nothing", "ACE", "addition", "ablation", "LEACE")
KEYS = {"ArrowLeft": (-1, 0), "ArrowRight": (1, 0), "ArrowUp": (0, 1), "ArrowDown": (0, -1)}


def clouds(harmless: int, harmful: int) -> dict[str, Any]:
    """Two clouds of unequal size whose noise has no mean of zero."""
    draw = np.random.default_rng(harmless)
    noise = [np.round(draw.normal([0.1, -0.05], [0.3, 0.5], (n, 2)), 3).tolist() for n in (harmless, harmful)]
    return {
        "kind": "steering", **dict(zip(CLASSES, noise, strict=True)), "slope": 5.0, "origin": [-0.5, 0.25],
        "mean": [1.0, 0.5], "alpha": 0.25,
    }  # fmt: skip


DATA = clouds(40, 23)


class Reader:
    """A page with two clouds, and a reader's hands."""

    def __init__(self, browser: object, folder: Path, width: int = 1300, **changed: object) -> None:  # noqa: F811
        self.data: dict[str, Any] = DATA | changed
        self.visit = Visit(browser, page_with(folder, self.data), width)
        assert self.visit.until("document.querySelector('.explorable img').hidden")
        self.page = self.visit.page
        self.page.locator(".explorable-plane").scroll_into_view_if_needed()

    def handle(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name)

    def slider(self) -> Any:
        return self.page.get_by_role("slider", name="Alpha")

    def choose(self, method: str) -> None:
        self.page.get_by_role("combobox", name="Method").select_option(method)

    def press(self, name: str, *keys: str) -> None:
        self.handle(name).focus()
        for key in keys:
            self.page.keyboard.press(key)

    def middle(self, name: str) -> np.ndarray:
        box = self.handle(name).bounding_box()
        return np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])

    def units(self) -> np.ndarray:
        """How far on the axes a pixel to the right and one down lead."""
        return np.array([self.page.evaluate(SCALE.format("x")), -self.page.evaluate(SCALE.format("y"))])

    def drag(self, name: str, by: tuple[int, int]) -> None:
        begin = self.middle(name)
        self.page.mouse.move(*begin)
        self.page.mouse.down()
        self.page.mouse.move(*(begin + by), steps=4)
        self.page.mouse.up()

    def edited(self, shown: dict[str, Any], alpha: float) -> list[np.ndarray]:
        """The points of each class after the edit, by numpy: places in the plane, `(n, 2)`."""
        mean, origin = np.array(shown["mean"]), np.array(shown["origin"])
        before = [np.array(self.data[name]) + mean + [label, 0] for label, name in enumerate(CLASSES)]
        r, middle = np.array([1.0, 0.0]), np.concatenate(before).mean(0)
        along = [np.outer(v @ r, r) for v in before]
        return {
            "nothing": before,
            "ACE": [v - a + np.outer(mean @ r, r) + alpha * r for v, a in zip(before, along, strict=True)],
            "addition": [v + alpha * r for v in before],
            "ablation": [v - np.outer((v - origin) @ r, r) for v in before],
            "LEACE": [v - np.outer((v - middle) @ r, r) for v in before],
        }[shown["method"]]

    def refused(self, shown: dict[str, Any], alpha: float) -> list[float]:
        slope, line = self.data["slope"], shown["mean"][0] + 0.5
        return [float((1 / (1 + np.exp(-slope * (v[:, 0] - line)))).mean()) for v in self.edited(shown, alpha)]

    def check(self, method: str) -> dict[str, Any]:
        """What is shown, after numbers, pictures and words were found to be numpy's."""
        shown: dict[str, Any] = self.page.evaluate(SHOWN)
        assert shown["method"] == method
        alpha, star = shown["alpha"], shown["origin"][0] - shown["mean"][0]
        refused = self.refused(shown, alpha)
        assert shown["star"] == pytest.approx(star, abs=1e-9)
        assert shown["refused"] == pytest.approx(refused, abs=1e-9)
        said = self.page.locator(".explorable-said").inner_text()
        numbers = [float(each) for each in re.findall(r"-?\d+\.\d+", said)]
        assert numbers == [pytest.approx(100 * each, abs=0.0501) for each in refused] + [
            pytest.approx(star, abs=0.00501)
        ]
        self.check_plane(shown)
        lines, (shapes, annotations) = (self.page.evaluate(each.format("curve")) for each in (TRACES, LAYOUT))
        grid = lines["harmless"][0]
        assert (grid[0], grid[-1]) == pytest.approx((-2, 3))
        wanted = np.array([self.refused(shown, each) for each in grid]).T
        for name, y in zip(CLASSES, wanted, strict=True):
            np.testing.assert_allclose(lines[name][1], y, rtol=0, atol=1e-9)
            assert lines[name][0] == grid
        assert np.ptp(wanted, axis=1).max() < 1e-12 or method in ("ACE", "addition")
        marks = [alpha, star] if -2 <= star <= 3 else [alpha]
        assert [each["x0"] for each in shapes] == pytest.approx(marks, abs=1e-9)
        texts = [re.sub("<.*>", "", each["text"]).strip() for each in annotations]
        assert texts == ["alpha", "alpha*"][: len(marks)] + list(CLASSES)
        assert self.slider().is_enabled() == (method in ("ACE", "addition"))
        return shown

    def check_plane(self, shown: dict[str, Any]) -> None:
        mean, before = shown["mean"], self.edited(shown | {"method": "nothing"}, 0)
        plane, (shapes, annotations) = (self.page.evaluate(each.format("plane")) for each in (TRACES, LAYOUT))
        for moment, points in (("before", before), ("after", self.edited(shown, shown["alpha"]))):
            for name, v in zip(CLASSES, points, strict=True):
                np.testing.assert_allclose(np.transpose(plane[f"{name} {moment}"]), v, rtol=0, atol=1e-9)
        for name in ("origin", "mean"):
            assert plane[name] == [[shown[name][0]], [shown[name][1]]]
            assert all(f"{value + 0:.2f}" in self.handle(name).get_attribute("aria-label") for value in shown[name])
        line, side = shapes
        assert line["x0"] == line["x1"] == side["x0"] == pytest.approx(mean[0] + 0.5)
        arrow = next(each for each in annotations if each.get("axref") == "x")
        assert [arrow[key] for key in ("ax", "ay", "x", "y")] == pytest.approx([*mean, mean[0] + 1, mean[1]])

    def close(self) -> None:
        over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert self.page.evaluate(over) <= 0
        assert self.visit.faults == []
        self.page.close()


STARTS = {
    "as given": {},
    "beyond the mean": {"origin": [3.5, -1], "mean": [0.5, -1], "alpha": 2.5},
    "alpha* beyond the slider": {"origin": [-4, 0], "mean": [1.9, 1.2], "alpha": -2, "slope": 20},
    "as many of each": clouds(30, 30),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_what_is_refused_is_numpys_for_every_method(
    browser: object,  # noqa: F811
    tmp_path: Path,
    start: dict[str, Any],
) -> None:
    reader = Reader(browser, tmp_path, **start)
    shown = reader.check("ACE")
    assert [shown[name] for name in ("origin", "mean", "alpha")] == [
        reader.data[name] for name in ("origin", "mean", "alpha")
    ]
    for method in METHODS:
        reader.choose(method)
        reader.check(method)
    reader.close()


@pytest.mark.parametrize("width", [1300, 390])
def test_origin_and_mean_follow_the_mouse_and_alpha_its_slider(browser: object, tmp_path: Path, width: int) -> None:  # noqa: F811
    reader = Reader(browser, tmp_path, width)
    plane, curve = (reader.page.locator(f".explorable-{name}").bounding_box() for name in ("plane", "curve"))
    beside = curve["x"] >= plane["x"] + plane["width"]
    assert beside == (width == 1300)
    assert beside or curve["y"] >= plane["y"] + plane["height"]
    units = reader.units()
    for name, by in (("origin", (40, -50)), ("mean", (-30, 24))):
        before = reader.page.evaluate(SHOWN)
        place = reader.middle(name)
        reader.drag(name, by)
        assert reader.middle(name) - place == pytest.approx(np.array(by), abs=1.5), "the handle does not follow"
        after = reader.check("ACE")
        assert np.subtract(after[name], before[name]) == pytest.approx(units * by, abs=2 * np.abs(units).max())
        other = "mean" if name == "origin" else "origin"
        assert after[other] == before[other]
        assert after["refused"] == before["refused"], "an edit to alpha knows neither origin nor mean"
    slider = reader.slider()
    assert slider.get_attribute("aria-valuetext").startswith("0.25. Refused: ")
    slider.focus()
    alphas = []
    for key in ("End", "ArrowLeft", "PageDown", "Home"):
        reader.page.keyboard.press(key)
        alphas.append(reader.check("ACE")["alpha"])
    assert alphas[0] == 3
    assert alphas[1] == pytest.approx(2.99)
    assert alphas[-1] == -2
    reader.choose("addition")
    box = slider.bounding_box()
    reader.page.mouse.click(box["x"] + 0.7 * box["width"], box["y"] + box["height"] / 2)
    assert reader.check("addition")["alpha"] == pytest.approx(1.5, abs=0.2)
    reader.choose("ablation")
    before = reader.check("ablation")
    reader.drag("origin", (20, 0))
    after = reader.check("ablation")
    assert min(np.subtract(after["refused"], before["refused"])) > 0.01, "ablation knows the origin"
    reader.page.get_by_role("button", name="Start again").click()
    shown = reader.check("ACE")
    assert [shown[name] for name in ("origin", "mean", "alpha")] == [[-0.5, 0.25], [1.0, 0.5], 0.25]
    reader.close()


def test_a_finger_drags_the_origin_and_the_page_stays(browser: object, tmp_path: Path) -> None:  # noqa: F811
    reader = Reader(browser, tmp_path, 390)
    fingers = reader.page.context.new_cdp_session(reader.page)

    def touch(kind: str, *places: np.ndarray) -> None:
        points = [dict(zip("xy", map(float, place), strict=True)) for place in places]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    above, begin, units = reader.page.evaluate("scrollY"), reader.middle("origin"), reader.units()
    first = reader.page.evaluate(SHOWN)
    touch("touchStart", begin)
    for part in (0.25, 0.5, 0.75, 1):
        touch("touchMove", begin + part * np.array([60, -70]))
    touch("touchEnd")
    after = reader.check("ACE")
    assert np.subtract(after["origin"], first["origin"]) == pytest.approx(units * [60, -70], abs=0.1)
    assert reader.page.evaluate("scrollY") == above, "the page scrolled with the finger"
    reader.close()


def test_keys_move_origin_and_mean_as_far_as_they_reach(browser: object, tmp_path: Path) -> None:  # noqa: F811
    reader = Reader(browser, tmp_path)
    at = {name: np.array(reader.data[name]) for name in ("origin", "mean")}
    for name, (key, way) in ((name, each) for name in at for each in KEYS.items()):
        for shift, step in (("", 0.1), ("Shift+", 0.01)):
            reader.press(name, f"{shift}{key}", f"{shift}{key}")
            at[name] = at[name] + 2 * step * np.array(way)
            assert reader.page.evaluate(f"{SHOWN}.{name}") == pytest.approx(at[name])
    reader.check("ACE")
    for name, ends in (("origin", ((-4, 5), (-1.5, 1.5))), ("mean", ((-2, 2), (-1.2, 1.2)))):
        for (key, way), most in zip(KEYS.items(), (ends[0][0], ends[0][1], ends[1][1], ends[1][0]), strict=True):
            reader.press(name, *[key] * 100)
            assert reader.page.evaluate(f"{SHOWN}.{name}")[0 if way[0] else 1] == most
    reader.check("ACE")
    reader.close()


def test_origin_and_mean_moved_alike_change_nothing_that_is_refused(browser: object, tmp_path: Path) -> None:  # noqa: F811
    reader = Reader(browser, tmp_path, origin=[1.2, 0.25])
    keys = ["ArrowRight"] * 4 + ["ArrowUp"] * 3 + ["Shift+ArrowLeft"] * 2
    for method in METHODS:
        reader.choose(method)
        before = reader.check(method)
        reader.press("origin", *keys)
        changed = np.abs(np.subtract(reader.check(method)["refused"], before["refused"])).max()
        assert (changed > 0.01) == (method == "ablation")
        reader.press("mean", *keys)
        after = reader.check(method)
        assert after["refused"] == pytest.approx(before["refused"], abs=1e-9)
        assert after["mean"] != before["mean"]
        for name in ("origin", "mean"):
            reader.press(name, *["ArrowLeft"] * 4, *["ArrowDown"] * 3, *["Shift+ArrowRight"] * 2)
    reader.close()


@pytest.mark.parametrize("way", [1, -1], ids=["harmful above", "harmful below"])
def test_names_of_lines_that_end_together_stand_apart(browser: object, tmp_path: Path, way: int) -> None:  # noqa: F811
    shift = 0 if way > 0 else -1.6
    reader = Reader(browser, tmp_path, harmful=[[x + shift, y] for x, y in DATA["harmful"]])
    for method in METHODS:
        reader.choose(method)
        ends = np.array(reader.check(method)["curves"])[:, -1]
        names = np.array([each["y"] for each in reader.page.evaluate(LAYOUT.format("curve"))[1][-2:]])
        gap = names[1] - names[0]
        assert abs(gap) > 0.13
        below = ends[1] < ends[0] - 1e-9
        assert (gap < 0) == below, "the names are in another order than the lines"
        assert below == (way < 0 and method in ("nothing", "addition"))
        assert min(names) >= -1e-9
        assert max(names) <= 1 + 1e-9
        assert np.abs(names - ends).max() < 0.141
    reader.close()


def test_a_change_of_mode_redraws_in_the_pages_colour_and_at_its_height(browser: object, tmp_path: Path) -> None:  # noqa: F811
    reader = Reader(browser, tmp_path)
    style = "html[data-theme=dark] { --pst-color-text-base: rgb(206, 214, 221); } body { max-width: 760px; }"
    reader.page.add_style_tag(content=style)
    reader.page.evaluate("document.documentElement.dataset.theme = 'dark'; dispatchEvent(new Event('resize'))")
    for name in ("plane", "curve"):
        canvas = CANVAS.format(name)
        assert reader.visit.until(f"{canvas}.layout.shapes[0].line.color === 'rgb(206, 214, 221)'")
        fits = f"Math.abs({canvas}.querySelector('.main-svg').getBoundingClientRect().width - {canvas}.clientWidth) < 2"
        assert reader.visit.until(fits)
        reader.page.wait_for_timeout(500)
        assert reader.page.evaluate(f"{canvas}.clientHeight") == 330
    reader.check("ACE")
    reader.close()


def test_the_still_picture_stands_where_scripts_are_missing(browser: object, tmp_path: Path) -> None:  # noqa: F811
    visit = Visit(browser, page_with(tmp_path, DATA, scripts=False))
    assert not visit.page.evaluate("document.querySelector('.explorable img').hidden")
    assert visit.count(".explorable-canvas") == 0
    visit.page.close()


BAD = {
    "no harmful": {"harmful": []},
    "a point of one number": {"harmless": [[0.0, 1.0], [0.0]]},
    "a point that is no number": {"harmful": [[0.0, None]]},
    "no slope": {"slope": 0},
    "a falling slope": {"slope": -1.0},
    "an origin out of reach": {"origin": [5.5, 0.0]},
    "an origin that is too high": {"origin": [0.0, 1.6]},
    "a mean out of reach": {"mean": [-2.5, 0.0]},
    "a mean of three numbers": {"mean": [0.0, 0.0, 0.0]},
    "an alpha beyond the slider": {"alpha": 3.5},
    "an alpha in words": {"alpha": "1"},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_data_that_are_not_as_expected_leave_the_still_picture_and_say_why(
    browser: object,  # noqa: F811
    tmp_path: Path,
    bad: dict[str, object],
) -> None:
    visit = Visit(browser, page_with(tmp_path, DATA | bad))
    (name,) = bad
    assert [fault for fault in visit.faults if f"steering: {name} " in fault and ": expected " in fault]
    assert len(visit.faults) == 1
    assert not visit.page.evaluate("document.querySelector('.explorable img').hidden")
    assert visit.count(".explorable-canvas") == visit.count(".explorable select") == 0
    visit.page.close()
