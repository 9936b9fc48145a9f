"""{parameters}: every parameter of every chapter, from `parameters.json`, which the build puts beside the pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from descent_book.pages.claims import Table

_LOG = logging.getLogger(__name__)


class ParametersDirective(Table):
    """{parameters}: a table for each chapter, a row for each parameter."""

    widths: ClassVar = {"Parameter": 15, "Meaning and unit": 35, "Accepted": 22}
    value_width = 14

    def run(self) -> list[nodes.Node]:
        """The tables, each with a target `parameters-CHAPTER`; a parameter without a meaning fails the build."""
        path = Path(self.env.srcdir) / "parameters.json"
        self.env.note_dependency(str(path))
        chapters = json.loads(path.read_text(encoding="utf-8"))
        return [self.chapter(name, rows) for name, rows in chapters.items()]

    def chapter(self, name: str, rows: Sequence[dict[str, Any]]) -> nodes.table:
        """One chapter's table."""
        for row in rows:
            if not row["meaning"]:
                message = f"{name}: parameter {row['name']!r} is not in the chapter's table of parameters"
                _LOG.warning(message, location=self.get_location(), type="descent", subtype="parameters")
        widths = self.widths | {f"At {preset}": self.value_width for preset in rows[0]["values"]}
        table = self.table(self.markdown(f"{{doc}}`{name}`"), widths, [self.parameter(row) for row in rows])
        table["ids"].append(f"parameters-{nodes.make_id(name)}")
        return table

    def parameter(self, row: dict[str, Any]) -> nodes.row:
        """One parameter's row."""
        texts = [f"`{row['name']}`", row["meaning"], row["accepted"], *row["values"].values()]
        return self.row([self.markdown(text or "(empty)") for text in texts])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("parameters", ParametersDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
