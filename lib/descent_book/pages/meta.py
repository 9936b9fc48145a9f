"""What each page says of itself outside its text: a description and a picture for who links to it, and its licence.

No address is made up: those of the pages are absolute only where `html_baseurl` says where the book stands.
"""

from __future__ import annotations

import re
from html import escape, unescape
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx

from descent_book.pages.figures import FIGURES
from descent_book.pages.home import read_cards
from descent_book.pages.pictures import chapters_of, pictures

LONGEST = 200  # characters of a description; search engines show about as many
HOME_PICTURE = "images/intro.png"


def summary(doctree: nodes.document) -> str:
    """A page's first paragraph of some length as plain text, cut after a word; empty where it has none."""
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(plain(paragraph).split())
        if len(text) >= 40 and not isinstance(paragraph.parent, (nodes.entry, nodes.caption)):
            return text if len(text) <= LONGEST else text[:LONGEST].rpartition(" ")[0].rstrip(",;:") + "…"
    return ""


def plain(node: nodes.Node) -> str:
    """A node as plain text, formulas without their commands."""
    if isinstance(node, nodes.math):
        return re.sub(r"\\(?:mathbb|mathrm|hat|text)\b|[\\{}]", "", node.astext())
    return "".join(map(plain, node.children)) if node.children else node.astext()


def picture_of(app: Sphinx, page: str) -> str:
    """The address within the site of a page's picture: that of the chapter's card, its first one, or the home page's.

    Empty where there is none.
    """
    source, site = Path(app.srcdir), Path(app.outdir)
    found = {each.name: each for each in pictures(source, page)} if page in chapters_of(app.env) else {}
    if not found:
        return _kept(site, "home", (source / HOME_PICTURE).read_bytes()) if (source / HOME_PICTURE).is_file() else ""
    try:
        cards = read_cards(source / "cards.yml")
    except ValueError:  # none, or one that {cards} has warned of
        cards = {}
    wanted = cards[page].figures if page in cards else []
    name = next((each for each in wanted if each in found), next(iter(found)))
    return _kept(site, f"{page}-{name}", found[name].png)


def _kept(site: Path, name: str, png: bytes) -> str:
    file = site / FIGURES / f"{name}.png"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(png)
    return file.relative_to(site).as_posix()


def describe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Add the description, and what social networks show of a link, to a page's head."""
    if doctree is None:
        return
    base, up = (app.config.html_baseurl or "").rstrip("/"), "../" * page.count("/")
    text, picture = summary(doctree), picture_of(app, page)
    title = unescape(re.sub(r"<[^>]+>", "", context.get("title", "")))
    properties = {
        "og:type": "website" if page == app.config.root_doc else "article",
        "og:site_name": app.config.html_title or "",
        "og:title": title,
        "og:description": text,
        "og:image": (f"{base}/{picture}" if base else f"{up}{picture}") if picture else "",
        "og:url": f"{base}/{app.builder.get_target_uri(page)}" if base else "",
    }
    tags = [f'<meta name="description" content="{escape(text)}">'] if text else []
    tags += [f'<meta property="{name}" content="{escape(value)}">' for name, value in properties.items() if value]
    context["metatags"] = "\n".join([context.get("metatags") or "", *tags])


def citation_line(citation: dict[str, Any], year: str, branch: str) -> str:
    """Title, version, licence and how to cite, as HTML, from what `CITATION.cff` says."""
    authors = ", ".join(
        each.get("name") or f"{each.get('given-names', '')} {each.get('family-names', '')}".strip()
        for each in citation.get("authors", [])
    )
    title, version = citation.get("title", ""), citation.get("version", "")
    licence, address = citation.get("license", ""), citation.get("repository-code", "")
    said = escape(f"{licence} licence")
    if address:
        said = f'<a href="{escape(f"{address}/blob/{branch}/LICENSE")}">{said}</a>'
    cite = f"{authors} ({year}). {title} (version {version}). {address}"
    return (
        f'<p class="licence">{escape(title)}, version {escape(str(version))}. Text, code and figures: {said}. '
        f"To cite: {escape(cite)}</p>"
    )


def state_licence(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Put version, licence and how to cite below every page, where the book's source has a `CITATION.cff`."""
    file = Path(app.srcdir) / "CITATION.cff"
    if file.is_file():
        year = re.sub(r"\D", "", app.config.copyright)[:4]
        branch = app.config.html_theme_options.get("repository_branch", "main")
        citation = yaml.safe_load(file.read_text(encoding="utf-8"))
        context["theme_extra_footer"] = citation_line(citation, year, branch)


def setup(app: Sphinx) -> None:
    """Register this module with Sphinx."""
    app.connect("html-page-context", describe)
    app.connect("html-page-context", state_licence)
