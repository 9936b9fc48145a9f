"""The book as one PDF: all pages joined into one, printed by a Chromium without a window, and linked from the pages.

python -m descent_book.pages.pdf    prints what `make html` or `make book` has built

The next `make html` or `make book` lays the file beside the pages, where it was made from just these.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import click
import yaml
from bs4 import BeautifulSoup, Tag
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from descent.checkout import project_root
from descent.repro.files import atomic_path
from descent_book.pages.build import KEY, PDF, key_beside
from descent_book.pages.scripts import ASSETS, mathjax
from descent_book.run.project import HELP, ROOT_OPTION, refusing

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Software WebGL for the 3-D figures; a proxy that does not exist, so that no request leaves the machine.
BROWSER_ARGUMENTS = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--proxy-server=127.0.0.1:9",
    "--proxy-bypass-list=<-loopback>",
)
WIDTH, SIDE = 210, 20  # mm, of A4 and of each margin at its sides
TIMEOUT = 300_000  # ms; some minutes of mathematics on one slow core
FOOT = (
    '<div style="width: 100%; text-align: center; font: 8px serif; color: #555">'
    '<span class="title"></span> · <span class="pageNumber"></span></div>'
)
READY = """async () => {
  await MathJax.startup.promise;
  await Promise.all([...document.images].map(image => image.decode()));
  return [...document.querySelectorAll("mjx-merror, [data-mjx-error]")].map(error => error.textContent);
}"""
# Chromium shrinks the whole book to its widest element, so none may be wider than the paper.
TOO_WIDE = """() => [...document.body.querySelectorAll("*")]
  .filter(node => !node.closest("mjx-container") && node.getBoundingClientRect().right > window.innerWidth + 1)
  .map(node => `${node.closest("section.page")?.id}: <${node.localName}> ${node.textContent.trim().slice(0, 60)}`)"""
NOT_PRINTED = "a.headerlink, script, .only-on-screen, button"
# Settings of MathJax, which then draws each glyph once and not once a formula.
SETTINGS = '{options: {processHtmlClass: "math"}, svg: {fontCache: "global"}}'
PAPER: dict[str, Any] = {
    "format": "A4",
    "margin": {"top": "18mm", "bottom": "20mm", "left": f"{SIDE}mm", "right": f"{SIDE}mm"},
    "display_header_footer": True,
    "header_template": "<span></span>",
    "footer_template": FOOT,
    "print_background": True,
    "outline": True,  # bookmarks, from the headings
    "tagged": True,  # the structure and the descriptions of figures, for a screen reader
}


class PrintError(Exception):
    """The book cannot be printed as it is; the message says what to do."""


class Book(NamedTuple):
    """What stands on the title page, and the contents: each part's caption with its pages."""

    title: str
    author: str
    address: str
    preset: str
    parts: list[tuple[str, list[str]]]


def read_book(source: Path) -> Book:
    """The settings, contents and preset in a folder of sources, as `descent_book.pages.build` lays it out.

    Raises:
        PrintError: one of its files is missing.
    """
    try:
        config = yaml.safe_load((source / "_config.yml").read_text(encoding="utf-8"))
        toc = yaml.safe_load((source / "_toc.yml").read_text(encoding="utf-8"))
        preset = json.loads((source / "scorecard.json").read_text(encoding="utf-8"))["preset"]
    except OSError as error:
        raise PrintError(f"{error.filename}: not found; build the book first: make html, or make book") from error
    rest = toc.get("parts") or [{"chapters": toc.get("chapters", [])}]
    parts = [("", [str(toc["root"])])]
    parts += [(part.get("caption", ""), [str(entry["file"]) for entry in part["chapters"]]) for part in rest]
    return Book(config["title"], config["author"], config["repository"]["url"], preset, parts)


