"""Links that pages cannot write themselves: claim and cell, scorecard and chapter, figure and the file that draws it.

A Sphinx extension; it reads `scorecard.json`, see `descent_book.pages.claims`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from descent_book.pages.claims import cell_label, link_to, note_target, read_chapters, row_label

_LOG = logging.getLogger(__name__)
_SAVED = re.compile(r'save_figure\(\w+, settings\.figures_dir, "([\w-]+)"\)')


def _code_cells(doctree: nodes.document) -> Iterator[nodes.container]:
    yield from (node for node in doctree.findall(nodes.container) if node.get("nb_element") == "cell_code")


def _source(cell: nodes.container) -> str:
    return next((block.astext() for block in cell.findall(nodes.literal_block)), "")


def _names(cell: nodes.container) -> list[nodes.literal]:
    """The pieces of code in the words and tables of a cell's outputs."""
    return [node for node in cell.findall(nodes.literal) if not isinstance(node.parent, nodes.literal_block)]


def judging(cells: list[nodes.container], name: str) -> nodes.container | None:
    """The cell that judges a claim: the first whose code has its name in quotes, else whose output names it."""
    quoted = [cell for cell in cells if f'"{name}"' in _source(cell)]
    shown = [cell for cell in cells if any(node.astext() == name for node in _names(cell))]
    return next(iter([*quoted, *shown]), None)


def link_claims(app: Sphinx, doctree: nodes.document) -> None:
    """Make each claim's cell a target, and its name in the chapter's tables a link to its row of the scorecard."""
    chapter = app.env.docname
    claims = read_chapters(app.env).get(chapter, {}).get("claims", []) if (cells := list(_code_cells(doctree))) else []
    for claim in claims:
        identity, name = claim["id"], claim["id"].partition(".")[2]
        cell = judging(cells, name)
        if cell is None:
            _LOG.warning(f"no cell of {chapter} judges {name}", location=chapter, type="descent", subtype="claim")
            continue
        anchor = nodes.make_id(f"claim-{name}")
        cell["ids"].append(anchor)
        note_target(app.env, cell_label(identity), chapter, anchor)
        for literal in [node for each in cells for node in _names(each) if node.astext() == name]:
            literal.replace_self(link_to(row_label(identity), chapter, literal.deepcopy()))


def name_sources(app: Sphinx, doctree: nodes.document) -> None:
    """Below each figure of a chapter: the file that draws it, and what it is called in `figures_dir`."""
    address = app.config.html_theme_options.get("repository_url", "")
    branch = app.config.html_theme_options.get("repository_branch", "main")
    file = f"notebooks/{app.env.docname}.ipynb"
    for cell in _code_cells(doctree):
        saved = _SAVED.search(_source(cell))
        for figure in cell.findall(nodes.figure):
            text = nodes.paragraph("", "Drawn by ", classes=["drawn-by"])
            text += nodes.reference("", file, refuri=f"{address}/blob/{branch}/{file}", internal=False)
            if saved:
                kept = nodes.literal(text=f"{saved[1]}.png")
                text += [nodes.Text("; "), nodes.literal(text="figures_dir"), nodes.Text(" keeps it as "), kept]
            figure += nodes.legend("", text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("doctree-read", link_claims, priority=650)
    app.connect("doctree-read", name_sources, priority=650)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
