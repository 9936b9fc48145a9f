"""Executed chapters bound as HTML and PDF; a Sphinx extension, which `_config.yml` names."""

from pathlib import Path
from typing import Any


def setup(app: Any) -> dict[str, bool]:
    """Register every role, directive and hook of the pages with Sphinx.

    Raises:
        ConfigError: the folder holds the settings of the book and not its pages, as a checkout does.
    """
    from sphinx.errors import ConfigError

    from descent_book.run.project import pages

    root = Path(app.srcdir)
    if (root / "_toc.yml").is_file() and not any(root.glob(f"{pages(root)[0]}.*")):
        raise ConfigError(
            "the pages of the book are laid out by its own commands, which call Jupyter Book themselves: "
            "`make html` builds the published edition, `make book` runs the chapters first"
        )
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
