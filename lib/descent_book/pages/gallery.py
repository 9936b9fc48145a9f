"""The gallery: every figure of the edition that is bound, small, with a title and a link to where it is explained."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

from descent_book.pages.claims import Table
from descent_book.pages.pictures import THUMBNAIL, Picture, Thumbnail, chapters_of, pictures


class GalleryDirective(Table):
    """{gallery}: a heading line for each chapter, and its figures below, from the executed notebooks."""

    def run(self) -> list[nodes.Node]:
        """The chapters that have figures."""
        shown: list[nodes.Node] = []
        for chapter in chapters_of(self.env):
            path = Path(self.env.srcdir) / f"{chapter}.ipynb"
            self.env.note_dependency(str(path))
            if found := pictures(path.parent, chapter):
                head = nodes.container("", *self.markdown(f"{{doc}}`{chapter}`"), classes=["gallery-chapter"])
                shown += [head, nodes.container("", *map(self.figure, found), classes=["gallery"])]
        return shown

    def figure(self, picture: Picture) -> nodes.container:
        """One figure: its thumbnail, its title and its licence."""
        small = Thumbnail("", chapter=picture.chapter, name=picture.name, width=THUMBNAIL)
        title = nodes.container("", *self.markdown(picture.title), classes=["gallery-title"])
        licence = nodes.paragraph(text="MIT licence", classes=["detail"])
        return nodes.container("", small, title, licence, classes=["gallery-figure"])


def setup(app: Sphinx) -> None:
    """Register this module with Sphinx."""
    app.add_directive("gallery", GalleryDirective)
