"""How the book's pages are made: figures work without a network, and no output is lost in silence.

It stands on top of myst-nb. Sphinx runs with warnings as errors, so every `_LOG.warning` here fails the build.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from descent_book.pages.scripts import ASSETS, PART, WHOLE, mathjax, part_of_plotly, suffices, whole_plotly

PLOTLY = "application/vnd.plotly.v1+json"
FIGURES = "_figures"  # the folder of the figures' data, beside the pages
PLAIN_MARK = re.compile(r'<span class="[npw]">([^<]*)</span>')
ICON_SCRIPT = re.compile(r'<script[^>]*src="[^"]*/fontawesome\.js[^"]*"></script>')
_LOG = logging.getLogger(__name__)


class PlotlyFigure(nodes.General, nodes.Element):  # type: ignore[misc]
    """An interactive figure; its child, where there is one, is the static picture shown until it is drawn.

    Attributes: `figure`, the JSON for `Plotly.newPlot`; `alt`, the description; `height`, in pixels. The JSON goes into
    a script beside the pages, which keeps them light and, unlike a request for data, loads from a `file:` page too.
    """


class PlotlyRenderer:
    """Renders plotly's MIME type, which myst-nb would skip; registered as an entry point in pyproject.toml."""

    mime_priority_overrides: ClassVar = [(builder, PLOTLY, 1) for builder in ("html", "dirhtml", "singlehtml")]

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[nodes.Element] | None:
        """A `PlotlyFigure` for a plotly output, None (another renderer's turn) for anything else."""
        if data.mime_type != PLOTLY or inline:
            return None
        content = json.loads(data.content) if isinstance(data.content, str) else data.content
        config = {"responsive": True, "displaylogo": False, **content.get("config", {})}
        config.pop("plotlyServerURL", None)  # an address of another host, which nothing here needs
        figure = {"data": content.get("data", []), "layout": content.get("layout", {}), "config": config}
        figure["frames"] = content.get("frames", [])  # of an animation
        text = json.dumps(figure, separators=(",", ":"))
        return [PlotlyFigure("", figure=text, alt="", height=figure["layout"].get("height", 525))]


def figure_key(figure: PlotlyFigure) -> str:
    """The name of the script that holds a figure's data."""
    return data_key(figure["figure"])


def data_key(text: str) -> str:
    """The name of the script that holds a figure's data, from the data as JSON."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_data(writer: Any, group: str, text: str) -> str:
    """Write a figure's data, as JSON, into a script that puts it into `window[group]`; the tag that loads it."""
    key = data_key(text)
    file = Path(writer.builder.outdir) / FIGURES / f"{key}.js"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'(window.{group} ??= {{}})["{key}"] = {text};\n', encoding="utf-8")
    up = "../" * writer.builder.current_docname.count("/")
    return f'<script defer src="{up}{FIGURES}/{key}.js"></script>'


def _visit_plotly(writer: Any, node: PlotlyFigure) -> None:
    writer.body.append(
        f'<div class="interactive" role="figure" aria-label="{escape(node["alt"])}" data-height="{node["height"]}" '
        f'data-figure="{figure_key(node)}" {node.get("marks", "")}>{write_data(writer, "figures", node["figure"])}'
    )


def _depart_plotly(writer: Any, node: PlotlyFigure) -> None:
    writer.body.append("</div>")


def complete_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Describe each figure by its output's text, and give an interactive one the PNG of its output as still picture."""
    for bundle in [node for node in doctree.findall(nodes.container) if node.get("nb_element") == "mime_bundle"]:
        forms = {container["mime_type"]: container for container in bundle.children}
        text = forms["text/plain"].astext().strip() if "text/plain" in forms else ""
        alt = "" if text.startswith(("<", "Figure(")) else text  # the repr of an object says nothing
        for image in bundle.findall(nodes.image):
            image["alt"] = image.get("alt") or alt
        for figure in bundle.findall(PlotlyFigure):
            said = [image["alt"] for image in bundle.findall(nodes.image)]
            figure["alt"] = said[0] if said else alt  # that of its still picture, which a cell's metadata may give
            figure.extend(image.deepcopy() for image in forms.get("image/png", nodes.container()).findall(nodes.image))


def _faults(doctree: nodes.document) -> Iterator[tuple[str, nodes.Node]]:
    """Everything that would reach a reader as a page with something missing, as (fault, node)."""
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") == "cell_code" and not cell.get("exec_count"):
            yield f"code cell {cell['cell_index']} was not executed", cell
    for block in doctree.findall(nodes.literal_block):
        if "traceback" in block["classes"]:
            yield f"a cell raised: {block.astext().strip().splitlines()[-1]}", block
    for figure in doctree.findall(PlotlyFigure):
        if not figure["alt"]:
            yield "an interactive figure has no description: put one in its output as text/plain", figure
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            yield f"image {Path(image['uri']).name} has no alt text: put it in its output as text/plain", image


