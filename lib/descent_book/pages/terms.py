"""The first use of a term on a chapter's page leads to its definition in the glossary.

A term whose definition names chapters, by {doc}, has its meaning in these alone and is linked there alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

GLOSSARY = "glossary"  # the page
# in which a word is no use of a term, or cannot be a link
_CLOSED: tuple[type[nodes.Node], ...] = (
    nodes.title,
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.reference,
    nodes.raw,
)
_CLOSED += (nodes.caption, nodes.rubric, addnodes.pending_xref, nodes.comment, nodes.label, nodes.footnote)


class Term(NamedTuple):
    """A word or phrase, its anchor in the glossary, and the chapters where it has that meaning; none stands for all."""

    name: str
    anchor: str
    chapters: frozenset[str]


def plurals(name: str) -> Iterator[str]:
    """A term as it stands, and in the plural: `key frequency`, `key frequencies`."""
    yield name
    if name.endswith(("s", "sh", "ch")):
        yield name + "es"
    elif name.endswith("ix"):
        yield name.removesuffix("ix") + "ices"
    elif name.endswith("ex"):
        yield name.removesuffix("ex") + "ices"
    elif name.endswith("y") and name[-2:-1] not in "aeiou":
        yield name.removesuffix("y") + "ies"
    else:
        yield name + "s"


def glossary_terms(doctree: nodes.document) -> list[Term]:
    """The terms of a glossary's page."""
    found = []
    for item in doctree.findall(nodes.definition_list_item):
        if not isinstance(item.parent.parent, addnodes.glossary):
            continue
        links = [*item.findall(addnodes.pending_xref), *item.findall(nodes.reference)]
        pages = frozenset(str(link["reftarget"]) for link in links if link.get("reftype") == "doc")
        found += [Term(term.astext(), term["ids"][0], pages) for term in item.findall(nodes.term) if term["ids"]]
    return found


def _words(doctree: nodes.document) -> list[nodes.Text]:
    def is_open(node: nodes.Node) -> bool:
        while node is not None:
            if isinstance(node, _CLOSED) or "cell_output" in getattr(node, "attributes", {}).get("classes", ()):
                return False
            node = node.parent
        return True

    texts = [text for text in doctree.findall(nodes.Text) if is_open(text.parent)]
    for parent in {id(text.parent): text.parent for text in texts}.values():
        _join_texts(parent)  # MyST makes one for each line
    return [text for text in doctree.findall(nodes.Text) if is_open(text.parent)]


def _join_texts(parent: nodes.Element) -> None:
    joined: list[nodes.Node] = []
    for child in parent.children:
        if isinstance(child, nodes.Text) and joined and isinstance(joined[-1], nodes.Text):
            joined[-1] = nodes.Text(joined[-1].astext() + child.astext())
        else:
            joined.append(child)
    parent.children = []
    parent.extend(joined)


def link_first_uses(app: Sphinx, doctree: nodes.document, page: str, terms: Sequence[Term]) -> None:
    """Make the first use of each term on a page a link to the glossary; longer terms come before those within them."""
    left = {form.lower(): term for term in terms if not term.chapters or page in term.chapters
            for form in plurals(term.name)}  # fmt: skip
    for text in _words(doctree):
        if not left:
            return
        forms = "|".join(re.escape(form).replace(r"\ ", r"\s+") for form in sorted(left, key=len, reverse=True))
        parts: list[nodes.Node] = []
        rest = text.astext()
        while left and (match := re.search(rf"(?<![\w-])({forms})(?![\w-])", rest, re.IGNORECASE)):
            term = left.get(" ".join(match[0].lower().split()))
            if term is None:  # linked earlier in this text
                parts.append(nodes.Text(rest[: match.end()]))
                rest = rest[match.end() :]
                continue
            parts.append(nodes.Text(rest[: match.start()]))
            said = nodes.inline(text=match[0], classes=["term"])
            parts.append(make_refnode(app.builder, page, GLOSSARY, term.anchor, said, "Glossary"))
            rest = rest[match.end() :]
            left = {form: other for form, other in left.items() if other != term}
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(rest)])


def link_terms(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Link the first uses on a chapter's page."""
    if GLOSSARY in app.env.found_docs and str(app.env.doc2path(page)).endswith(".ipynb"):
        link_first_uses(app, doctree, page, glossary_terms(app.env.get_doctree(GLOSSARY)))


def setup(app: Sphinx) -> None:
    """Register this module with Sphinx."""
    app.connect("doctree-resolved", link_terms)
