"""{promises}: what the book promises, what an audit measured of it, and the tests that hold it; {standing}.

The sentences are in `promises.yml`, what `make audit` measured in `promises.json`; both lie beside the pages. Which
published chapters are of today's sources is in `standing.json`, which the build writes.
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

from descent.repro.claims import value_with_spread
from descent_book.pages.claims import Table

MANY = 5  # cases of one kind, above which the table has their range
_CASE = re.compile(r"(?P<whose>[^,:]+), [^:]+: (?P<what>.+)")
_LOG = logging.getLogger(__name__)


def gathered(measured: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """What was measured, with more than `MANY` names `whose, case: what` of the same `whose` and `what` as one."""
    cases = {name: found.group("whose", "what") for name in measured if (found := _CASE.fullmatch(name))}
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
    ends = dict.fromkeys(value_with_spread(float(end)) for end in (min(numbers), max(numbers)))
    return f"{name}: {' to '.join(ends)}"


class PromisesDirective(Table):
    """{promises}: a row for each promise of `promises.yml`, in its order."""

    widths: ClassVar = {"Promise": 38, "Measured": 34, "Held by": 28}

    def run(self) -> list[nodes.Node]:
        """The table; a promise that no test holds, and a test of an unknown promise, fail the build."""
        folder = Path(self.env.srcdir)
        for name in ("promises.yml", "promises.json"):
            self.env.note_dependency(str(folder / name))
        promises = yaml.safe_load((folder / "promises.yml").read_text(encoding="utf-8"))
        tests = json.loads((folder / "promises.json").read_text(encoding="utf-8"))
        unknown = {name for test in tests.values() for name in test["promises"]} - set(promises)
        unheld = [name for name in promises if not any(name in test["promises"] for test in tests.values())]
        for fault in [f"{name}: no such promise" for name in sorted(unknown)] + [
            f"{n}: no test holds it" for n in unheld
        ]:
            _LOG.warning(fault, location=self.get_location(), type="descent", subtype="promises")
        rows = [self.promise(name, text, tests) for name, text in promises.items()]
        return [self.table(self.text("What is promised, and what an audit found"), self.widths, rows)]

    def promise(self, name: str, sentence: str, tests: dict[str, Any]) -> nodes.row:
        """One promise's row."""
        mine = {path: test for path, test in tests.items() if name in test["promises"]}
        measured: dict[str, list[Any]] = {}
        for key, values in (pair for test in mine.values() for pair in test["measured"].items()):
            measured.setdefault(key, []).extend(values)
        said = [measured_text(key, values) for key, values in gathered(measured).items()]
        cases: Counter[tuple[str, str]] = Counter()
        for path, test in mine.items():
            file = PurePosixPath(path.partition("::")[0]).name
            cases.update({(file, outcome): test[outcome] for outcome in ("passed", "failed", "skipped")})
        held = [f"`{file}`: {count} {outcome}" for (file, outcome), count in cases.items() if count]
        row = self.row([self.markdown(sentence), self.lines(said or ["that it holds"]), self.lines(held)])
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
        said = [node for each in chapter["differs"] for node in self.text(each)]
        return [self.text(chapter["commit"]), said or self.text("current: nothing that decides a result differs")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("promises", PromisesDirective)
    app.add_directive("standing", StandingDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
