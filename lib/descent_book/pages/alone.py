"""Each interactive figure as a page of its own, to show among slides or to embed: `_figures/<name>.html`.

It loads the site's own scripts by relative addresses, so it works from a disk too.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from descent_book.pages.figures import FIGURES, PlotlyFigure, figure_key, plotly_for
from descent_book.pages.meta import plain

_STYLE = (  # the colours are those that the theme gives to the book's own style
    ":root { --pst-color-border: #ccc; --pst-color-text-muted: #555; --pst-color-link: #14527a }"
    "body { margin: 0; padding: 0.5rem; font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff }"
)


def frame(figure: PlotlyFigure) -> nodes.figure | None:
    """The figure with a caption in which an interactive one stands."""
    node = figure.parent
    while node is not None and not isinstance(node, nodes.figure):
        node = node.parent
    return node


def name_of(figure: PlotlyFigure) -> str:
    """The label of the figure that it stands in, or the key of its data."""
    node = frame(figure)
    names = [*node["names"], *node["ids"]] if node is not None else []
    return str(nodes.make_id(names[0])) if names else figure_key(figure)


def link_alone(app: Sphinx, doctree: nodes.document) -> None:
    """Put a link to its own page below each interactive figure."""
    up = "../" * app.env.docname.count("/")
    for figure in list(doctree.findall(PlotlyFigure)):
        figure["name"] = name_of(figure)
        link = nodes.reference("", "Open alone", refuri=f"{up}{FIGURES}/{figure['name']}.html", internal=True)
        line = nodes.paragraph("", "", link, classes=["open-alone", "only-on-screen"])
        figure.parent.insert(figure.parent.index(figure) + 1, line)


def lone_page(figure: PlotlyFigure, title: str, plotly: str) -> str:
    """The page's HTML."""
    key = figure_key(figure)
    scripts = [f"../_static/{plotly}", f"{key}.js", "../_static/interactive.js"]
    lines = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        '<link rel="icon" href="../_static/favicon.svg"><link rel="stylesheet" href="../_static/book.css">',
        f"<style>{_STYLE}</style>",
        *(f'<script defer src="{script}"></script>' for script in scripts),
        "</head><body>",
        f'<div class="interactive" role="figure" aria-label="{escape(figure["alt"])}" data-figure="{key}" '
        f'data-height="{figure["height"]}"></div></body></html>',
    ]
    return "\n".join(lines) + "\n"


def write_alone(app: Sphinx, page: str, template: str, context: Any, doctree: nodes.document | None) -> None:
    """Write the pages of a page's interactive figures."""
    for figure in doctree.findall(PlotlyFigure) if doctree is not None else ():
        around = frame(figure)
        caption = next(iter(around.findall(nodes.caption)), None) if around is not None else None
        title = plain(caption).partition(". ")[0] if caption is not None else context.get("title", "")
        file = Path(app.outdir) / FIGURES / f"{figure['name']}.html"
        file.parent.mkdir(exist_ok=True)
        file.write_text(lone_page(figure, title, plotly_for(app, [figure])), encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Register this module with Sphinx."""
    app.connect("doctree-read", link_alone, priority=660)
    app.connect("html-page-context", write_alone)
