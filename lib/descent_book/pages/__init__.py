"""Executed chapters bound as HTML and PDF; a Sphinx extension, which `_config.yml` names."""

from typing import Any


def setup(app: Any) -> dict[str, bool]:
    """Register every role, directive and hook of the pages with Sphinx."""
    from descent_book.pages import api, claims, figures, pdf, tables  # here: the runner imports this package without Sphinx

    for module in (figures, claims, tables, pdf, api):
        module.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