def article(html: Path, page: str, pages: Collection[str]) -> Tag:
    """The text of one page, without buttons: its identities are unique in the book, and its hidden cells are open.

    Raises:
        PrintError: the page is missing, or an interactive figure on it has no still picture.
    """
    file = html / f"{page}.html"
    if not file.is_file():
        raise PrintError(f"{file}: not found; build the book again: make html, or make book")
    text = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser").select_one("article")
    if text is None:
        raise PrintError(f"{file}: expected an <article>, as the book's theme writes it")
    for node in text.select(NOT_PRINTED):
        node.decompose()
    for figure in text.select("div.interactive"):
        if figure.find("img") is None:
            raise PrintError(f"{page}: no still picture beside the interactive figure: {figure.get('aria-label')}")
    for details in text.select("details"):
        details["open"] = ""
    for image in text.select("img"):
        image["src"] = (html / str(image["src"])).as_uri()
        image.attrs.pop("loading", None)  # all at once, or the print begins before the last is there
    _join_links(text, page, pages)
    text.name, text["class"], text["id"] = "section", "page", page
    return text


def _join_links(text: Tag, page: str, pages: Collection[str]) -> None:
    """Make identities unique in the whole book, and have the links between pages point at them."""
    for node in text.select("[id]"):
        node["id"] = f"{page}--{node['id']}"
    for link in text.select("a[href]"):
        target, _, anchor = str(link["href"]).partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        name = target.removesuffix(".html") or page
        if name in pages:
            link["href"] = f"#{name}--{anchor}" if anchor else f"#{name}"
        else:
            del link["href"]  # a download or the index, which are not printed


def front(book: Book, titles: dict[str, str]) -> str:
    """The title page and the contents."""
    edition = "Published edition" if book.preset in ("paper", "published") else f"Edition at preset {book.preset}"
    icon = (ASSETS / "favicon.svg").read_text(encoding="utf-8")
    lines = [f'<section class="cover">{icon}<p class="title">{escape(book.title)}</p>']
    lines += [f"<p>{escape(book.author)}</p><p>{edition}</p><p><code>{escape(book.address)}</code></p></section>"]
    lines += ['<nav class="contents"><h1>Contents</h1>']
    for caption, pages in book.parts:
        items = [f'<li><a href="#{page}">{escape(titles[page])}</a></li>' for page in pages]
        lines += [f"<p>{escape(caption)}</p>" if caption else "", "<ul>", *items, "</ul>"]
    return "\n".join([*lines, "</nav>"])


def combined(html: Path, book: Book) -> str:
    """One page of HTML: title, contents, and the text of every page.

    Raises:
        PrintError: see `article`.
    """
    names = [page for _, pages in book.parts for page in pages]
    articles = {page: article(html, page, names) for page in names}
    headings = {page: text.find("h1") for page, text in articles.items()}
    titles = {page: heading.get_text(" ", strip=True) if heading else page for page, heading in headings.items()}
    styles = [html / "_static" / "pygments.css", ASSETS / "print.css"]
    head = ['<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8">']
    head += [f"<title>{escape(book.title)}</title>"]
    head += [f'<link rel="stylesheet" href="{style.as_uri()}">' for style in styles]
    head += [f"<script>window.MathJax = {SETTINGS}</script>"]
    head += [f'<script defer src="{mathjax("tex-svg.js").as_uri()}"></script></head><body>']
    return "\n".join([*head, front(book, titles), *map(str, articles.values()), "</body></html>"])


