"""The scorecard page: totals by kind, filters, a card for each claim with its row of the forest plot; registrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, get_args

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx

from descent.repro.claims import JudgedClaim, Kind, Verdict
from descent.repro.tables import estimate_text
from descent_book.pages.claims import (
    FIELDS,
    Table,
    cell_label,
    link_to,
    note_target,
    read_chapters,
    registration_label,
    row_label,
)
from descent_book.pages.forest import strip
from descent_book.run.scorecard import KINDS, totals


class ScorecardDirective(Table):
    """{scorecard}: totals by kind, which `:totals:` gives alone, and a card for each claim, the worst verdict first."""

    option_spec: ClassVar = {"totals": directives.flag}

    def run(self) -> list[nodes.Node]:
        """The totals, the filters, and the cards."""
        judged = [claim for chapter in read_chapters(self.env).values() for claim in chapter.claims]
        lines = nodes.bullet_list("", *(nodes.list_item("", *self.text(line)) for line in totals(judged)))
        if "totals" in self.options or not judged:
            return [lines]
        order = {verdict: number for number, verdict in enumerate(get_args(Verdict))}
        worst_first = sorted(judged, key=lambda claim: order[claim.verdict])
        cards = nodes.container("", *(part for claim in worst_first for part in self.card(claim)), classes=["scores"])
        return [lines, html(self.filters(worst_first)), cards]

    def filters(self, judged: Sequence[JudgedClaim]) -> str:
        """Three choices that a script brings to life; without scripts they stay hidden, and all cards are shown."""
        present = {
            "chapter": dict.fromkeys(claim.id.partition(".")[0] for claim in judged),
            "kind": [kind for kind in get_args(Kind) if any(claim.claim.kind == kind for claim in judged)],
            "verdict": dict.fromkeys(claim.verdict for claim in judged),
        }
        chosen = "".join(
            f'<label>{what} <select data-filter="{what}"><option value="">all</option>'
            + "".join(f'<option value="{nodes.make_id(f"{what}-{one}")}">{one}</option>' for one in choices)
            + "</select></label>"
            for what, choices in present.items()
        )
        return f'<form class="score-filters" hidden>{chosen}<output aria-live="polite"></output></form>'

    def card(self, judged: JudgedClaim) -> list[nodes.Node]:
        """One claim: its sentence and verdict, a row of the forest plot, what was measured, and why this verdict.

        The boxes are plain HTML, without the classes of docutils, as there are three to each of many claims.
        """
        claim, chapter = judged.claim, judged.id.partition(".")[0]
        cite = f" {{cite:p}}`{claim.cite}`" if claim.cite else ""
        name: nodes.Node = nodes.literal(text=judged.id)
        if judged.measured is not None:
            name = link_to(cell_label(judged.id), self.env.docname, name)
        head = nodes.paragraph("", "", name, nodes.Text(f", {KINDS[claim.kind][0]}; "), classes=["detail"])
        often = {0: "registration", 1: "registration, amended"}
        told = often.get(len(claim.amended), f"registration, amended {len(claim.amended)} times")
        head += link_to(registration_label(judged.id), self.env.docname, nodes.inline(text=told))
        verdict = nodes.paragraph(text=judged.verdict, classes=["verdict"])
        numbers = f"measured {FIELDS['measured'](judged)}; accepted {FIELDS['accepted'](judged)}"
        numbers += "".join(f"; {name}: {estimate_text(null)}" for name, null in judged.nulls.items())
        kinds = [
            f"{what}-{one}" for what, one in (("chapter", chapter), ("kind", claim.kind), ("verdict", judged.verdict))
        ]
        anchor = nodes.make_id(f"score-{judged.id}")
        note_target(self.env, row_label(judged.id), self.env.docname, anchor)
        classes = " ".join(map(nodes.make_id, kinds))
        return [html(f'<div class="score {classes}" id="{anchor}"><div>'), *self.markdown(claim.sentence + cite), head,
                html("</div><div>"), verdict, html(strip(judged)), *self.text("", numbers)[1:],
                *self.text("", judged.reason)[1:], html("</div></div>")]  # fmt: skip


class RegistrationsDirective(Table):
    """{registrations}: what is registered of every claim and how it came to be so, chapter by chapter."""

    def run(self) -> list[nodes.Node]:
        """Links to the files, and a section for each chapter."""
        chapters = read_chapters(self.env)
        judged = [claim for chapter in chapters.values() for claim in chapter.claims]
        if not judged:
            return []
        parts: list[nodes.Node] = [self.files(judged)]
        for name, chapter in chapters.items():
            claims = [part for each in chapter.claims for part in self.registration(each)]
            ids = [nodes.make_id(f"registrations of {name}")]
            parts.append(nodes.section("", nodes.title(text=name), *claims, ids=ids, names=ids))
        return parts

    def files(self, judged: Sequence[JudgedClaim]) -> nodes.paragraph:
        """A link to the registration of each chapter, with its history."""
        theme = self.config.html_theme_options
        root, branch = theme.get("repository_url", ""), theme.get("repository_branch", "main")
        line = nodes.paragraph("", "As files: ", classes=["detail"])
        for number, chapter in enumerate(dict.fromkeys(claim.id.partition(".")[0] for claim in judged)):
            uri = f"{root}/blob/{branch}/notebooks/claims/{chapter}.yml"
            line += [nodes.Text(", " if number else ""), nodes.reference("", chapter, refuri=uri)]
        line += nodes.Text(".")
        return line

    def registration(self, judged: JudgedClaim) -> list[nodes.Node]:
        """One claim: its name, which leads to its card, what is registered of it, and how it came to be so."""
        claim = judged.claim
        units = f"{judged.measured.units} measured" if judged.measured else "not measured in this edition"
        statistic = "" if "resampled" in claim.unit else f"; {claim.statistic}"  # else one that the sentence names
        rows = [
            ("The source", claim.source),
            ("Accepted because of", FIELDS["from"](judged)),
            ("Unit of replication", f"{claim.unit}; {units}{statistic}"),
            ("Null", claim.null or "none: a check"),
            ("Smallest effect that matters", claim.smallest_effect),
            *((f"Amended {each.date}", each.reason) for each in claim.amended),
        ]
        items = [
            nodes.definition_list_item("", nodes.term(text=term), nodes.definition("", *self.markdown(str(text))))
            for term, text in rows
            if text
        ]
        anchor = nodes.make_id(f"registration of {judged.id}")
        note_target(self.env, registration_label(judged.id), self.env.docname, anchor)
        name = link_to(row_label(judged.id), self.env.docname, nodes.literal(text=judged.id))
        head = nodes.paragraph("", "", name, nodes.Text(f", {KINDS[claim.kind][0]}, {judged.verdict}"))
        opened = f'<div class="registration" id="{anchor}">'
        return [html(opened), head, *self.markdown(claim.sentence), nodes.definition_list("", *items), html("</div>")]


def html(text: str) -> nodes.raw:
    """A piece of HTML between the nodes of a page."""
    return nodes.raw("", text, format="html")


def shorten_links(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Leave out what a hundred cards repeat: each citation's whole entry as the title of its link, and a wrapper."""
    for link in list(doctree.findall(nodes.reference)) if page in ("scorecard", "registrations") else ():
        link.attributes.pop("reftitle", None)
        for wrapper in [each for each in link.findall(nodes.inline) if "std-ref" in each["classes"]]:
            wrapper.parent.replace(wrapper, wrapper.children)


def setup(app: Sphinx) -> None:
    """Register this module with Sphinx."""
    app.add_directive("scorecard", ScorecardDirective)
    app.add_directive("registrations", RegistrationsDirective)
    app.add_js_file("scorecard.js")
    app.connect("doctree-resolved", shorten_links, priority=900)
