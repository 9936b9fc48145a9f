"""A notebook run by papermill in a kernel of this very interpreter, with a report at every code cell."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.engines import NBClientEngine, papermill_engines

_HEADING = re.compile(r"^#+\s+(.+?)\s*$", re.MULTILINE)


class ThisInterpreter(AsyncKernelManager):
    """Starts kernels of the interpreter that runs this code, whatever kernels the machine has registered."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The specification of such a kernel."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=40"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


def run_notebook(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    timeout: int,
    report: Callable[[int, str], None],
) -> None:
    """Execute `notebook` with `parameters` in the folder of `output`, which is written as the run goes on.

    Args:
        notebook: the source.
        output: where papermill writes; left behind, as far as it came, when a cell fails.
        parameters: what papermill injects after the `parameters` cell.
        timeout: seconds that one cell may take.
        report: called with the number of a code cell, from 1, and the heading above it, before the cell runs.

    Raises:
        Exception: papermill's PapermillExecutionError for a failing cell; nbclient's for a timeout or a dead kernel.
    """
    papermill_engines.register("descent", _reporting(report))
    papermill.execute_notebook(
        notebook,
        output,
        dict(parameters),
        engine_name="descent",
        kernel_name="python3",
        language="python",
        kernel_manager_class=ThisInterpreter,
        progress_bar=False,
        execution_timeout=timeout,
        record_timing=False,
        cwd=output.parent,
    )


def _reporting(report: Callable[[int, str], None]) -> type:
    class Reporting(NBClientEngine):  # type: ignore[misc]  # papermill has no types
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
            start, number, heading = nb_man.cell_start, 0, ""

            def cell_start(cell: Any, *args: Any, **kwargs: Any) -> None:
                nonlocal number, heading
                if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", []):
                    number += 1
                    report(number, heading)
                elif found := _HEADING.findall(cell.source):
                    heading = found[-1]
                start(cell, *args, **kwargs)

            nb_man.cell_start = cell_start
            super().execute_managed_notebook(nb_man, kernel_name, **options)

    return Reporting
