"""What nbval does not compare: outputs that differ between machines without meaning anything.

Claim tables are compared as plain text: digit by digit on the kind of processor that they were stored on, on others
as promise R2 says. Figures, their data and warnings are looked at by the book's own tests.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from descent.repro.records import provenance
from descent_book.run.notebook import alike, brought, processor

collect_ignore = ["drafts", "conftest.py"]  # chapters that _toc.yml does not name yet; this file has no examples
NOT_COMPARED = ("text/html", "text/markdown", "application/vnd.plotly.v1+json", "image/svg+xml", "stderr")
Outputs = Sequence[dict[str, Any]]


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Add to what nbval leaves out already (images, tracebacks, execution counts)."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += NOT_COMPARED


def pytest_itemcollected(item: pytest.Item) -> None:
    """Every code cell of a notebook comes by here."""
    if hasattr(item, "compare_outputs"):
        item.compare_outputs = partial(compare, item.compare_outputs, item.parent.nb.metadata.get("checked_on"))


def compare(exactly: Callable[..., bool], stored_on: str | None, found: Outputs, stored: Outputs) -> bool:
    """What nbval compares, after the rows that agree have been brought to the stored ones."""
    here = processor(provenance())
    if stored_on not in (None, here):
        for one, other in zip(found, stored, strict=False):
            if "text/plain" in one.get("data", {}) and "text/plain" in other.get("data", {}):
                texts = one["data"]["text/plain"], other["data"]["text/plain"]
                one["data"]["text/plain"] = brought(*texts, alike(stored_on, here))
    return exactly(found, stored)
