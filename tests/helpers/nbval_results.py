"""What nbval's run of a chapter records, kept as a second run to hold against the quick edition's.

It is kept where several processes share a test run, as in `make test`: the run has a name then. The chapters share the
machine's cores there, as those of an edition do.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from descent.repro.machine import cores

FOLDER = Path(__file__).parents[2] / "_build" / "nbval"


def kept_in(run: str) -> Path:
    """Where the chapters' results of a test run of this name are, `<chapter>/claims.json` and the record."""
    return FOLDER / run


class Results:
    """Tells a chapter under nbval where to write, as papermill would: after the cell of its parameters."""

    def __init__(self, run: str, processes: int) -> None:
        self.folder = kept_in(run)
        self.cores = max(1, cores() // processes)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        outcome = yield
        if "parameters" in getattr(item, "cell", {}).get("metadata", {}).get("tags", []):
            kernel = item.parent.kernel
            share = f"__import__('os').environ['DESCENT_CORES'] = '{self.cores}'"  # leaves no `os` to the cells
            message = kernel.execute_cell_input(f"{share}; results_dir = {str(self.folder / item.path.stem)!r}")
            kernel.await_reply(message, 60)
            kernel.await_idle(message, 60)
        return outcome
