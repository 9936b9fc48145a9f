"""Judged claims, read back with their type: those of one run, and the scorecard of an edition.

This module imports numpy through the claims; the runner imports it only once no parameter can be refused any more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from descent.repro.claims import JudgedClaim, value_with_spread
from descent_book.run.notebook import remedy, runner_notes


def _finite(claim: JudgedClaim) -> JudgedClaim:
    if not (math.isfinite(claim.measured) and math.isfinite(claim.spread)):
        raise ValueError(f"{claim.id}: {claim.measured} ± {claim.spread}: expected finite numbers")
    return claim


MeasuredClaim = Annotated[JudgedClaim, AfterValidator(_finite)]  # JSON as Python writes it may hold NaN


class _SavedClaims(BaseModel, extra="forbid"):
    """What `descent.repro.Scorecard.save` writes."""

    chapter: str
    preset: str
    claims: list[MeasuredClaim]


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, after the place where it stands: `claims.0.seeds: Field required`."""
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


def read_claims(path: Path) -> list[JudgedClaim]:
    """The claims of one chapter that `descent.repro.Scorecard.save` wrote, in their order.

    Raises:
        OSError: there is no such file.
        ValueError: the file is damaged or holds something else; the message names the file and the field.
    """
    try:
        return _SavedClaims.model_validate_json(path.read_bytes()).claims
    except ValidationError as error:
        raise ValueError(f"{path.name}: no claims of a chapter ({first_fault(error)})") from error


class ChapterResult(BaseModel):
    """What one chapter's run has left.

    Attributes:
        claims: in the order in which the chapter judged them.
        seconds: that the run took.
        provenance: versions, machine, threads and seed, as `descent.repro.provenance` gives them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    claims: list[MeasuredClaim]
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


class EditionScorecard(BaseModel):
    """The results of an edition's chapters, in the order of the book."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str
    chapters: dict[str, ChapterResult]

    @classmethod
    def collect(cls, folder: Path, preset: str, names: Sequence[str]) -> EditionScorecard:
        """The scorecard of the executed notebooks in `folder`; a chapter without one is left out.

        Raises:
            ValueError: a notebook is damaged, or its note is not the runner's.
        """
        results = {name: ChapterResult.of(folder / f"{name}.ipynb") for name in names}
        return cls(preset=preset, chapters={name: result for name, result in results.items() if result})

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
        """Lines of text: chapter.claim, the measured value, the verdict; and the totals."""
        rows = [(claim.id, value_with_spread(claim.measured, claim.spread), claim.verdict) for claim in self.claims]
        widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
        lines = [f"{name:<{widths[0]}}  {measured:>{widths[1]}}  {verdict}" for name, measured, verdict in rows]
        verdicts: list[str] = [verdict for *_, verdict in rows]
        counts = [f"{verdicts.count(each)} {each}" for each in sorted(set(verdicts), key=verdicts.count)]
        return "\n".join([*lines, f"{len(rows)} claims at preset {self.preset}: {', '.join(counts) or 'none'}"])
