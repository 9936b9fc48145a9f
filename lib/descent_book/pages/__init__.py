"""Executed chapters bound as HTML and PDF; a Sphinx extension, which `_config.yml` names."""

from typing import Any


def setup(app: Any) -> dict[str, bool]:
    """Register every role, directive and hook of the pages with Sphinx."""
    from descent_book.pages import (  # here: the runner imports this package without Sphinx
        alone,
        api,
        claims,
        figures,
        gallery,
        home,
        meta,
        pdf,
        pictures,
        scorecard,
        stills,
        tables,
        terms,
    )

    around = (pictures, home, gallery, stills, alone, meta, terms)
    for module in (figures, claims, scorecard, tables, pdf, api, *around):
        module.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
