"""`--promises FILE`: what the tests marked `promise` measured, kept for the reproducibility page.

FILE maps each test function to its promises, how many of its cases passed and failed, and the values that it recorded
by `record_property`. The functions that were run replace their entries; the others keep theirs as long as they exist.
"""

from pathlib import Path
from typing import Any

import pytest

from descent.records import provenance, write_json
from nbval_results import Results
from small_project import read

PROMISE = "promise"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--promises", type=Path, metavar="FILE", help="keep what the tests of promises measured in FILE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A report knows no markers: note them among the properties, which reports carry between processes."""
    for item in items:
        item.user_properties += [(PROMISE, name) for mark in item.iter_markers(PROMISE) for name in mark.args]


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--promises") and not hasattr(config, "workerinput"):  # only the process that sees all reports
        config.pluginmanager.register(Kept(config.getoption("--promises"), config.rootpath))
    if worker := getattr(config, "workerinput", {}):
        config.pluginmanager.register(Results(worker["testrunuid"], worker["workercount"]))


class Kept:
    """Collects the reports of a session and writes them at its end."""

    def __init__(self, file: Path, root: Path) -> None:
        self.file, self.root = file, root
        self.reports: dict[str, list[pytest.TestReport]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = report.when == "call" or not report.passed  # an error before or after the call counts as failed
        if said and PROMISE in dict(report.user_properties):
            self.reports.setdefault(report.nodeid.partition("[")[0], []).append(report)

    def pytest_sessionfinish(self) -> None:
        kept: dict[str, Any] = read(self.file) if self.file.is_file() else {}
        kept = {name: entry for name, entry in kept.items() if is_defined(self.root, name)}
        kept |= {name: summary(reports) for name, reports in self.reports.items()}
        write_json(self.file, dict(sorted(kept.items())))


def summary(reports: list[pytest.TestReport]) -> dict[str, Any]:
    """What the cases of a test function have in common: promises, outcomes, and every value of each property."""
    properties = [pair for report in reports for pair in report.user_properties]
    measured: dict[str, list[Any]] = {}
    for name, value in properties:
        if name != PROMISE:
            measured.setdefault(name, []).append(value)
    outcomes = [report.outcome for report in reports]
    return {
        "promises": sorted({name for key, name in properties if key == PROMISE}),
        **{outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "skipped")},
        "measured": measured,
        "machine": {key: provenance()[key] for key in ("machine", "cpu_capability", "threads", "torch", "commit")},
    }


def is_defined(root: Path, name: str) -> bool:
    """Whether there still is a test function of this name, `path::function`."""
    path, _, function = name.partition("::")
    return (root / path).is_file() and f"def {function}(" in (root / path).read_text(encoding="utf-8")
