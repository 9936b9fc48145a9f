"""Every page of a built book in a real browser with the network cut: no error, every figure drawn.

Looks at `_build/html`, or the folder that DESCENT_HTML names. Without Chromium or a built book the tests are skipped;
with DESCENT_REQUIRE_BROWSER=1, as in continuous integration, that is a failure.
"""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HTML = Path(os.environ.get("DESCENT_HTML", ROOT / "_build/html"))
PAGES = sorted(path.name for path in HTML.glob("*.html"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Software WebGL for the 3-D figures; a proxy that does not exist, so that no request leaves the machine.
ARGUMENTS = [
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--proxy-server=127.0.0.1:9",
    "--proxy-bypass-list=<-loopback>",
]
pytestmark = pytest.mark.browser


def lack(reason: str) -> None:
    """Skip, or fail where the browser test must run."""
    if os.environ.get("DESCENT_REQUIRE_BROWSER") == "1":
        pytest.fail(f"DESCENT_REQUIRE_BROWSER=1, but {reason}")
    pytest.skip(reason)


class Visit:
    """One page, opened and settled, with what went wrong on the way."""

    def __init__(self, browser, path: Path) -> None:  # type: ignore[no-untyped-def]
        self.faults: list[str] = []
        self.page = browser.new_page(viewport={"width": 1300, "height": 900})
        self.page.on("console", lambda message: self.note(message.type == "error", f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.note(True, f"exception: {error}"))
        self.page.on("requestfailed", lambda request: self.note(True, f"failed: {request.url}"))
        self.page.on("request", lambda request: self.note(not is_local(request.url), f"left: {request.url}"))
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("networkidle")
        # Lazy pictures load when they are seen, and figures may draw late.
        self.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        self.page.wait_for_timeout(300)

    def note(self, bad: bool, fault: str) -> None:
        if bad:
            self.faults.append(fault)

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def until(self, condition: str, timeout: int = 20_000) -> bool:
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
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


def test_there_is_a_book() -> None:
    if not PAGES:
        lack(f"there is no book in {HTML}; make one with `make book`")
    assert {"index.html", "intro.html", "scorecard.html"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_page(browser: object, name: str) -> None:
    visit = Visit(browser, HTML / name)
    try:
        check(visit)
    finally:
        visit.page.close()


def check(visit: Visit) -> None:
    """No fault, and every picture, interactive figure and formula drawn."""
    drawn = "f => f.querySelector('.interactive-canvas canvas, .interactive-canvas svg.main-svg')"
    assert visit.until(f"[...document.querySelectorAll('.interactive')].every({drawn})"), (
        "an interactive figure is blank"
    )
    pictures = visit.page.eval_on_selector_all("img:not([hidden])", "all => all.map(i => [i.src, i.naturalWidth])")
    assert [source for source, width in pictures if width == 0] == []
    if visit.count("span.math, div.math"):
        typeset = (
            "[...document.querySelectorAll('span.math, div.math')].every(m => m.querySelector('mjx-container svg'))"
        )
        assert visit.until(typeset), "a formula is not typeset"
    text = visit.page.evaluate("document.body.innerText")
    assert r"\(" not in text
    assert r"\[" not in text
    assert "mjx-merror" not in visit.page.content()
    for width in (1300, 390):  # a desk and a phone
        visit.page.set_viewport_size({"width": width, "height": 844})
        over = visit.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over <= 0, f"at {width} pixels the page is {over} too wide"
    assert visit.faults == []


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
