"""Every page of a built book in a real browser with the network cut: no error, every figure drawn.

Looks at `_build/html`, or the folder that DESCENT_HTML names. Without Chromium or a built book the tests are skipped;
with DESCENT_REQUIRE_BROWSER=1, as in continuous integration, that is a failure.
"""

import io
import os
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from PIL import Image

from descent_book.pages.pdf import BROWSER_ARGUMENTS, find_chromium
from descent_book.pages.scripts import TRACES

ROOT = Path(__file__).parents[2]
HTML = Path(os.environ.get("DESCENT_HTML", ROOT / "_build/html"))
PAGES = sorted(path.name for path in HTML.glob("*.html"))
WITH_SCENES = [name for name in PAGES if 'class="interactive"' in (HTML / name).read_text(encoding="utf-8")]
CHROMIUM = find_chromium()
FIGURES = "article img, article div.interactive"
# JavaScript: the interactive figures of a page, and what a drawn one has
SCENES = "[...document.querySelectorAll('.interactive')]"
DRAWN = ".interactive-canvas canvas, .interactive-canvas svg.main-svg"
pytestmark = pytest.mark.browser


def lack(reason: str) -> None:
    """Skip, or fail where the browser test must run."""
    if os.environ.get("DESCENT_REQUIRE_BROWSER") == "1":
        pytest.fail(f"DESCENT_REQUIRE_BROWSER=1, but {reason}")
    pytest.skip(reason)


