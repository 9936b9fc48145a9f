"""All pages of a built book as one, in the order of the contents, for a browser to print."""

from __future__ import annotations

import json
from collections.abc import Collection
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from bs4 import BeautifulSoup, Tag

from descent_book.pages.scripts import mathjax

ASSETS = Path(__file__).parent / "assets"
NOT_PRINTED = "a.headerlink, script, .only-on-screen, button"
SETTINGS = (
    '{options: {processHtmlClass: "math"}, svg: {fontCache: "global"}}'  # of MathJax: glyphs once, not per formula
)


class PrintError(Exception):
    """The book cannot be printed as it is; the message says what to do."""


class Part(NamedTuple):
    """Pages under one caption of the contents."""

    caption: str
    pages: list[str]


class Book(NamedTuple):
    """What the title page says, and the contents."""

    title: str
    author: str
    address: str
    preset: str
    parts: list[Part]


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
    parts = [Part("", [str(toc["root"])])]
    parts += [Part(part.get("caption", ""), [str(entry["file"]) for entry in part["chapters"]]) for part in rest]
    return Book(config["title"], config["author"], config["repository"]["url"], preset, parts)


def article(html: Path, page: str, pages: Collection[str]) -> Tag:
    """The text of one page: identities and links made unique by the page's name, hidden cells open, nothing to press.

    Raises:
        PrintError: the page is missing, or an interactive figure on it has no still picture.
    """
    file = html / f"{page}.html"
    if not file.is_file():
        raise PrintError(f"{file}: not found; build the book again: make html, or make book")
    found = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser").select_one("article")
    if found is None:
        raise PrintError(f"{file}: expected an <article>, as the book's theme writes it")
    for gone in found.select(NOT_PRINTED):
        gone.decompose()
    for figure in found.select("div.interactive"):
        if figure.find("img") is None:
            raise PrintError(f"{page}: no still picture beside the interactive figure: {figure.get('aria-label')}")
    for details in found.select("details"):
        details["open"] = ""
    for image in found.select("img"):
        image["src"] = (html / str(image["src"])).as_uri()
        image.attrs.pop("loading", None)  # all at once, or the print begins before the last is there
    _join_links(found, page, pages)
    found.name, found["class"], found["id"] = "section", "page", page
    return found


def _join_links(found: Tag, page: str, pages: Collection[str]) -> None:
    """Make identities unique in the whole book, and have the links between pages point at them."""
    for node in found.select("[id]"):
        node["id"] = f"{page}--{node['id']}"
    for link in found.select("a[href]"):
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
    for part in book.parts:
        items = [f'<li><a href="#{page}">{escape(titles[page])}</a></li>' for page in part.pages]
        lines += [f"<p>{escape(part.caption)}</p>" if part.caption else "", "<ul>", *items, "</ul>"]
    return "\n".join([*lines, "</nav>"])


def combined(html: Path, book: Book) -> str:
    """One page of HTML: title, contents, and the text of every page.

    Raises:
        PrintError: see `article`.
    """
    names = [page for part in book.parts for page in part.pages]
    articles = {page: article(html, page, names) for page in names}
    titles = {page: _title(found, page) for page, found in articles.items()}
    static = html / "_static"
    styles = [static / "pygments.css", ASSETS / "print.css"]
    head = ['<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8">']
    head += [f"<title>{escape(book.title)}</title>"]
    head += [f'<link rel="stylesheet" href="{style.as_uri()}">' for style in styles]
    head += [f"<script>window.MathJax = {SETTINGS}</script>"]
    head += [f'<script defer src="{mathjax("tex-svg.js").as_uri()}"></script></head><body>']
    return "\n".join([*head, front(book, titles), *map(str, articles.values()), "</body></html>"])


def _title(found: Tag, page: str) -> str:
    heading: Any = found.find("h1")
    return heading.get_text(" ", strip=True) if heading else page
