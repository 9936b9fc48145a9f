"""What was measured of claims, read back with its type, and an edition's scorecard, judged by today's registration.

This module imports numpy through the claims; the runner imports it only once no parameter can be refused any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from descent.repro.claims import Claim, JudgedClaim, Verdict, registered_claims
from descent.repro.estimates import Estimate
from descent.repro.tables import estimate_text
from descent_book.run.notebook import remedy, runner_notes
from descent_book.run.project import claims_folder

KINDS = {
    "replication": ("replication", "replications"),
    "finding": ("finding of ours", "findings of ours"),
    "check": ("check", "checks"),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measurement(_Strict):
    """What a run measured of one claim, and the verdict as the run printed it."""

    id: str
    preset: str
    measured: Estimate | None
    nulls: dict[str, Estimate]
    verdict: Verdict

    def judged_by(self, claim: Claim) -> JudgedClaim:
        """Judged by a registration; as not measured where an interval of another confidence was taken than it asks."""
        level = 1.0 if claim.kind == "check" else claim.level
        if self.measured is None or self.measured.level != level:
            return JudgedClaim(claim=claim, preset=self.preset)
        nulls = {name: claim.clipped(null) for name, null in self.nulls.items()}
        return JudgedClaim(claim=claim, preset=self.preset, measured=claim.clipped(self.measured), nulls=nulls)


class _SavedClaims(_Strict):
    """What `descent.repro.Scorecard.save` writes."""

    chapter: str
    preset: str
    claims: list[Measurement]


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, after the place where it stands: `claims.0.preset: Field required`."""
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


def read_claims(path: Path) -> list[Measurement]:
    """What `descent.repro.Scorecard.save` wrote of one chapter's claims, in their order.

    Raises:
        OSError: there is no such file.
        ValueError: the file is damaged or holds something else; the message names the file and the field.
    """
    try:
        return _SavedClaims.model_validate_json(path.read_bytes()).claims
    except ValidationError as error:
        raise ValueError(f"{path.name}: no claims of a chapter ({first_fault(error)})") from error


class ChapterResult(_Strict):
    """What one chapter's run has left.

    Attributes:
        claims: what was measured, in the order of the registration.
        seconds: that the run took.
        provenance: versions, machine, threads and seed, as `descent.repro.provenance` gives them.
    """

    claims: list[Measurement]
    seconds: float
    provenance: dict[str, Any]

    @classmethod
    def of(cls, executed: Path) -> ChapterResult | None:
        """The result that the runner noted in an executed notebook; None where there is no such notebook or note.

        Raises:
            ValueError: the notebook is damaged, or its note is not the runner's.
        """
        notes = runner_notes(executed)
        try:
            return cls(**{name: notes[name] for name in cls.model_fields if name in notes}) if notes else None
        except ValidationError as error:
            raise ValueError(f"{executed}: the runner's note: {first_fault(error)}; {remedy(executed)}") from error

    def judged(self, registration: Path, chapter: str) -> ScoredChapter:
        """The same, each claim judged by its registration in a folder; one registered since the run has no measurement.

        Raises:
            ValueError: the run measured what is no longer registered, or the registration is refused.
        """
        registered, measured = registered_claims(chapter, registration), {each.id: each for each in self.claims}
        if gone := sorted(measured.keys() - {claim.id for claim in registered.values()}):
            raise ValueError(f"{gone[0]} was judged by this edition and is no longer registered; run the chapter again")
        preset = next((each.preset for each in self.claims), "")
        judged = [
            each.judged_by(claim) if (each := measured.get(claim.id)) else JudgedClaim(claim=claim, preset=preset)
            for claim in registered.values()
        ]
        printed = {each.id: each.verdict for each in self.claims}
        since = [each.id for each in judged if printed.get(each.id, each.verdict) != each.verdict]
        return ScoredChapter(claims=judged, since=since, seconds=self.seconds, provenance=self.provenance)


class ScoredChapter(_Strict):
    """A chapter's claims, judged; `since` names those on which the chapter's own page prints another verdict."""

    claims: list[JudgedClaim]
    since: list[str] = []
    seconds: float
    provenance: dict[str, Any]


class EditionScorecard(_Strict):
    """The judged chapters of an edition, in the order of the book."""

    preset: str
    chapters: dict[str, ScoredChapter]

    @classmethod
    def collect(cls, folder: Path, preset: str, names: Sequence[str], registration: Path) -> EditionScorecard:
        """The scorecard of the executed notebooks in `folder`; a chapter without one is left out.

        Raises:
            ValueError: a notebook is damaged, its note is not the runner's, or a claim is not registered.
        """
        results = {name: ChapterResult.of(folder / f"{name}.ipynb") for name in names}
        chapters = {name: result.judged(registration, name) for name, result in results.items() if result}
        return cls(preset=preset, chapters=chapters)

    @classmethod
    def read(cls, path: Path) -> EditionScorecard:
        """A scorecard that was kept as JSON.

        Raises:
            OSError: there is no such file.
            ValueError: the file is damaged or holds something else.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path}: no scorecard of an edition ({first_fault(error)})") from error

    @property
    def claims(self) -> list[JudgedClaim]:
        """The claims of all chapters."""
        return [claim for chapter in self.chapters.values() for claim in chapter.claims]

    def summary(self) -> str:
        """Lines of text: chapter.claim, the measured value, the verdict; and the totals by kind."""
        rows = [(claim.id, estimate_text(claim.measured), claim.verdict) for claim in self.claims]
        widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
        lines = [f"{name:<{widths[0]}}  {measured:>{widths[1]}}  {verdict}" for name, measured, verdict in rows]
        return "\n".join([*lines, f"{len(rows)} claims at preset {self.preset}", *totals(self.claims)])


def decisive(root: Path, chapter: str) -> dict[str, Any]:
    """What is registered of each claim and decides its verdict: all but its words.

    Raises:
        ValueError: there is no registration, or it is refused.
    """
    return {
        name: [
            claim.kind,
            claim.statistic,
            claim.level,
            claim.single,
            bool(claim.not_testable),
            claim.accepted,
            sorted((preset, claim.region(preset)) for preset in claim.judged_at),
        ]
        for name, claim in registered_claims(chapter, claims_folder(root)).items()
    }


def totals(claims: Iterable[JudgedClaim]) -> list[str]:
    """A line for each kind of claim, the worst verdict first: `3 checks: 1 fails, 2 holds`."""
    claims = list(claims)
    lines = []
    for kind, nouns in KINDS.items():
        count = Counter(each.verdict for each in claims if each.claim.kind == kind)
        if count:
            told = [f"{count[verdict]} {verdict}" for verdict in get_args(Verdict) if count[verdict]]
            lines.append(f"{count.total()} {nouns[count.total() > 1]}: {', '.join(told)}")
    return lines
