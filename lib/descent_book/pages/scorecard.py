"""The scorecard page: totals by kind, filters, and a card for each claim with its row of the forest plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, get_args

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx

from descent.repro.claims import JudgedClaim, Kind, Verdict
from descent.repro.tables import estimate_text
from descent_book.pages.claims import FIELDS, Table, cell_label, link_to, note_target, read_chapters, row_label
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
        return [lines, self.files(judged), html(self.filters(worst_first)), cards]

    def files(self, judged: Sequence[JudgedClaim]) -> nodes.paragraph:
        """A link to the registration of each chapter, where its history is, too; once, since the cards are many."""
        theme = self.config.html_theme_options
        root, branch = theme.get("repository_url", ""), theme.get("repository_branch", "main")
        line = nodes.paragraph("", "Registrations, with their history: ", classes=["detail"])
        for number, chapter in enumerate(dict.fromkeys(claim.id.partition(".")[0] for claim in judged)):
            uri = f"{root}/blob/{branch}/notebooks/claims/{chapter}.yml"
            line += [nodes.Text(", " if number else ""), nodes.reference("", chapter, refuri=uri)]
        line += nodes.Text(".")
        return line

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
        """One claim: its sentence and verdict, a row of the forest plot, and what is registered of it.

        The boxes are plain HTML, without the classes of docutils, as there are three to each of many claims.
        """
        claim, chapter = judged.claim, judged.id.partition(".")[0]
        cite = f" {{cite:p}}`{claim.cite}`" if claim.cite else ""
        name: nodes.Node = nodes.literal(text=judged.id)
        if judged.measured is not None:
            name = link_to(cell_label(judged.id), self.env.docname, name)
        head = nodes.paragraph("", "", name, nodes.Text(f", {KINDS[claim.kind][0]}"), classes=["detail"])
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
                *self.registration(judged), html("</div><div>"), verdict, html(strip(judged)),
                *self.text("", numbers)[1:], html("</div></div>")]  # fmt: skip

    def registration(self, judged: JudgedClaim) -> list[nodes.Node]:
        """What is registered, and how it came to be so, behind a fold."""
        claim = judged.claim
        units = f"{judged.measured.units} measured" if judged.measured else "not measured in this edition"
        statistic = "" if "resampled" in claim.unit else f"; {claim.statistic}"  # else one that the sentence names
        rows = [
            ("Why this verdict", judged.reason),
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
        opened, closed = "<details><summary>Registration, reason and history</summary>", "</details>"
        return [html(opened), nodes.definition_list("", *items), html(closed)]


def html(text: str) -> nodes.raw:
    """A piece of HTML between the nodes of a page."""
    return nodes.raw("", text, format="html")


def shorten_links(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Leave out what a hundred cards repeat: each citation's whole entry as the title of its link, and a wrapper."""
    for link in list(doctree.findall(nodes.reference)) if page == "scorecard" else ():
        link.attributes.pop("reftitle", None)
        for wrapper in [each for each in link.findall(nodes.inline) if "std-ref" in each["classes"]]:
            wrapper.parent.replace(wrapper, wrapper.children)


def setup(app: Sphinx) -> None:
    """Register this module with Sphinx."""
    app.add_directive("scorecard", ScorecardDirective)
    app.add_js_file("scorecard.js")
    app.connect("doctree-resolved", shorten_links, priority=900)
