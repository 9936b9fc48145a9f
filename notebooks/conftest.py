"""What nbval does not compare: outputs that differ between machines without meaning anything.

Claim tables are compared as plain text; figures, their data and warnings are looked at by the book's own tests.
"""

import pytest

collect_ignore = ["drafts"]  # chapters that _toc.yml does not name yet
NOT_COMPARED = ("text/html", "text/markdown", "application/vnd.plotly.v1+json", "image/svg+xml", "stderr")


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Add to what nbval leaves out already (images, tracebacks, execution counts)."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += NOT_COMPARED
