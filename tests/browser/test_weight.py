"""How heavy the built book is, and that no link in it is lost; needs no browser, only the pages (see test_pages.py)."""

import gzip
import os
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[2]
HTML = Path(os.environ.get("DESCENT_HTML", ROOT / "_build/html"))
PAGES = sorted(HTML.glob("*.html"))
MEGABYTE = 1_000_000

with_a_book = pytest.mark.skipif(not PAGES, reason=f"there is no book in {HTML}; make one with `make book`")


def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def scripts(page: BeautifulSoup, shared: bool = True) -> set[str]:
    """The script files that a page loads: those of all pages, or the data of its own figures."""
    files = {str(tag["src"]).partition("?")[0] for tag in page.select("script[src]")}
    return {file for file in files if file.startswith("_static/") == shared and (HTML / file).is_file()}


@with_a_book
@pytest.mark.promise("R12")
def test_every_page_is_light(record_property) -> None:  # type: ignore[no-untyped-def]
    weights = {path.name: path.stat().st_size for path in PAGES}
    heaviest = max(weights, key=lambda name: weights[name])
    record_property("heaviest page of HTML, kB", round(weights[heaviest] / 1000))
    record_property("which page that is", heaviest)
    assert {name: weight for name, weight in weights.items() if weight > 300_000} == {}


@with_a_book
@pytest.mark.promise("R12")
def test_shared_scripts_are_light(record_property) -> None:  # type: ignore[no-untyped-def]
    """4 MB as they lie on disk; without `make scripts`, whose part of plotly.js is a third of all, as they are sent."""
    by_page = {path.name: scripts(parsed(path)) for path in PAGES}
    whole = {name for name, files in by_page.items() if "_static/plotly.min.js" in files}
    everything = set().union(*by_page.values())
    assert {"_static/tex-chtml.js", "_static/scripts/bootstrap.js"} < everything
    on_disk = sum((HTML / file).stat().st_size for file in everything)
    without = set().union(*(files for name, files in by_page.items() if name not in whole))
    light = sum((HTML / file).stat().st_size for file in without)
    sent = sum(len(gzip.compress((HTML / file).read_bytes())) for file in everything)
    record_property("all shared scripts, MB on disk", round(on_disk / MEGABYTE, 2))
    record_property("all shared scripts, MB as a server sends them (gzip)", round(sent / MEGABYTE, 2))
    record_property("pages that load all of plotly.js", len(whole))
    assert 0 < light <= (2 if whole else 4) * MEGABYTE
    assert on_disk <= (6.5 if whole else 4) * MEGABYTE
    assert 0 < sent <= 4 * MEGABYTE


@pytest.mark.promise("R12")
def test_published_notebooks_are_light(record_property) -> None:  # type: ignore[no-untyped-def]
    weights = {path.stem: path.stat().st_size / MEGABYTE for path in (ROOT / "book").glob("*.ipynb")}
    assert weights
    record_property("heaviest published notebook, MB", round(max(weights.values()), 2))
    record_property("published notebooks above 1 MB", sum(weight > 1 for weight in weights.values()))
    assert {name: weight for name, weight in weights.items() if weight > 1} == {}


@with_a_book
@pytest.mark.promise("R6")
def test_every_internal_link_leads_somewhere(record_property) -> None:  # type: ignore[no-untyped-def]
    pages = {path.name: parsed(path) for path in PAGES}
    anchors = {name: {str(tag["id"]) for tag in page.select("[id]")} for name, page in pages.items()}
    links = [(name, str(tag["href"])) for name, page in pages.items() for tag in page.select("a[href]")]
    inside = [(name, target) for name, target in links if "://" not in target and not target.startswith("mailto:")]
    lost = []
    for name, target in inside:
        file, _, anchor = target.partition("#")
        known = anchors.get(file or name)
        if known is None:
            lost += [] if (HTML / file).is_file() else [(name, target)]
        elif anchor and anchor not in known:
            lost.append((name, target))
    record_property("internal links, all of which lead somewhere", len(inside))
    assert len(inside) > len(pages)
    assert lost == []