def check_outputs(app: Sphinx, doctree: nodes.document) -> None:
    """Warn of cells not executed, errors kept in outputs, and figures without a description."""
    for fault, node in _faults(doctree):
        _LOG.warning(fault, location=node if node.line else app.env.docname, type="descent", subtype="output")


def copy_assets(app: Sphinx) -> None:
    """Collect scripts of installed packages and this package's own assets in a folder that Sphinx serves as static.

    Raises:
        DamagedDataError: what was fetched of plotly.js is not the published file.
    """
    folder = Path(app.doctreedir) / "assets"
    folder.mkdir(parents=True, exist_ok=True)
    for source in (mathjax("tex-chtml.js"), whole_plotly(), *ASSETS.iterdir()):
        shutil.copyfile(source, folder / source.name)
    fonts = "output/chtml/fonts/woff-v2"  # where the script looks for them, from where it lies itself
    shutil.copytree(mathjax(fonts), folder / fonts, dirs_exist_ok=True)
    (folder / PART).unlink(missing_ok=True)
    if part := part_of_plotly():
        (folder / PART).write_bytes(part)
    app.config.html_static_path.append(str(folder))
    app.config.html_favicon = app.config.html_favicon or str(ASSETS / "favicon.svg")


def _kinds(figure: PlotlyFigure) -> set[str]:
    """The kinds of traces of a figure and of the steps of its animation."""
    content = json.loads(figure["figure"])
    steps = [trace for frame in content["frames"] for trace in frame.get("data", []) if "type" in trace]
    return {trace.get("type", "scatter") for trace in [*content["data"], *steps]}


def plotly_for(app: Sphinx, figures: Iterable[PlotlyFigure]) -> str:
    """The file of plotly.js that draws these figures: the part of it where that was fetched and is enough."""
    fetched = (Path(app.doctreedir) / "assets" / PART).is_file()
    return PART if fetched and suffices(set().union(*map(_kinds, figures))) else WHOLE


def add_plotly(app: Sphinx, page: str, template: str, context: Any, doctree: nodes.document | None) -> None:
    """Load plotly.js only on pages with an interactive figure: the part of it that draws them, where it was fetched."""
    figures = list(doctree.findall(PlotlyFigure)) if doctree is not None else []
    if figures:
        for number, script in enumerate(
            (plotly_for(app, figures), "interactive.js")
        ):  # deferred: the text is there first
            app.add_js_file(script, priority=800 + number, loading_method="defer")


def drop_what_no_page_needs(app: Sphinx, failure: Exception | None) -> None:
    """Leave out an unused plotly.js, and the script of the theme's icons where its style has them as a font."""
    folder = Path(app.outdir)
    style = folder / "_static/styles/pydata-sphinx-theme.css"
    if failure or not style.is_file():
        return
    unused = {folder / "_static" / name for name in (WHOLE, PART)}
    icons = "Font Awesome" in style.read_text(encoding="utf-8")
    if icons:
        unused |= set((folder / "_static/scripts").glob("fontawesome.js*"))
    for page in folder.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        unused -= {folder / "_static" / name for name in (WHOLE, PART) if f"_static/{name}" in text}
        if icons and ICON_SCRIPT.search(text):
            page.write_text(ICON_SCRIPT.sub("", text), encoding="utf-8")
    for file in unused:
        file.unlink(missing_ok=True)


def lighten_code(app: Sphinx, page: str, template: str, context: Any, doctree: nodes.document | None) -> None:
    """Leave out the marks of names, punctuation and spaces in code, which look the same without them.

    These marks are a third of a chapter's page.
    """
    context["body"] = PLAIN_MARK.sub(r"\1", context.get("body", ""))


def _is_thebe(asset: Any) -> bool:
    return "thebe" in f"{getattr(asset, 'filename', asset)} {getattr(asset, 'attributes', '')}".lower()


def drop_thebe(app: Sphinx, page: str, template: str, context: Any, doctree: nodes.document | None) -> None:
    """Leave out sphinx-thebe, which Jupyter Book always enables.

    Its script names another host, and is declared twice, an error in every page's console.
    """
    for kind in ("script_files", "css_files"):
        context[kind] = [asset for asset in context.get(kind, []) if not _is_thebe(asset)]


def setup(app: Sphinx) -> None:
    """Register this module with Sphinx."""
    app.add_node(PlotlyFigure, html=(_visit_plotly, _depart_plotly))
    app.add_css_file("book.css")
    app.add_js_file("sortable.js")
    app.connect("builder-inited", copy_assets)
    app.connect("doctree-read", complete_figures, priority=600)
    app.connect("doctree-read", check_outputs, priority=700)
    app.connect("html-page-context", add_plotly)
    app.connect("html-page-context", lighten_code)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("build-finished", drop_what_no_page_needs)
