"""Static figures open at full size at a click and say which file draws them; folded cells in a row are one fold."""

from __future__ import annotations

import re
from html import escape
from itertools import groupby, pairwise
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from descent_book.pages.claims import cell_source, code_cells
from descent_book.pages.figures import PlotlyFigure

_SAVED = re.compile(r'save_figure\(\w+, settings\.figures_dir, "([\w-]+)"\)')


class Still(nodes.image):  # type: ignore[misc]
    """A picture that links to its file. Attributes, beside those of an image: `source`, `kept` as HTML attributes."""


def mark_sources(app: Sphinx, doctree: nodes.document) -> None:
    """Let each picture of a chapter's outputs open at full size, and note the notebook and the name it is kept by."""
    file = f"notebooks/{app.env.docname}.ipynb"
    for cell in code_cells(doctree):
        saved = _SAVED.search(cell_source(cell))
        kept = f' data-kept-as="{saved[1]}.png"' if saved else ""
        marks = f'data-source="{escape(file)}"{kept}'
        for node in list(cell.findall(PlotlyFigure)):
            node["marks"] = marks
        for image in [node for node in cell.findall(nodes.image) if not isinstance(node.parent, PlotlyFigure)]:
            still = Still("", **image.attributes)
            still["marks"] = marks
            image.replace_self(still)


def _shows_nothing(node: nodes.Node) -> bool:
    """Whether a node is a cell that shows its folded code alone."""
    if not isinstance(node, nodes.container) or node.get("hide_mode") != "input":
        return False
    return not any(part.astext().strip() or any(part.findall(nodes.image)) for part in node.children[1:])


def join_folds(app: Sphinx, doctree: nodes.document) -> None:
    """Make one fold, by the name of its first cell, of cells that follow one another and show folded code alone.

    The parameters of a run, which the runner puts below those of the chapter, are folded with these.
    """
    for section in list(doctree.findall(nodes.section)):
        for earlier, cell in pairwise(section.children):
            if "tag_injected-parameters" in cell.get("classes", ()) and _shows_nothing(earlier):
                cell.attributes |= {key: earlier[key] for key in ("hide_mode", "prompt_show", "prompt_hide")}
        for alone, run in groupby(section.children[:], _shows_nothing):
            cells = list(run)
            if alone and len(cells) > 1:
                named = (("collapsed", cells[0]["prompt_show"]), ("expanded", "Hide these cells"))
                words = "".join(f'<p class="{state} admonition-title">{escape(text)}</p>' for state, text in named)
                opened = '<div class="cell container"><details class="admonition hide above-input">'
                opened += f"<summary>{words}</summary>"
                start, end = (nodes.raw("", text, format="html") for text in (opened, "</details></div>"))
                section.insert(section.index(cells[0]), start)
                section.insert(section.index(cells[-1]) + 1, end)
                for cell in cells:
                    del cell["hide_mode"]


def _visit_still(writer: Any, node: Still) -> None:
    start = len(writer.body)
    writer.visit_image(node)  # which turns the address into that of the file beside the pages
    writer.body.insert(start, f'<a class="full-size" href="{node["uri"]}" title="Open at full size" {node["marks"]}>')


def _depart_still(writer: Any, node: Still) -> None:
    writer.depart_image(node)
    writer.body.append("</a>")


def setup(app: Sphinx) -> None:
    """Register this module with Sphinx."""
    app.add_node(Still, html=(_visit_still, _depart_still))
    app.connect("doctree-read", join_folds, priority=665)
    app.connect("doctree-read", mark_sources, priority=655)
