"""Each test is on its own; and `--promises FILE`: what those marked `promise` measured, for the reproducibility page.

FILE maps each test function, or each chapter of one that takes a `chapter`, to its promises, how many of its cases
passed and failed, and the values that it recorded by `record_property`. What was run replaces its entries, of a session
that was interrupted what came to its end; the others stay as long as their functions exist.
"""

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from nbval_results import Results
from small_project import read

from descent.repro.files import write_json
from descent.repro.records import provenance

mpl.use("Agg")  # nothing is shown
# set by whoever calls, such as a hook of git: they would lead tests to another repository, or tell them of a host
for _name in [name for name in os.environ if name.startswith(("GIT_", "COLAB_", "KAGGLE_"))]:
    del os.environ[_name]

PROMISE, CHAPTER, STANDING = "promise", "chapter", "standing"


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_open() -> Iterator[None]:
    """A file or process that a module leaves open in a ring of references fails that module, and no later one.

    Its warning comes when it is collected, at any moment; it is an error of the test that then runs.
    """
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _process_as_found() -> Iterator[None]:
    """Which files share a process, and in what order, differs from run to run: it must decide nothing."""
    with mpl.rc_context(), patch.dict(os.environ), patch.object(sys, "path", [*sys.path]):
        yield
    plt.close("all")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--promises", type=Path, metavar="FILE", help="keep what the tests of promises measured in FILE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Reports know no markers and parameters: note them among the properties, which go between processes."""
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        item.user_properties += [(CHAPTER, parameters[CHAPTER])] if CHAPTER in parameters else []
        item.user_properties += [(PROMISE, name) for mark in item.iter_markers(PROMISE) for name in mark.args]


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--promises") and not hasattr(config, "workerinput"):  # only the process that sees all reports
        config.pluginmanager.register(Kept(config.getoption("--promises"), config.rootpath))
    if worker := getattr(config, "workerinput", {}):
        config.pluginmanager.register(Results(worker["testrunuid"], worker["workercount"]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which published chapters are stale, where the test that finds it ran: it is no failure."""
    reports = [report for each in terminalreporter.stats.values() for report in each]
    for said in {value for each in reports for key, value in getattr(each, "user_properties", []) if key == STANDING}:
        terminalreporter.write_line(said, yellow=True)


class Kept:
    """Collects the reports of a session and writes them at its end."""

    def __init__(self, file: Path, root: Path) -> None:
        self.file, self.root = file, root
        self.reports: dict[str, list[pytest.TestReport]] = {}
        self.cases: Counter[str] = Counter()  # of each entry; none where processes share the tests

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.cases = Counter(entry_of(item.nodeid, item.user_properties) for item in session.items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = report.when == "call" or not report.passed  # an error before or after the call counts as failed
        known = dict(report.user_properties)
        if said and PROMISE in known:
            self.reports.setdefault(entry_of(report.nodeid, report.user_properties), []).append(report)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.INTERRUPTED or session.shouldfail:
            reached = {name: {report.nodeid for report in each} for name, each in self.reports.items()}
            whole = [name for name, tests in reached.items() if len(tests) == self.cases[name]]
            self.reports = {name: self.reports[name] for name in whole}
        kept: dict[str, Any] = read(self.file) if self.file.is_file() else {}
        kept = {name: entry for name, entry in kept.items() if is_defined(self.root, name)}
        older = {name.partition("[")[0] for name in self.reports}  # of all chapters at once, as an older file says it
        kept = {name: entry for name, entry in kept.items() if name not in older}
        kept |= {name: summary(reports) for name, reports in self.reports.items()}
        write_json(self.file, dict(sorted(kept.items())))


def entry_of(test: str, properties: list[tuple[str, Any]]) -> str:
    """`path::function`, or `path::function[chapter]`."""
    known = dict(properties)
    return test.partition("[")[0] + (f"[{known[CHAPTER]}]" if CHAPTER in known else "")


def summary(reports: list[pytest.TestReport]) -> dict[str, Any]:
    """What the cases of a test function have in common: promises, outcomes, and every value of each property."""
    properties = [pair for report in reports for pair in report.user_properties]
    measured: dict[str, list[Any]] = {}
    for name, value in properties:
        if name not in (PROMISE, CHAPTER):
            measured.setdefault(name, []).append(value)
    outcomes = [report.outcome for report in reports]
    return {
        "promises": sorted({name for key, name in properties if key == PROMISE}),
        **{outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "skipped")},
        "measured": measured,
        "machine": {key: provenance()[key] for key in ("machine", "cpu_capability", "threads", "torch", "commit")},
    }


def is_defined(root: Path, name: str) -> bool:
    """Whether there still is a test function of this name, `path::function` or `path::function[chapter]`."""
    path, _, function = name.partition("[")[0].partition("::")
    return (root / path).is_file() and f"def {function}(" in (root / path).read_text(encoding="utf-8")