class Visit:
    """One page, opened and settled, with what went wrong on the way."""

    def __init__(self, browser, path: Path, width: int = 1300) -> None:  # type: ignore[no-untyped-def]
        self.faults: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.on("console", lambda message: self.note(message.type == "error", f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.note(True, f"exception: {error}"))
        self.page.on("requestfailed", lambda request: self.note(True, f"failed: {request.url}"))
        self.page.on("request", lambda request: self.note(not is_local(request.url), f"left: {request.url}"))
        self.page.set_default_timeout(180_000)  # four figures in software WebGL, on a machine with other work
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("networkidle")
        # Lazy pictures load when they are seen, and figures may draw late.
        self.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        self.page.wait_for_timeout(300)

    def note(self, bad: bool, fault: str) -> None:
        if bad:
            self.faults.append(fault)

    def draws(self, figures: str = SCENES) -> bool:
        """Bring each interactive figure of a JavaScript list into view; whether it is drawn then."""
        for number in range(self.page.evaluate(f"({figures}).length")):
            self.page.evaluate(f"({figures})[{number}].scrollIntoView({{behavior: 'instant', block: 'center'}})")
            if not self.until(f"({figures})[{number}].querySelector('{DRAWN}')"):
                return False
        return True

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def until(self, condition: str, timeout: int = 60_000) -> bool:
        """Whether a JavaScript condition comes true in `timeout` milliseconds."""
        from playwright.sync_api import TimeoutError as LateError

        try:
            self.page.wait_for_function(condition, timeout=timeout)
        except LateError:
            return False
        return True


def is_local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:"))


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if CHROMIUM is None:
        lack("there is no Chromium on the PATH")
    if find_spec("playwright") is None:
        lack("playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(BROWSER_ARGUMENTS))
        yield chromium
        chromium.close()


def test_there_is_a_book() -> None:
    if not PAGES:
        lack(f"there is no book in {HTML}; make one with `make book`")
    assert {"index.html", "intro.html", "scorecard.html"} <= set(PAGES)


@pytest.mark.promise("R6")
@pytest.mark.parametrize("name", PAGES)
def test_page(browser: object, name: str, record_property: Callable[[str, object], None]) -> None:
    visit = Visit(browser, HTML / name)
    try:
        check(visit)
        record_property("external loads and console errors on a page", len(visit.faults))
        record_property("figures on a page, each drawn and described", visit.count(FIGURES))
    finally:
        visit.page.close()


TOO_WIDE = """[...document.querySelectorAll("div.math mjx-math")].filter(formula =>
  formula.getBoundingClientRect().right > formula.closest("div.math").getBoundingClientRect().right + 1
).map(formula => formula.closest("div.math").textContent)"""
# each has a sign of a font that is there; of those of the theme's modes only one is shown
ICONS = """(() => {
  const all = [...document.querySelectorAll("button i[class*=fa-], a i[class*=fa-]")];
  const icons = all.filter(icon => icon.offsetParent);
  return icons.length > 3 && icons.every(icon => {
    const { content, font } = getComputedStyle(icon, "::before");
    return /^".+"$/.test(content) && document.fonts.check(font, content[1]);
  });
})()"""


def check(visit: Visit) -> None:
    """No fault, and every picture, interactive figure and formula drawn."""
    assert visit.draws(), "an interactive figure is blank"
    assert cut_off(visit) == []
    visit.page.evaluate("[...document.images].forEach(image => { image.loading = 'eager'; })")
    visit.until("[...document.images].every(image => image.hidden || image.complete)")
    pictures = visit.page.eval_on_selector_all("img:not([hidden])", "all => all.map(i => [i.src, i.naturalWidth])")
    assert [source for source, width in pictures if width == 0] == []
    if visit.count("span.math, div.math"):
        typeset = "[...document.querySelectorAll('span.math, div.math')].every(m => m.querySelector('mjx-math'))"
        assert visit.until(typeset), "a formula is not typeset"
    for figure in visit.page.locator(FIGURES).all():
        described = figure.get_attribute("alt") or figure.get_attribute("aria-label") or ""
        assert len(described.split()) >= 2, f"a figure is not described: {figure.get_attribute('src')}"
    text = visit.page.evaluate("document.body.innerText")
    assert r"\(" not in text
    assert r"\[" not in text
    assert visit.count("mjx-merror, [data-mjx-error]") == 0
    assert visit.until(ICONS), "an icon is not drawn"
    assert visit.page.evaluate(TOO_WIDE) == [], "formulas that must be scrolled even on a desk"
    for width in (1300, 390):  # a desk and a phone
        visit.page.set_viewport_size({"width": width, "height": 844})
        over = visit.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over <= 0, f"at {width} pixels the page is {over} too wide"
        for number, canvas in enumerate(visit.page.locator(".interactive-canvas").all()):
            box = canvas.bounding_box()
            assert box, f"at {width} pixels interactive figure {number} is not shown"
            assert box["x"] >= 0
            assert 200 < box["width"] <= width
            assert colours(canvas.screenshot()) > 20, f"at {width} pixels interactive figure {number} is blank"
    assert visit.faults == []


def cut_off(visit: Visit) -> list[str]:
    """The scenes whose edge something touches: there an axis's title, which belongs to the scene, would be cut."""
    over = ".interactive-canvas .main-svg { visibility: hidden }"  # a legend may lie over an edge
    hidden = visit.page.add_style_tag(content=over)
    cut = []
    for number, figure in enumerate(visit.page.locator(".interactive").all()):
        figure.locator(".interactive-keys").wait_for(state="attached")  # once it is drawn
        for scene in figure.locator(".gl-container > div").all():
            picture = scene.screenshot()
            if edge_colours(picture) > 1 or colours(picture) <= 20:
                cut.append(f"figure {number}, {scene.get_attribute('id')}")
    hidden.evaluate("style => style.remove()")
    return cut


def edge_colours(picture: bytes, inset: int = 2) -> int:
    """How many colours the outermost pixels of a PNG have, but for those of its fractional edge."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    width, height = image.size
    right, bottom = width - 1 - inset, height - 1 - inset
    across = {image.getpixel((x, y)) for x in range(inset, right + 1) for y in (inset, bottom)}
    return len(across | {image.getpixel((x, y)) for x in (inset, right) for y in range(inset, bottom + 1)})


def colours(picture: bytes) -> int:
    """How many colours a PNG has: a figure that is not drawn has one or two."""
    return len(Image.open(io.BytesIO(picture)).convert("RGB").getcolors(1 << 24) or ())


@pytest.mark.parametrize(
    "script", ["console.error('no')", "fetch('https://example.org').catch(() => 0)", "(() => {throw 1})()"]
)
def test_faults_are_seen(browser: object, tmp_path: Path, script: str) -> None:
    """The test above can fail."""
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><title>a page</title><script>{script}</script>")
    visit = Visit(browser, page)
    assert visit.faults
    visit.page.close()


@pytest.mark.parametrize("body", ["<div class=interactive></div>", "<img src=lost.png alt=lost>", r"<p>\(x\)</p>"])
def test_missing_figures_are_seen(browser: object, tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><title>a page</title>{body}")
    visit = Visit(browser, page)
    monkeypatch.setattr(visit, "until", lambda condition: Visit.until(visit, condition, timeout=300))
    with pytest.raises(AssertionError):
        check(visit)
    visit.page.close()


ALONE = sorted((HTML / "_figures").glob("*.html"))


@pytest.mark.promise("R6")
def test_an_interactive_figure_works_alone(browser: object) -> None:
    """As it would be embedded in slides: from a disk, small, without a fault, and as its page links to it."""
    assert ALONE or not WITH_SCENES
    for path in ALONE[:1]:
        visit = Visit(browser, path, 800)
        assert visit.draws()
        assert visit.page.title()
        picture = visit.page.locator(".interactive-canvas").screenshot()
        assert colours(picture) > 20, "the figure is blank"
        assert visit.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        assert visit.faults == []
        visit.page.close()


def test_a_static_figure_opens_at_full_size(browser: object) -> None:
    visit = opened(browser, "grokking.html", 390)
    link = visit.page.locator("a.full-size").first
    shown = link.locator("img").evaluate("image => [image.clientWidth, image.naturalWidth]")
    assert shown[0] < shown[1], "the picture is as large as its file already"
    link.click()
    visit.page.wait_for_load_state()
    assert visit.page.url.endswith(".png")
    assert visit.page.locator("img").evaluate("image => image.naturalWidth") == shown[1]
    assert visit.faults == []
    visit.page.close()


CUT_TABLES = """[...document.querySelectorAll("article table")].filter(table => {
  let box = table.parentElement;
  while (getComputedStyle(box).overflowX === "visible" && box.localName !== "article") box = box.parentElement;
  const edge = box.getBoundingClientRect(), scrolls = ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
  return edge.right > innerWidth || (!scrolls && table.getBoundingClientRect().right > edge.right + 1);
}).map(table => table.textContent.trim().slice(0, 80))"""


@pytest.mark.parametrize("width", [1300, 390])
@pytest.mark.parametrize("name", ["saddles.html", "grokking.html", "reproducibility.html", "how_to_read.html"])
def test_no_column_of_a_table_is_out_of_reach(browser: object, name: str, width: int) -> None:
    visit = opened(browser, name, width)
    assert visit.count("article table") > 0
    assert visit.page.evaluate(CUT_TABLES) == []
    visit.page.close()


def test_a_column_out_of_reach_is_seen(browser: object, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    cut = '<table style="width: 400px"><tr><td>a</td><td>b</td></tr></table>'
    page.write_text(
        f'<!doctype html><title>a page</title><article><div style="overflow: hidden; width: 200px">{cut}</div>'
    )
    visit = Visit(browser, page)
    assert visit.page.evaluate(CUT_TABLES) == ["ab"]
    visit.page.close()


@pytest.mark.parametrize("name", WITH_SCENES)
def test_nothing_of_a_scene_is_cut_off_on_a_phone(browser: object, name: str) -> None:
    visit = opened(browser, name, 390)
    assert visit.draws()
    assert cut_off(visit) == []
    assert visit.faults == []
    visit.page.close()


def test_the_part_of_plotly_draws_the_traces_that_it_is_chosen_for(browser: object) -> None:
    visit = opened(browser, "gradient_svd.html")
    assert visit.until("window.Plotly")
    assert set(visit.page.evaluate("Object.keys(Plotly.PlotSchema.get().traces)")) >= TRACES
    visit.page.close()


def test_an_icon_that_is_not_drawn_is_seen(browser: object) -> None:
    visit = opened(browser, "scorecard.html")
    assert visit.until(ICONS)
    visit.page.add_style_tag(content=".theme-switch::before { content: none !important; }")
    assert not visit.until(ICONS, 500)
    visit.page.close()


def test_a_title_that_is_cut_off_is_seen(browser: object) -> None:
    visit = opened(browser, "saddles.html")
    assert visit.draws()
    assert cut_off(visit) == []
    canvas = visit.page.locator(".interactive-canvas").first
    canvas.evaluate("c => Plotly.relayout(c, {'scene.xaxis.title.text': 'a title much too long for it, '.repeat(8)})")
    assert cut_off(visit) == ["figure 0, scene"]
    visit.page.close()


def test_views_that_a_button_shows_are_whole(browser: object) -> None:
    visit = opened(browser, "resnet_landscape.html", 390)  # at 1300 pixels each scene is as wide, and higher
    assert visit.draws()
    canvas = visit.page.locator(".interactive-canvas").first
    asked = "c => [...Object.values(c.layout.scene.camera.eye), c._fullLayout.scene.zaxis.visible]"
    before = canvas.evaluate(asked)
    for name in ("from above", "from the side"):
        visit.page.get_by_role("button", name=name).first.click()
        assert cut_off(visit) == [], name
    assert canvas.evaluate(asked) == pytest.approx(before)
    visit.page.get_by_role("button", name="from above").first.click()
    assert visit.until("!document.querySelector('.interactive-canvas')._fullLayout.scene.zaxis.visible")
    canvas.focus()
    visit.page.keyboard.press("0")
    assert canvas.evaluate(asked) == pytest.approx(before)
    visit.page.close()


def opened(browser: object, name: str, width: int = 1300) -> Visit:
    if not (HTML / name).is_file():
        lack(f"there is no {name} in {HTML}")
    return Visit(browser, HTML / name, width)


def test_a_heading_sorts_its_table_and_a_third_press_restores_it(browser: object) -> None:
    visit = opened(browser, "parameters.html")
    button = visit.page.locator("table.parameters th button", has_text="Parameter").first
    names = "t => [...t.tBodies[0].rows].map(row => row.cells[0].innerText.trim())"

    def column() -> list[str]:
        found: list[str] = visit.page.locator("table.parameters").first.evaluate(names)
        return found

    before = column()
    button.focus()
    visit.page.keyboard.press("Enter")
    assert column() == sorted(before)
    visit.page.keyboard.press("Enter")
    assert column() == sorted(before, reverse=True)
    visit.page.keyboard.press("Enter")
    assert column() == before
    assert visit.faults == []
    visit.page.close()


def test_numbers_sort_as_numbers(browser: object, tmp_path: Path) -> None:
    numbers = ["1,000", "0.5", "0.15", "-2", "90 ± 3"]
    rows = "".join(f"<tr><td>{number}</td></tr>" for number in numbers)
    script = (ROOT / "lib/descent_book/pages/assets/sortable.js").read_text()
    page = tmp_path / "page.html"
    head = "<!doctype html><meta charset=utf-8><title>a page</title>"
    table = f"<table class=sortable><thead><tr><th>n</th></tr></thead><tbody>{rows}</tbody></table>"
    page.write_text(f"{head}<script>{script}</script>{table}", encoding="utf-8")
    visit = Visit(browser, page)
    visit.page.get_by_role("button", name="n").click()
    assert visit.page.locator("td").all_inner_texts() == ["-2", "0.15", "0.5", "90 ± 3", "1,000"]
    visit.page.close()


def test_the_filters_of_the_scorecard_leave_what_is_asked_for(browser: object) -> None:
    visit = opened(browser, "scorecard.html")
    cards, said = visit.page.locator(".scores > .score:visible"), visit.page.locator("form.score-filters output")
    everything = cards.count()
    assert said.inner_text() == f"{everything} of {everything} claims"
    kind = visit.page.get_by_label("kind")
    kind.focus()
    visit.page.keyboard.press("End")  # the last kind, by the keyboard alone
    visit.page.keyboard.press("Enter")
    checks = visit.page.locator(".scores > .score.kind-check").count()
    assert 0 < checks < everything
    assert (cards.count(), said.inner_text()) == (checks, f"{checks} of {everything} claims")
    hidden = visit.page.locator(".scores > .score[hidden]").first.get_attribute("id")
    visit.page.evaluate(f"location.hash = '{hidden}'")  # a link to a card that is hidden shows it
    assert visit.until(f"document.getElementById('{hidden}').checkVisibility()")
    assert visit.faults == []
    visit.page.close()


def test_without_scripts_every_card_is_shown(browser: object) -> None:
    context = browser.new_context(java_script_enabled=False)  # type: ignore[attr-defined]
    page = context.new_page()
    page.goto((HTML / "scorecard.html").as_uri())
    assert page.locator("form.score-filters").is_hidden()
    assert page.locator(".scores > .score:visible").count() == page.locator(".scores > .score").count() > 10
    context.close()


def test_a_claim_leads_to_its_cell_and_back(browser: object) -> None:
    visit = opened(browser, "scorecard.html")
    row = visit.page.locator(".scores > .score", has=visit.page.locator("p.detail a")).first
    identity = row.get_attribute("id")
    row.locator("p.detail a").first.click()
    visit.page.wait_for_load_state()
    assert "#claim-" in visit.page.url
    assert visit.page.locator(f'[id="{visit.page.url.partition("#")[2]}"]').count() == 1
    visit.page.locator(f'a[href="scorecard.html#{identity}"]').first.click()
    visit.page.wait_for_load_state()
    assert visit.page.url.endswith(f"scorecard.html#{identity}")
    visit.page.close()


@pytest.mark.parametrize(("words", "page"), [("saddle points", "saddles"), ("key frequency", "grokking")])
def test_the_search_finds_words_of_a_chapter(browser: object, words: str, page: str) -> None:
    visit = opened(browser, "search.html")
    visit.page.goto(f"{(HTML / 'search.html').as_uri()}?q={words.replace(' ', '+')}")
    assert visit.until("document.querySelectorAll('#search-results li').length > 0")
    links = visit.page.locator("#search-results li a").all()
    assert any(f"/{page}.html" in f"/{link.get_attribute('href')}" for link in links)
    # from a file no page may fetch another, so results come without excerpts; over HTTP they have them
    assert [fault for fault in visit.faults if fault.startswith("left:")] == []
    visit.page.close()


# the theme fades from one mode into the other
FADED = "Promise.all(document.getAnimations().filter(each => each instanceof CSSTransition).map(each => each.finished))"
GROUND = """node => {
  const colour = getComputedStyle(node).color;
  for (let each = node; each; each = each.parentElement) {
    const ground = getComputedStyle(each).backgroundColor;
    if (!/, 0\\)$|transparent/.test(ground)) return [colour, ground];
  }
  return [colour, "rgb(255, 255, 255)"];
}"""


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("intro.html", ["article p", "article p a"]),
        (
            "grokking.html",
            [
                "article p",
                "figcaption p",
                "p.licence",
                "a:has(> span.term)",
                "article td",
                "div.cell_input pre",
                "summary",
            ],
        ),
    ],
)
def test_text_stands_out_in_either_mode(browser: object, mode: str, name: str, parts: list[str]) -> None:
    """The contrast of text, WCAG 2.1: at least 4.5 to 1."""
    visit = opened(browser, name)
    visit.page.evaluate(f"document.documentElement.dataset.theme = '{mode}'")
    visit.page.evaluate(FADED)
    for part in parts:
        colour, ground = visit.page.locator(part).first.evaluate(GROUND)
        light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{part}: {colour} on {ground}"
        assert (luminance(ground) < 0.2) == (mode == "dark"), f"{part} on {ground}"
    visit.page.close()


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_keyboard_reaches_the_text_first_and_every_link(browser: object) -> None:
    visit = opened(browser, "intro.html")
    visit.page.keyboard.press("Tab")
    assert "main-content" in (visit.page.evaluate("document.activeElement.getAttribute('href')") or "")
    hidden = visit.page.locator('article a[tabindex="-1"], article button[tabindex="-1"]')
    assert hidden.count() == 0
    visit.page.close()


@pytest.mark.parametrize("name", ["saddles.html", "grokking.html", "scorecard.html", "parameters.html"])
def test_the_keyboard_reaches_every_control(browser: object, name: str) -> None:
    visit = opened(browser, name)
    assert visit.draws()
    # a heading's own address is shown to a pointer only: the list of contents beside the text leads there too
    controls = "article :is(a[href]:not(.headerlink), button, summary, input:enabled, select, .interactive-canvas)"
    unreached = f"""[...document.querySelectorAll("{controls}")].filter(node => {{
      node.focus({{preventScroll: true}});
      return node.tabIndex < 0 || (node.checkVisibility() && document.activeElement !== node);
    }}).map(node => node.outerHTML.slice(0, 120))"""
    assert visit.count(controls) > 10
    assert visit.page.evaluate(unreached) == []
    visit.page.close()


def test_figures_are_drawn_when_they_are_less_than_a_screen_away(browser: object) -> None:
    visit = opened(browser, "superposition.html")
    visit.page.goto("about:blank")
    visit.page.goto((HTML / "superposition.html").as_uri())  # anew, at its top
    visit.page.wait_for_load_state("networkidle")
    far = f"{SCENES}.filter(f => f.getBoundingClientRect().top > 2 * innerHeight)"
    assert visit.page.evaluate(f"{far}.length") > 0
    assert visit.page.evaluate(f"{far}.filter(f => f.querySelector('{DRAWN}')).length") == 0
    assert visit.page.evaluate(f"{far}.every(f => f.querySelector('img').checkVisibility())"), (
        "their pictures are not seen"
    )
    assert visit.draws(f"{SCENES}.slice(0, 1)")
    assert visit.until(f"!{SCENES}[0].querySelector('img').checkVisibility()")
    assert visit.faults == []
    visit.page.close()


def test_arrow_keys_turn_an_interactive_figure_and_zero_puts_it_back(browser: object) -> None:
    visit = opened(browser, "saddles.html")
    canvas = visit.page.locator(".interactive-canvas").first
    visit.page.keyboard.press("Tab")  # focus by a script after this is shown as focus by keyboard is
    canvas.focus()  # brings the figure into view, and so draws it
    assert visit.until("document.querySelector('.interactive-keys')")

    def eye() -> list[float]:
        """Where it is, seen from what it looks at."""
        asked = "c => ['x', 'y', 'z'].map(a => c.layout.scene.camera.eye[a] - c.layout.scene.camera.center[a])"
        return [round(float(value), 6) for value in canvas.evaluate(asked)]

    assert "Arrow keys turn" in (canvas.get_attribute("aria-label") or "")
    assert visit.page.locator(".interactive-keys").first.is_visible()
    before, seen = eye(), []
    for key in ("ArrowLeft", "ArrowUp", "+"):
        visit.page.keyboard.press(key)
        seen.append(eye())
    length = [sum(value**2 for value in each) for each in (before, *seen)]
    assert len({tuple(each) for each in (before, *seen)}) == 4
    assert length[:3] == pytest.approx([length[0]] * 3, rel=1e-4)  # turning keeps the distance
    assert length[3] < length[0]
    visit.page.keyboard.press("0")
    assert eye() == before
    assert visit.faults == []
    visit.page.close()


def apart(first: list[list[float]], second: list[list[float]]) -> bool:
    """Whether two rectangles, `[[left, right], [bottom, top]]`, share no area."""
    return any(a[1] <= b[0] or b[1] <= a[0] for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("name", "lefts", "bars"),
    [("superposition.html", [[0, 0.5, 0, 0.5]], 1), ("saddles.html", [[0, 0.51]], 0)],
)
def test_scenes_have_room_and_on_a_phone_stand_below_one_another_with_colour_bars_below_them(
    browser: object, name: str, lefts: list[list[float]], bars: int
) -> None:
    visit = opened(browser, name)
    asked = """all => all.map(c => Object.entries(c._fullLayout).filter(([name]) => /^scene\\d*$/.test(name))
                                       .map(([, scene]) => [scene.domain.x, scene.domain.y]))"""
    canvases = visit.page.locator(".interactive-canvas")
    assert visit.draws()
    wide = canvases.evaluate_all(asked)
    visit.page.set_viewport_size({"width": 390, "height": 844})
    visit.page.reload()
    visit.page.wait_for_load_state("networkidle")
    assert visit.draws()
    phone = canvases.evaluate_all(asked)
    several = [number for number, scenes in enumerate(wide) if len(scenes) > 1]
    assert [[x for (x, _), _ in wide[number]] for number in several] == lefts, "no more than two have room in a row"
    for number in several:
        assert [x for x, _ in phone[number]] == [[0, 1]] * len(wide[number])
        assert all(apart(*pair) for scenes in (wide[number], phone[number]) for pair in combinations(scenes, 2))
        assert all(before[0] >= after[1] for (_, before), (_, after) in pairwise(phone[number])), "in another order"
    assert canvases.locator(".infolayer .colorbar").count() == bars
    across = canvases.evaluate_all("all => all.map(c => c._fullLayout._size.w / c._fullLayout.width)")
    assert min(across) > 0.9, "something stands beside the scenes"
    assert visit.faults == []
    visit.page.close()


def test_the_keyboard_opens_a_hidden_cell(browser: object) -> None:
    visit = opened(browser, "saddles.html")
    summary = visit.page.locator("article details.hide summary").first
    code = visit.page.locator("article details.hide pre").first
    assert not code.is_visible()
    summary.focus()
    visit.page.keyboard.press("Enter")
    assert code.is_visible()
    visit.page.keyboard.press("Enter")
    assert not code.is_visible()
    visit.page.close()
