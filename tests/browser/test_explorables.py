"""What a page computes as its reader moves a threshold, in a real browser, against numpy."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_pages import Visit, browser  # noqa: F401  the fixture

from descent_book.pages.explorables import Explorable, _depart, _visit
from descent_book.pages.scripts import ASSETS, whole_plotly

pytestmark = pytest.mark.browser
STILL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
ROWS = """[...document.querySelectorAll(".explorable tbody tr")].map(
  row => [...row.cells].map(cell => cell.innerText.trim()))"""
FRACTION = "Number(document.querySelector('.explorable output').value)"
LINE = "document.querySelector('.explorable-canvas').layout.shapes[0].y0"


def curves(seed: int) -> list[tuple[str, list[float]]]:
    draw = np.random.default_rng(seed)
    lengths = {"true labels": 60, "shuffled labels": 40}
    return [(name, sorted(np.round(draw.random(n) ** 3, 4).tolist(), reverse=True)) for name, n in lengths.items()]


DATA = {
    "kind": "threshold",
    "choices": [("2 classes", curves(2)), ("10 classes", curves(10))],
    "choice": "10 classes",
    "threshold": 0.1,
}


def page_with(folder: Path, data: dict[str, object], scripts: bool = True) -> Path:
    """A page that holds one explorable as the book writes it."""
    builder = SimpleNamespace(outdir=folder, current_docname="page")
    writer = SimpleNamespace(body=[], builder=builder)
    node = Explorable("", data=json.dumps(data), alt="Curves and a threshold that can be moved.")
    _visit(writer, node)
    writer.body.append(f'<img src="{STILL}" alt="Curves.">')
    _depart(writer, node)
    loads = [whole_plotly(), ASSETS / "explorable.js"] if scripts else []
    head = "".join(f'<script defer src="{path.as_uri()}"></script>' for path in loads)
    style = f'<link rel="stylesheet" href="{(ASSETS / "explorable.css").as_uri()}">'
    page = folder / "page.html"
    page.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>a page</title>{style}{head}{''.join(writer.body)}",
        encoding="utf-8",
    )
    return page


def expected(choice: str, fraction: float) -> list[list[str]]:
    shown = dict(DATA["choices"])[choice]  # type: ignore[call-overload]
    return [[name, f"{(np.asarray(y) >= fraction).sum()} of {len(y)}"] for name, y in shown]


@pytest.mark.parametrize("width", [1300, 390])
def test_the_counts_are_numpys_wherever_the_threshold_is_moved(browser: object, tmp_path: Path, width: int) -> None:  # noqa: F811
    visit = Visit(browser, page_with(tmp_path, DATA), width)
    assert visit.until("document.querySelector('.explorable-canvas .main-svg')")
    page, slider = visit.page, visit.page.get_by_role("slider", name="Threshold")
    assert page.evaluate(FRACTION) == 0.1
    assert page.evaluate(ROWS) == expected("10 classes", 0.1)
    seen = {0.1}
    slider.focus()
    for key in ("ArrowLeft", "ArrowLeft", "PageUp", "Home", "End"):
        page.keyboard.press(key)
        fraction = page.evaluate(FRACTION)
        seen.add(fraction)
        assert page.evaluate(ROWS) == expected("10 classes", fraction)
        assert visit.until(f"Math.abs({LINE} - {fraction}) < 1e-12")
    assert {0.01, 1} < seen
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    dragged = page.evaluate(FRACTION)
    assert 0.03 < dragged < 0.12
    page.get_by_role("combobox", name="Trained on").select_option("2 classes")
    assert page.evaluate(FRACTION) == dragged
    assert page.evaluate(ROWS) == expected("2 classes", dragged)
    assert str(expected("2 classes", dragged)[0][1].split()[0]) in slider.get_attribute("aria-valuetext")
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.evaluate("document.querySelector('.explorable img').hidden")
    assert visit.faults == []
    page.close()


def test_the_still_picture_stands_where_scripts_are_missing(browser: object, tmp_path: Path) -> None:  # noqa: F811
    visit = Visit(browser, page_with(tmp_path, DATA, scripts=False))
    assert not visit.page.evaluate("document.querySelector('.explorable img').hidden")
    assert visit.count(".explorable-canvas") == 0
    visit.page.close()


def test_the_still_picture_stays_for_a_kind_that_no_script_draws(browser: object, tmp_path: Path) -> None:  # noqa: F811
    visit = Visit(browser, page_with(tmp_path, DATA | {"kind": "unknown"}))
    assert not visit.page.evaluate("document.querySelector('.explorable img').hidden")
    assert visit.count(".explorable-canvas") == 0
    assert visit.faults == []
    visit.page.close()


def test_a_change_of_the_pages_mode_reaches_what_is_drawn(browser: object, tmp_path: Path) -> None:  # noqa: F811
    visit = Visit(browser, page_with(tmp_path, DATA))
    assert visit.until("document.querySelector('.explorable-canvas .main-svg')")
    style = "html[data-theme=dark] { --pst-color-text-base: rgb(206, 214, 221); } * { transition: color 9s; }"
    visit.page.add_style_tag(content=style)
    visit.page.evaluate("document.documentElement.dataset.theme = 'dark'")
    drawn = "document.querySelector('.explorable-canvas text.ytitle').style.fill"
    assert visit.until(f"{drawn} === 'rgb(206, 214, 221)'")
    assert (
        visit.page.evaluate("document.querySelector('.explorable-canvas').layout.shapes[0].line.color")
        == "rgb(206, 214, 221)"
    )
    visit.page.close()
