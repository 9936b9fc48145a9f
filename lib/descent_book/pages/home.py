"""The home page's cards: each chapter's question, picture and answer, from `cards.yml`."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from sphinx.application import Sphinx
from sphinx.util import logging

from descent.repro.claims import read_mapping
from descent_book.pages.claims import Table, read_chapters
from descent_book.pages.pictures import CARD, Thumbnail, chapters_of, pictures

SMALL = """These pages show a run of the chapters at preset `{}`, with small data and about a minute a chapter. Most
claims are not judged at that scale, and their numbers are no findings. The published edition has the sources' scale."""
_LOG = logging.getLogger(__name__)


class Card(BaseModel):
    """What the home page says of a chapter.

    Attributes:
        question: in words that need no knowledge of the field.
        answer: one sentence of MyST, its numbers and its verdict by the role {claim}.
        figures: names of figure cells of the chapter; the first that the edition has is shown, as an edition may
            be older than the chapter's newest form.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str = Field(min_length=10, pattern=r"\?$")
    answer: str = Field(min_length=10)
    figures: list[str] = Field(min_length=1)


def read_cards(path: Path) -> dict[str, Card]:
    """Chapter -> card.

    Raises:
        ValueError: the file is missing, or a card has another form; the message names the chapter and the field.
    """
    try:
        return TypeAdapter(dict[str, Card]).validate_python(read_mapping(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path.name}: {': '.join(map(str, first['loc']))}: {first['msg']}") from error


class CardsDirective(Table):
    """{cards}: a card for each chapter of `cards.yml`, in the order of the file."""

    def run(self) -> list[nodes.Node]:
        """The cards; a chapter without a card, a card without a chapter, and a figure that is not there are faults."""
        path = Path(self.env.srcdir) / "cards.yml"
        self.env.note_dependency(str(path))
        try:
            cards = read_cards(path)
        except ValueError as error:
            self.warn(str(error))
            return []
        known = chapters_of(self.env)
        for chapter in sorted(set(cards) ^ set(known)):
            self.warn(f"cards.yml and the chapters of the book differ in {chapter!r}")
        shown = [self.card(chapter, card) for chapter, card in cards.items() if chapter in known]
        claims = [claim for chapter in read_chapters(self.env).values() for claim in chapter.claims]
        small = sorted({claim.preset for claim in claims} - {"paper"})
        told = self.markdown(*SMALL.format("`, `".join(small)).splitlines()) if small else []
        note = [nodes.note("", *told)] if told else []
        return [*note, nodes.container("", *shown, classes=["cards"])]

    def card(self, chapter: str, card: Card) -> nodes.container:
        """One chapter's card."""
        source = Path(self.env.srcdir)
        self.env.note_dependency(str(source / f"{chapter}.ipynb"))
        names = [picture.name for picture in pictures(source, chapter)]
        found = [name for name in card.figures if name in names]
        seen: list[nodes.Node] = [Thumbnail("", chapter=chapter, name=name, width=CARD) for name in found[:1]]
        if not found:
            wanted = ", ".join(card.figures)
            self.warn(f"cards.yml: {chapter}: figures {wanted}: expected one of {', '.join(names) or 'none'}")
        asked = nodes.container("", *self.markdown(f"{{doc}}`{card.question} <{chapter}>`"), classes=["question"])
        answer = nodes.container("", *self.markdown(card.answer), classes=["answer"])
        return nodes.container("", *seen, asked, answer, classes=["card-of-chapter"])

    def warn(self, fault: str) -> None:
        """A warning, which fails the build."""
        _LOG.warning(fault, location=self.get_location(), type="descent", subtype="cards")


def setup(app: Sphinx) -> None:
    """Register this module with Sphinx."""
    app.add_directive("cards", CardsDirective)