def find_chromium() -> str | None:
    """The first Chromium on the PATH; None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def print_book(html: Path, source: Path, target: Path, chromium: str | None = None) -> Path:
    """Print the pages in `html`, which were made from `source`, to `target`; a whole file or none.

    The program `chromium` prints; by default the first on the PATH.

    Raises:
        PrintError: there is no browser or no book, or the print would lack something.
    """
    book = read_book(source)
    program = chromium or find_chromium()
    if program is None:
        names = ", ".join(BROWSERS)
        raise PrintError(f"no Chromium on the PATH: expected one of {names}; install one, or name it with --browser")
    if not Path(program).is_file():
        raise PrintError(f"--browser {program}: no such file; expected the program of a Chromium")
    if find_spec("playwright") is None:
        raise PrintError("playwright is not installed; it comes with: pip install -e '.[dev]'")
    with tempfile.TemporaryDirectory() as folder, atomic_path(target) as temporary:
        page = Path(folder) / "book.html"
        page.write_text(combined(html, book), encoding="utf-8")
        _print(page, temporary, program)
    return target


def _print(page: Path, target: Path, program: str) -> None:
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=list(BROWSER_ARGUMENTS))
        except Error as error:
            raise PrintError(f"{program} does not start: {error.message.splitlines()[0]}") from error
        try:
            sheet = browser.new_page(viewport={"width": round((WIDTH - 2 * SIDE) / 25.4 * 96), "height": 900})
            sheet.set_default_timeout(TIMEOUT)
            faults: list[str] = []
            sheet.on("pageerror", lambda error: faults.append(f"exception: {error}"))
            sheet.on("requestfailed", lambda request: faults.append(f"not loaded: {request.url}"))
            sheet.emulate_media(media="print")
            sheet.goto(page.as_uri())
            faults += [f"not typeset: {text}" for text in sheet.evaluate(READY)]
            faults += [f"wider than the paper: {text}" for text in sheet.evaluate(TOO_WIDE)]
            if faults:
                raise PrintError("not printed:\n" + "\n".join(faults[:20]))
            target.write_bytes(sheet.pdf(**PAPER))
        except Error as error:
            raise PrintError(f"the browser could not print: {error.message.splitlines()[0]}") from error
        finally:
            browser.close()


def make(root: Path, chromium: str | None = None) -> Path:
    """Print the book in `_build/html`, and note beside it which pages it belongs to.

    Raises:
        PrintError: see `print_book`.
    """
    build = root / "_build"
    key = build / "html" / KEY
    if not key.is_file():
        raise PrintError(f"there is no book in {build / 'html'}; build one first: make html, or make book")
    noted = build / "source" / KEY
    if not noted.is_file() or key.read_text(encoding="utf-8") != noted.read_text(encoding="utf-8"):
        raise PrintError("_build/html is older than _build/source; build it again: make html, or make book")
    key_beside(build).unlink(missing_ok=True)  # it is the old file's, which is about to go
    print_book(build / "html", build / "source", build / PDF, chromium)
    key_beside(build).write_text(key.read_text(encoding="utf-8"), encoding="utf-8")
    return build / PDF


class PrintedDirective(SphinxDirective):
    """{printed}: a sentence that leads to the printed book and gives its size."""

    def run(self) -> list[nodes.Node]:
        """One paragraph, or none; the printed book itself leaves it out."""
        file = Path(self.env.srcdir) / PDF
        if not file.is_file():
            return []
        text = nodes.paragraph("", "The whole book is also one file, to print or to keep: ", classes=["only-on-screen"])
        text += nodes.reference("", PDF, refuri="../" * self.env.docname.count("/") + PDF, internal=False)
        text += nodes.Text(f" ({file.stat().st_size / 1e6:.1f} MB).")
        return [text]


def copy_printed(app: Sphinx, failure: Exception | None) -> None:
    """Lay the printed book and the key of its sources beside the pages."""
    for name in (PDF, KEY):
        if failure is None and (file := Path(app.srcdir) / name).is_file():
            shutil.copyfile(file, Path(app.outdir) / name)


def setup(app: Sphinx) -> None:
    """Register this module with Sphinx."""
    app.add_directive("printed", PrintedDirective)
    app.connect("build-finished", copy_printed)


@click.command(context_settings=HELP)
@click.option("--browser", default=None, help="The program of a Chromium, where it is not on the PATH.")
@ROOT_OPTION
@refusing(PrintError, said="not printed", status=1)
def main(browser: str | None, root: str | None) -> None:
    """Print the built book as one PDF."""
    printed = make(project_root(root), browser)
    click.echo(f"open {printed} ({printed.stat().st_size / 1e6:.1f} MB); the next make html or make book links to it")


if __name__ == "__main__":
    main()
