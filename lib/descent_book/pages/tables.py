"""Tables of the prose pages beside the scorecard's: parameters, promises, and which published chapters are current.

The build puts their data beside the pages: the parameters in `parameters.json`, which published chapters are of today's
sources in `standing.json`, the sentences of the promises in `promises.yml`, and what `make audit` measured of them in
`promises.json`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

from descent.repro.tables import number_text
from descent_book.pages.claims import Table
from descent_book.run.chapter import Parameter
from descent_book.run.keys import in_short

OUTCOMES = ("passed", "failed", "skipped")
MANY = 5  # cases of one kind, above which the table has their range
_CASE = re.compile(r"(?P<whose>[^,:]+), [^:]+: (?P<what>.+)")
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
        return [self.chapter(name, [Parameter(**row) for row in rows]) for name, rows in chapters.items()]

    def chapter(self, name: str, rows: Sequence[Parameter]) -> nodes.table:
        """One chapter's table."""
        for row in rows:
            if not row.meaning:
                message = f"{name}: parameter {row.name!r} is not in the chapter's table of parameters"
                _LOG.warning(message, location=self.get_location(), type="descent", subtype="parameters")
        widths = self.widths | {f"At {preset}": self.value_width for preset in rows[0].values}
        table = self.table(self.markdown(f"{{doc}}`{name}`"), widths, [self.parameter(row) for row in rows])
        table["ids"].append(f"parameters-{nodes.make_id(name)}")
        return table

    def parameter(self, row: Parameter) -> nodes.row:
        """One parameter's row."""
        texts = [f"`{row.name}`", row.meaning, row.accepted, *row.values.values()]
        return self.row([self.markdown(text or "(empty)") for text in texts])


def gathered(measured: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """What was measured, with more than `MANY` names `whose, case: what` of the same `whose` and `what` as one."""
    cases = {name: match.group("whose", "what") for name in measured if (match := _CASE.fullmatch(name))}
    count = Counter(cases.values())
    shorter: dict[str, list[Any]] = {}
    for name, values in measured.items():
        of = cases.get(name)
        if of is not None and count[of] > MANY:
            name = f"{of[0]}, {count[of]} cases: {of[1]}"
        shorter.setdefault(name, []).extend(values)
    return shorter


def measured_text(name: str, values: Sequence[Any]) -> str:
    """`name: value`, or the range of several numbers, or the different words: `seconds: 2.1 to 30`."""
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return f"{name}: {', '.join(sorted({str(value) for value in values}))}"
    ends = dict.fromkeys(number_text(float(end)) for end in (min(numbers), max(numbers)))
    return f"{name}: {' to '.join(ends)}"


class PromisesDirective(Table):
    """{promises}: a row for each promise of `promises.yml`, in its order."""

    widths: ClassVar = {"Promise": 60, "When last tried": 40}

    def run(self) -> list[nodes.Node]:
        """The table; a promise that no test holds, and a test of an unknown promise, fail the build."""
        folder = Path(self.env.srcdir)
        for name in ("promises.yml", "promises.json"):
            self.env.note_dependency(str(folder / name))
        promises = yaml.safe_load((folder / "promises.yml").read_text(encoding="utf-8"))
        tests = json.loads((folder / "promises.json").read_text(encoding="utf-8"))
        unknown = {name for test in tests.values() for name in test["promises"]} - set(promises)
        unheld = [name for name in promises if not any(name in test["promises"] for test in tests.values())]
        faults = [f"{name}: no such promise" for name in sorted(unknown)]
        for fault in [*faults, *(f"{name}: no test holds it" for name in unheld)]:
            _LOG.warning(fault, location=self.get_location(), type="descent", subtype="promises")
        rows = [self.promise(name, text, tests) for name, text in promises.items()]
        return [self.table(self.text("What is promised, and what an audit found"), self.widths, rows)]

    def promise(self, name: str, sentence: str, tests: dict[str, Any]) -> nodes.row:
        """One promise's row."""
        mine = {path: test for path, test in tests.items() if name in test["promises"]}
        measured: dict[str, list[Any]] = {}
        for key, values in (pair for test in mine.values() for pair in test["measured"].items()):
            measured.setdefault(key, []).extend(values)
        texts = [measured_text(key, values) for key, values in gathered(measured).items()]
        cases: Counter[tuple[str, str]] = Counter()
        for path, test in mine.items():
            file = PurePosixPath(path.partition("::")[0]).name
            cases.update({(file, outcome): test[outcome] for outcome in OUTCOMES})
        held = [f"`{file}`: {count} {outcome}" for (file, outcome), count in cases.items() if count]
        held.append(f"tried at commit {', '.join(sorted({test['machine']['commit'] for test in mine.values()}))}")
        totals = {outcome: sum(test[outcome] for test in mine.values()) for outcome in OUTCOMES}
        said = ", ".join(f"{count} {outcome}" for outcome, count in totals.items() if count)
        opened = f"<details><summary>{said}</summary>"
        raw = [nodes.raw("", text, format="html") for text in (opened, "</details>")]
        row = self.row([self.markdown(sentence), [raw[0], *self.lines([*texts, *held]), raw[1]]])
        row.children[0].append(nodes.paragraph(text=name, classes=["detail"]))
        row["ids"].append(nodes.make_id(f"promise-{name}"))
        return row

    def lines(self, texts: Sequence[str]) -> list[nodes.Node]:
        """A paragraph each."""
        return [node for text in texts for node in self.markdown(text)]


class StandingDirective(Table):
    """{standing}: the commit that each published chapter was made at, and which definitions differ since."""

    widths: ClassVar = {"Chapter": 28, "Made at commit": 22, "Since then": 50}

    def run(self) -> list[nodes.Node]:
        """The table."""
        file = Path(self.env.srcdir) / "standing.json"
        self.env.note_dependency(str(file))
        known = json.loads(file.read_text(encoding="utf-8"))
        rows = [self.row([self.markdown(f"{{doc}}`{name}`"), *self.since(each)]) for name, each in known.items()]
        return [self.table(self.text("Published chapters and today's sources"), self.widths, rows)]

    def since(self, chapter: Mapping[str, Any]) -> list[list[nodes.Node]]:
        """The cells of one chapter's commit and of what differs."""
        differs = in_short(chapter["differs"])
        said = [node for each in differs for node in self.text(each)]
        if len(differs) > MANY:
            opened = f"<details><summary>{len(differs)} things differ</summary>"
            said = [nodes.raw("", opened, format="html"), *said, nodes.raw("", "</details>", format="html")]
        return [self.text(chapter["commit"]), said or self.text("current: nothing that decides a result differs")]


def setup(app: Sphinx) -> None:
    """Register this module with Sphinx."""
    app.add_directive("parameters", ParametersDirective)
    app.add_directive("promises", PromisesDirective)
    app.add_directive("standing", StandingDirective)
