"""What the pages say of claims, all from `scorecard.json`: single numbers, run times, and links.

The file lies in the book's source folder, where the build puts it. The links are those that pages cannot write
themselves: between a claim and the cell that judges it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from descent.repro.claims import JudgedClaim
from descent.repro.tables import estimate_text, interval_text, nulls_text, number_text
from descent_book.run.scorecard import EditionScorecard, ScoredChapter

_LOG = logging.getLogger(__name__)
_VERSIONS = {"python": "Python", "torch": "torch", "numpy": "numpy", "scipy": "scipy", "scikit-learn": "scikit-learn"}
# What `{claim}` can say of a claim, after a colon: {claim}`gradient_svd.count_at_0.1:verdict`
FIELDS: dict[str, Callable[[JudgedClaim], object]] = {
    "measured": lambda judged: estimate_text(judged.measured),
    "value": lambda judged: number_text(judged.measured.value) if judged.measured else "-",
    "percent": lambda judged: _percent(judged.measured.value) if judged.measured else "-",
    "units": lambda judged: judged.measured.units if judged.measured else "-",
    "null": lambda judged: nulls_text(judged.nulls),
    "accepted": lambda judged: interval_text(judged.claim.region(judged.preset)),
    "from": lambda judged: judged.claim.region_from(judged.preset),
    "source": lambda judged: judged.claim.source,
    "sentence": lambda judged: judged.claim.sentence,
    "verdict": lambda judged: judged.verdict,
    "reason": lambda judged: judged.reason,
    "preset": lambda judged: judged.preset,
}
Cell = list[nodes.Node]


def _percent(share: float) -> str:
    """A share in per cent, with a decimal where it is small."""
    return f"{100 * share:.{1 if 0 < abs(share) < 0.095 else 0}f} %"


def read_chapters(env: BuildEnvironment) -> dict[str, ScoredChapter]:
    """Chapter -> its claims, seconds and provenance; {} with a warning, which fails the build, where there is none."""
    path = Path(env.srcdir) / "scorecard.json"
    env.note_dependency(str(path))
    try:
        return EditionScorecard.read(path).chapters
    except FileNotFoundError:
        _LOG.warning("scorecard.json is not in the book's source folder", location=env.docname, type="descent")
        return {}


def duration(seconds: float) -> str:
    """`54 s`, `12 min 30 s`, `2 h 5 min`."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


def _presets(chapter: ScoredChapter) -> list[str]:
    return sorted({claim.preset for claim in chapter.claims if claim.preset})


def cell_label(identity: str) -> str:
    """The label of the cell that judges a claim."""
    return f"cell of {identity}".lower()


def row_label(identity: str) -> str:
    """The label of a claim's row of the scorecard."""
    return f"row of {identity}".lower()


def registration_label(identity: str) -> str:
    """The label of what is registered of a claim."""
    return f"registration of {identity}".lower()


def note_target(env: BuildEnvironment, label: str, page: str, anchor: str) -> None:
    """Let `link_to` find an anchor of a page by a label."""
    domain: Any = env.get_domain("std")
    domain.note_hyperlink_target(label, page, anchor, label)


def link_to(label: str, page: str, *content: nodes.Node) -> addnodes.pending_xref:
    """A link from a page to a label of any page; Sphinx warns where no page has the label."""
    about = {"refdomain": "std", "reftype": "ref", "reftarget": label, "refexplicit": True, "refwarn": True}
    return addnodes.pending_xref("", *content, **about, refdoc=page)


class ClaimRole(SphinxRole):
    """One figure of one claim: {claim}`id` is `mean ± spread`, {claim}`id:field` one of FIELDS."""

    def run(self) -> tuple[list[nodes.Node], list[Any]]:
        """The text; an unknown id or field is a warning, which fails the build."""
        name, _, field = self.text.partition(":")
        field = field or "measured"
        known = {claim.id: claim for chapter in read_chapters(self.env).values() for claim in chapter.claims}
        for what, value, choices in (("claim", name, known), ("field", field, FIELDS)):
            if value not in choices:
                message = f"{what} {value!r}: expected one of {', '.join(sorted(choices)) or 'none'}"
                _LOG.warning(message, location=self.get_location(), type="descent", subtype="claim")
                return [nodes.inline(text=f"[{self.text}]")], []
        text = str(FIELDS[field](known[name]))
        return [nodes.inline(text=text, classes=["claim"] if len(text) < 30 else [])], []


