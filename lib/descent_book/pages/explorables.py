"""Figures that a reader moves: the page computes them in the browser, from data in the cell's output.

An output of MIME type `EXPLORABLE` holds `kind`, which names one of the functions of `assets/explorable.js`, and that
function's data. Beside it stands the still picture, which a reader without scripts and the printed book see. The module
also moves the figure of a cell tagged `opening` to the opening of its page.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from descent_book.pages.figures import PlotlyFigure, data_key, write_data
from descent_book.pages.scripts import PART, WHOLE

EXPLORABLE = "application/vnd.descent.explorable+json"
# the functions of assets/explorable.js
KINDS = ("threshold", "saddle", "superposition", "grokking", "interpolation", "maze", "steering")
BEFORE_THE_PICTURE = 2  # paragraphs of an opening that stand before its picture
_LOG = logging.getLogger(__name__)


class Explorable(nodes.General, nodes.Element):  # type: ignore[misc]
    """A figure that the page computes; its child is the still picture, shown until the script has drawn.

    Attributes: `data`, the JSON text that the script reads; `alt`, the description.
    """


class ExplorableRenderer:
    """Renders the MIME type of explorables, which myst-nb would skip; an entry point in pyproject.toml."""

    mime_priority_overrides: ClassVar = [(builder, EXPLORABLE, 1) for builder in ("html", "dirhtml", "singlehtml")]

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[nodes.Element] | None:
        """An `Explorable` for such an output, None (another renderer's turn) for anything else."""
        if data.mime_type != EXPLORABLE or inline:
            return None
        content = json.loads(data.content) if isinstance(data.content, str) else data.content
        if content.get("kind") not in KINDS:
            _LOG.warning(f"explorable of kind {content.get('kind')!r}: expected one of {', '.join(KINDS)}")
        return [Explorable("", data=json.dumps(content, separators=(",", ":")), alt="")]


def _visit(writer: Any, node: Explorable) -> None:
    writer.body.append(
        f'<div class="explorable" role="group" aria-label="{escape(node["alt"])}" '
        f'data-explorable="{data_key(node["data"])}">{write_data(writer, "explorables", node["data"])}'
    )


def _depart(writer: Any, node: Explorable) -> None:
    writer.body.append("</div>")


def add_still_pictures(app: Sphinx, doctree: nodes.document) -> None:
    """Give each explorable the picture of its output, and that picture's description; warn where there is none."""
    for bundle in [node for node in doctree.findall(nodes.container) if node.get("nb_element") == "mime_bundle"]:
        images = [image for image in bundle.findall(nodes.image) if image.get("alt")]
        for explorable in bundle.findall(Explorable):
            if not images:
                text = "an explorable has no picture with a description beside it"
                _LOG.warning(text, location=app.env.docname, type="descent", subtype="output")
                continue
            explorable["alt"] = images[0]["alt"]
            explorable.append(images[0].deepcopy())


def move_to_the_opening(app: Sphinx, doctree: nodes.document) -> None:
    """Move the figure of the cell tagged `opening` up to the opening of the page, after its first paragraphs."""
    cells = [cell for cell in doctree.findall(nodes.container) if "tag_opening" in cell["classes"]]
    figures = [figure for cell in cells for figure in cell.findall(nodes.figure)]
    section = next(iter(doctree.findall(nodes.section)), None)
    if section is None or not figures:
        return
    places = [index for index, node in enumerate(section.children) if isinstance(node, nodes.paragraph)]
    figures[0].parent.remove(figures[0])
    section.insert(places[:BEFORE_THE_PICTURE][-1] + 1 if places else len(section), figures[0])


def add_scripts(app: Sphinx, page: str, template: str, context: Any, doctree: nodes.document | None) -> None:
    """Load plotly.js, where no other figure of the page does, and what computes, on pages with an explorable."""
    if doctree is None or not any(doctree.findall(Explorable)):
        return
    part = PART if (Path(app.doctreedir) / "assets" / PART).is_file() else WHOLE
    plotly = [] if any(doctree.findall(PlotlyFigure)) else [part]
    for number, script in enumerate((*plotly, "explorable.js")):
        app.add_js_file(script, priority=800 + number, loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register this module with Sphinx."""
    app.add_node(Explorable, html=(_visit, _depart))
    app.add_css_file("explorable.css")
    app.connect("doctree-read", add_still_pictures, priority=650)
    app.connect("doctree-read", move_to_the_opening, priority=660)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
