"""Claims that could be false, and verdicts computed from a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field, model_validator

from descent.repro.files import write_json

Verdict = Literal["reproduced", "not reproduced", "not judged at this preset"]


class Claim(BaseModel):
    """One sentence of a source that could be false.

    Attributes:
        id: chapter and name, `gradient_svd.count_at_0.1`.
        cite: the source's key in `book/references.bib`.
        sentence: the claim.
        source: the source's number, as it gives it.
        interval: closed interval in which our mean over seeds counts as agreement; None is an open end.
        interval_from: where that interval comes from.
        judged_at: the presets at which a verdict is given.

    Raises:
        ValueError: a field has another form, the interval has no bound at all, or its lower bound is the larger one.

    Example:
        >>> claim = Claim(id="gradient_svd.count", cite="baker2022", sentence="Some 90 values lie above a tenth",
        ...               source="92.5", interval=(80, 104), interval_from="the source's deviation",
        ...               judged_at=("paper",))
        >>> judged = claim.judge([95.0, 87.0], preset="paper")
        >>> judged.measured, judged.seeds, judged.verdict
        (91.0, 2, 'reproduced')
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9_]+\.[a-z0-9_.]+$")
    cite: str = Field(min_length=1)
    sentence: str = Field(min_length=10)
    source: str
    interval: tuple[float | None, float | None]
    interval_from: str = Field(min_length=5)
    judged_at: tuple[str, ...]

    @model_validator(mode="after")
    def _can_fail(self) -> Claim:
        low, high = self.interval
        if low is None and high is None:
            raise ValueError(f"{self.id}: an interval open at both ends cannot be missed; give one bound")
        if low is not None and high is not None and low > high:
            raise ValueError(f"{self.id}: interval={self.interval}: expected the lower bound first")
        return self

    def judge(self, values: ArrayLike, preset: str) -> JudgedClaim:
        """The verdict on `values` (one for each seed, or a single number) measured at `preset`.

        The claim is reproduced if the mean over seeds lies in the interval. The spread is the sample standard
        deviation over seeds, and 0 for a single value.

        Raises:
            ValueError: there is no value, or one that is not finite.
        """
        sample = np.atleast_1d(np.asarray(values, dtype=float))
        if sample.size == 0 or not np.isfinite(sample).all():
            raise ValueError(f"{self.id}: values={sample.tolist()}: expected finite numbers, one per seed")
        mean, low, high = float(sample.mean()), self.interval[0], self.interval[1]
        inside = (low is None or mean >= low) and (high is None or mean <= high)
        verdict: Verdict = "reproduced" if inside else "not reproduced"
        if preset not in self.judged_at:
            verdict = "not judged at this preset"
        spread = float(sample.std(ddof=1)) if sample.size > 1 else 0.0
        return JudgedClaim(
            **self.model_dump(), preset=preset, measured=mean, spread=spread, seeds=sample.size, verdict=verdict
        )


class JudgedClaim(Claim):
    """A claim with what was measured at `preset`: mean over seeds, sample standard deviation, seeds, verdict."""

    preset: str
    measured: float
    spread: float
    seeds: int
    verdict: Verdict


class Scorecard:
    """The claims of one chapter at one preset, in the order in which the chapter judges them.

    In a notebook it shows itself as a table.
    """

    def __init__(self, chapter: str, preset: str) -> None:
        self.chapter = chapter
        self.preset = preset
        self.claims: list[JudgedClaim] = []

    def claim(self, name: str, values: ArrayLike, **fields: Any) -> JudgedClaim:
        """Judge `Claim(id="<chapter>.<name>", **fields)` on `values`, one for each seed, and keep the result.

        Raises:
            ValueError: the name was judged before, a field is refused by `Claim`, or `values` are not finite.
        """
        claim = Claim(id=f"{self.chapter}.{name}", **fields)
        if claim.id in [earlier.id for earlier in self.claims]:
            raise ValueError(f"id={claim.id!r} was judged before in this chapter")
        judged = claim.judge(values, self.preset)
        self.claims.append(judged)
        return judged

    def only(self, *names: str) -> Scorecard:
        """The part of the card with these claims, to be shown beside their figures.

        Raises:
            ValueError: one of them was not judged.
        """
        known = {claim.id.split(".", 1)[1]: claim for claim in self.claims}
        if bad := [name for name in names if name not in known]:
            raise ValueError(f"claim {bad[0]!r}: expected one of {', '.join(known)}")
        part = Scorecard(self.chapter, self.preset)
        part.claims = [known[name] for name in names]
        return part

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: chapter, preset, claims."""
        claims = [claim.model_dump(mode="json") for claim in self.claims]
        return {"chapter": self.chapter, "preset": self.preset, "claims": claims}

    def save(self, folder: str | Path) -> None:
        """Write `folder/claims.json`, atomically; if `folder` is empty, nothing is kept."""
        if str(folder):
            write_json(Path(folder) / "claims.json", self.as_dict())

    def __repr__(self) -> str:
        rows = []
        for claim in self.claims:
            measured, accepted = value_with_spread(claim.measured, claim.spread), interval_text(claim.interval)
            name = claim.id.split(".", 1)[1]
            rows.append((f"`{name}`", claim.source, accepted, measured, claim.seeds, claim.verdict))
        return markdown_table(("claim", "the source", "accepted", "measured", "seeds", "verdict"), rows)

    _repr_markdown_ = __repr__


def value_with_spread(value: float, spread: float = 0.0) -> str:
    """`value ± spread`, with the spread to one digit and the value to as many decimals; without a spread, three digits.

    Example:
        >>> value_with_spread(92.53, 11.6), value_with_spread(0.01234)
        ('93 ± 12', '0.0123')
    """
    if spread <= 0:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    digits = max(0, -math.floor(math.log10(spread)))
    return f"{value:.{digits}f} ± {spread:.{digits}f}"


def interval_text(interval: Sequence[float | None]) -> str:
    """An interval in words: `80.9 to 104`, `at most 0.05`, `at least 1`, `exactly 10`."""
    low, high = interval
    if low is None:
        return f"at most {high:.3g}"
    if high is None:
        return f"at least {low:.3g}"
    return f"{low:.3g} to {high:.3g}" if low != high else f"exactly {low:.3g}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table. Numbers are written as `str` does, so format them before.

    Example:
        >>> print(markdown_table(("rank", "error"), [(1, "0.50"), (2, "0.25")]))
        | rank | error |
        | --- | --- |
        | 1 | 0.50 |
        | 2 | 0.25 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