class Table(SphinxDirective):
    """What the book's directives share: they build tables, cell by cell."""

    def text(self, value: object, detail: str = "") -> Cell:
        """A paragraph, with a smaller one below it where there is a detail."""
        small = [nodes.paragraph(text=detail, classes=["detail"])] if detail else []
        return [nodes.paragraph(text=str(value)), *small]

    def markdown(self, *lines: str) -> Cell:
        """Lines of MyST, so that a sentence may hold code, mathematics and citations."""
        holder = nodes.container()
        self.state.nested_parse(StringList(list(lines), self.env.docname), self.content_offset, holder)
        return list(holder.children)

    def row(self, cells: Sequence[Cell]) -> nodes.row:
        """One row of a table."""
        return nodes.row("", *(nodes.entry("", *cell) for cell in cells))

    def table(self, title: Cell, widths: dict[str, int], rows: Sequence[nodes.row]) -> nodes.table:
        """A table with a caption; `widths` maps each heading to its share of the width. Its class is the directive."""
        group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in widths.values()), cols=len(widths))
        group += nodes.thead("", self.row([self.text(name) for name in widths]))
        group += nodes.tbody("", *rows)
        caption = nodes.title("", "", *title[0].children)
        return nodes.table("", caption, group, classes=["wide", "sortable", "colwidths-given", self.name])


class RuntimesDirective(Table):
    """{runtimes}: what each chapter of this edition took, on which machine and with which versions."""

    widths: ClassVar = {"Chapter": 28, "Preset": 10, "Run time": 14, "Machine": 22, "Versions": 26}

    def run(self) -> list[nodes.Node]:
        """The table."""
        rows = [self.chapter(name, chapter) for name, chapter in read_chapters(self.env).items()]
        return [self.table(self.text("Run times of this edition"), self.widths, rows)] if rows else []

    def chapter(self, name: str, chapter: ScoredChapter) -> nodes.row:
        """One chapter's row."""
        origin = chapter.provenance
        machine = f"{origin['machine']}, {origin['cpu_capability']}"
        threads = f"{origin['threads']} thread" + ("s" if origin["threads"] != 1 else "")
        versions = ", ".join(f"{label} {origin[key]}" for key, label in _VERSIONS.items() if origin.get(key))
        return self.row(
            [
                self.markdown(f"{{doc}}`{name}`"),
                self.text(", ".join(_presets(chapter))),
                self.text(duration(chapter.seconds)),
                self.text(machine, threads),
                self.text(versions, f"commit {origin['commit']}" if origin.get("commit") else ""),
            ]
        )


def code_cells(doctree: nodes.document) -> Iterator[nodes.container]:
    """The code cells of a chapter's page."""
    yield from (node for node in doctree.findall(nodes.container) if node.get("nb_element") == "cell_code")


def cell_source(cell: nodes.container) -> str:
    """The code of a cell."""
    return next((block.astext() for block in cell.findall(nodes.literal_block)), "")


def _names(cell: nodes.container) -> list[nodes.literal]:
    """The pieces of code in the words and tables of a cell's outputs."""
    return [node for node in cell.findall(nodes.literal) if not isinstance(node.parent, nodes.literal_block)]


def judging(cells: list[nodes.container], name: str) -> nodes.container | None:
    """The cell that judges a claim: the first that calls `judge` with its name, has it in quotes, or names it below."""
    quoted = [cell for cell in cells if re.search(rf'judge\(\s*"{re.escape(name)}"', cell_source(cell))]
    quoted = quoted or [cell for cell in cells if f'"{name}"' in cell_source(cell)]
    shown = [cell for cell in cells if any(node.astext() == name for node in _names(cell))]
    return next(iter([*quoted, *shown]), None)


def link_claims(app: Sphinx, doctree: nodes.document) -> None:
    """Make each claim's cell a target, and its name in the chapter's tables a link to its row of the scorecard."""
    chapter = app.env.docname
    cells = list(code_cells(doctree))
    result = read_chapters(app.env).get(chapter) if cells else None
    for claim in result.claims if result else []:
        name = claim.claim.name
        cell = judging(cells, name)
        if cell is None and claim.measured is None:
            continue
        if cell is None:
            _LOG.warning(f"no cell of {chapter} judges {name}", location=chapter, type="descent", subtype="claim")
            continue
        anchor = nodes.make_id(f"claim-{name}")
        cell["ids"].append(anchor)
        note_target(app.env, cell_label(claim.id), chapter, anchor)
        for literal in [node for each in cells for node in _names(each) if node.astext() == name]:
            literal.replace_self(link_to(row_label(claim.id), chapter, literal.deepcopy()))
    if result and result.since:
        doctree.next_node(nodes.section).insert(1, nodes.note("", _since(len(result.since), app.env)))


def _since(count: int, env: BuildEnvironment) -> nodes.paragraph:
    """Says that a page's own tables are of an edition that was judged by other rules."""
    said = f"{count} verdicts that this page prints were judged by earlier rules, which looked at a mean alone. "
    link = addnodes.pending_xref("", nodes.inline(text="scorecard"), refdomain="std", reftype="doc",
                                 reftarget="scorecard", refexplicit=True, refwarn=True, refdoc=env.docname)  # fmt: skip
    return nodes.paragraph("", "", nodes.Text(f"{said}The verdicts that hold are on the "), link, nodes.Text("."))


def setup(app: Sphinx) -> None:
    """Register this module with Sphinx."""
    app.add_role("claim", ClaimRole())
    app.add_directive("runtimes", RuntimesDirective)
    app.connect("doctree-read", link_claims, priority=650)
