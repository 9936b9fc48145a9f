"""{printed}: the link to the book as one file, where that file has been made for these pages; nothing otherwise.

A Sphinx extension. The build lays the file beside the sources, see `printable`; it goes beside the pages.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from descent_book.pages.printable import KEY, PDF


class PrintedDirective(SphinxDirective):
    """{printed}: a sentence that leads to the printed book and gives its size."""

    def run(self) -> list[nodes.Node]:
        """One paragraph, or none; the printed book itself leaves it out."""
        file = Path(self.env.srcdir) / PDF
        if not file.is_file():
            return []
        text = nodes.paragraph("", "The whole book is also one file, to print or to keep: ", classes=["only-on-screen"])
        text += nodes.reference("", PDF, refuri="../" * self.env.docname.count("/") + PDF, internal=False)
        text += nodes.Text(f" ({file.stat().st_size / 1e6:.1f} MB).")
        return [text]


def copy_printed(app: Sphinx, failure: Exception | None) -> None:
    """Lay the printed book and the key of its sources beside the pages."""
    for name in (PDF, KEY):
        if failure is None and (file := Path(app.srcdir) / name).is_file():
            shutil.copyfile(file, Path(app.outdir) / name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("printed", PrintedDirective)
    app.connect("build-finished", copy_printed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
