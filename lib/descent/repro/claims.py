"""Claims that could be false, registered before they are measured, and verdicts from intervals over repeated units.

A chapter registers its claims in `notebooks/claims/<chapter>.yml` and judges each by one line. A verdict is computed
from the estimate with its interval and from the null's, by the rules of `Claim.verdict`; nothing of it is ever typed.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from descent.checkout import chapter_file
from descent.repro.estimates import Estimate, Finite, Statistic, estimate, value_range

Kind = Literal["replication", "finding", "check"]
Verdict = Literal[
    "not reproduced", "not supported", "fails", "not distinguished", "inconclusive", "not indicated", "indicated",
    "reproduced", "supported", "holds", "not testable here", "not judged at this preset",
]  # fmt: skip
_WORDS: dict[str, tuple[Verdict, Verdict]] = {  # kind -> what it is called where it agrees, and where it does not
    "replication": ("reproduced", "not reproduced"),
    "finding": ("supported", "not supported"),
    "check": ("holds", "fails"),
}
FEWEST = 5  # units that a verdict at `paper` rests on; fewer can only indicate


def _plain_bounds(given: Any) -> Any:
    """Refuse what YAML makes of `yes`, and a set, which has no order."""
    if not isinstance(given, (list, tuple)) or any(isinstance(each, (bool, str)) for each in given):
        raise ValueError("expected two numbers in brackets, one of which may be `null`")
    return given


def _plain_date(given: Any) -> Any:
    """Refuse a number, which would be seconds since 1970."""
    if isinstance(given, (int, float)):
        raise ValueError("expected a date, such as 2026-01-31")
    return given


Interval = Annotated[tuple[Finite | None, Finite | None], BeforeValidator(_plain_bounds)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Scale(_Strict):
    """What one preset accepts where its scale changes it, and where that comes from."""

    accepted: Interval
    accepted_from: str = Field(alias="from", min_length=5)


class Amendment(_Strict):
    """A change of a claim after its first measurement."""

    date: Annotated[datetime.date, BeforeValidator(_plain_date)]
    reason: str = Field(min_length=10)


class Claim(_Strict):
    """One sentence that could be false, and what would decide it.

    Attributes:
        id: chapter and name, `gradient_svd.count_at_0.1`.
        kind: "replication", which a source says; "finding", ours, stated before it was measured; or "check", an
            identity that the code has to fulfil.
        sentence: the claim.
        cite: the source's key in `book/references.bib`; empty for our own.
        source: the source's number or words; for our own where the expectation comes from.
        unit: what was repeated, such as "training run"; says so where units share data, weights or a grid.
        statistic: "mean", "median" or "share" over the units.
        accepted: closed region that counts as agreement; None is an open end.
        possible: least and greatest that the quantity can be, such as 0 and 1 of a cosine; intervals end there.
        accepted_from: where that region comes from; `from` in the file.
        null: the control that could win: which, and how it is computed; empty for a check alone.
        judged_at: preset -> its own region, or None where the claim's own counts.
        smallest_effect: for a claim of absence, the smallest effect that would matter, in words. It is judged by two
            one-sided tests at 5 % each, which is a 90 % interval inside the region.
        single: whether fewer than five units can be had, so that the claim can only be indicated.
        not_testable: why the source's scale or data cannot be had here, and what would be needed.
        amended: every change after the first measurement.

    Raises:
        ValueError: a field has another form, or the claim could not fail.
    """

    id: str = Field(pattern=r"^[a-z0-9_]+\.[a-z0-9_.]+$")
    kind: Kind
    sentence: str = Field(min_length=10)
    cite: str = ""
    source: str = Field(min_length=1)
    unit: str = Field(min_length=3)
    statistic: Statistic = "mean"
    accepted: Interval
    possible: Interval = (None, None)
    accepted_from: str = Field(alias="from", min_length=5)
    null: str = ""
    judged_at: dict[str, Scale | None]
    smallest_effect: str = ""
    single: bool = False
    not_testable: str = ""
    amended: tuple[Amendment, ...] = ()

    @model_validator(mode="after")
    def _can_fail(self) -> Claim:
        for low, high in (self.accepted, *(scale.accepted for scale in self.judged_at.values() if scale)):
            if low is None and high is None:
                raise ValueError(f"accepted={low, high}: a region open at both ends cannot be missed; give one bound")
            if low is not None and high is not None and low > high:
                raise ValueError(f"accepted={low, high}: expected the lower bound first")
            if self.smallest_effect and (low is None or high is None):
                raise ValueError(f"accepted={low, high}: a claim of absence needs both bounds")
            beyond = (low or 0) >= 1 or (high is not None and high <= 0)
            if beyond and self.statistic == "share" and self.kind != "check":
                raise ValueError(f"accepted={low, high}: no interval of a share lies there, whatever is measured")
        if not (self.judged_at or self.not_testable) or (self.kind != "check" and "custom" in self.judged_at):
            given = list(self.judged_at)
            raise ValueError(f"judged_at={given}: expected presets, at least one; only a check holds at `custom`")
        if self.kind == "replication" and not self.cite:
            raise ValueError("cite: a replication names its source")
        if self.kind != "check" and not (self.null or self.not_testable):
            raise ValueError(f"null: a {self.kind} names the control that could win")
        return self

    @property
    def name(self) -> str:
        """The id without the chapter."""
        return self.id.partition(".")[2]

    @property
    def level(self) -> float:
        """The confidence of the interval that decides: 0.9 for a claim of absence, else 0.95."""
        return 0.9 if self.smallest_effect else 0.95

    def region(self, preset: str) -> Interval:
        """What counts as agreement at a preset."""
        scale = self.judged_at.get(preset)
        return scale.accepted if scale else self.accepted

    def region_from(self, preset: str) -> str:
        """Where `region(preset)` comes from."""
        scale = self.judged_at.get(preset)
        return scale.accepted_from if scale else self.accepted_from

    def measure(self, values: Any, of: Callable[[NDArray[np.float64]], float] | None = None) -> Estimate:
        """The estimate that decides, from one value per unit; of a check the range of all values."""
        if self.kind == "check":
            if of is not None:
                raise ValueError("of: a check looks at every value, and takes no function of them")
            return value_range(values)
        return self.clipped(estimate(values, of or self.statistic, self.level))

    def clipped(self, measured: Estimate) -> Estimate:
        """The estimate, its interval no wider than what is possible."""
        return measured.within(*self.possible)

    def verdict(self, preset: str, measured: Estimate | None, nulls: Mapping[str, Estimate]) -> tuple[Verdict, str]:
        """The verdict and the reason for it.

        - The claim agrees ("reproduced", "supported") where the whole interval lies in the region, and no null's value.
        - Where a null's value lies there too, however wide its interval, the claim is "not distinguished" from it.
        - It disagrees ("not reproduced", "not supported") where the whole interval lies outside.
        - All else is "inconclusive": also a claim whose registered null was not measured.
        - A claim on units too few for an interval, or fewer than five at `paper`, is "indicated" or "not indicated".
        - A check "holds" where every value lies in the region.
        """
        agrees, disagrees = _WORDS[self.kind]
        if self.not_testable:
            return "not testable here", self.not_testable
        if preset not in self.judged_at:
            return "not judged at this preset", f"judged at {', '.join(self.judged_at) or 'no preset'}"
        if measured is None:
            return "not judged at this preset", "registered since this run"
        region = self.region(preset)
        place = _place(measured, region)
        if self.kind == "check":
            return (agrees if place == "inside" else disagrees), f"values are {place} of what is accepted"
        few = self.single or measured.low is None or (preset == "paper" and measured.units < FEWEST)
        if place == "across":
            best = estimate([1.0] * measured.units, "share").low if self.statistic == "share" else None
            if best is not None and region[0] is not None and best < region[0]:
                return "inconclusive", f"{measured.units} units are too few: all of them would give {best:.2f} to 1"
            return "inconclusive", "the interval lies across a bound of what is accepted"
        if place == "outside":
            return ("not indicated" if few else disagrees), _told(measured, "outside")
        if passed := [name for name, null in nulls.items() if _contains(region, null.value)]:
            return "not distinguished", f"the null ({', '.join(passed)}) lies inside, too"
        if not nulls:
            return "inconclusive", "the null that is registered was not measured in this run"
        return ("indicated" if few else agrees), _told(measured, "inside")


def _told(measured: Estimate, place: str) -> str:
    alone = "the only value" if measured.units == 1 else "the value, of too few units for an interval,"
    what = f"the {measured.level:.0%} interval" if measured.low is not None else alone
    return f"{what} lies {place} of what is accepted; {measured.units} unit{'s' * (measured.units > 1)}"


def _place(measured: Estimate, region: Interval) -> Literal["inside", "outside", "across"]:
    """Where an interval lies, the value alone where there is none."""
    low, high = (measured.value if end is None else end for end in (measured.low, measured.high))
    if _contains(region, low) and _contains(region, high):
        return "inside"
    apart = (region[0] is not None and high < region[0]) or (region[1] is not None and low > region[1])
    return "outside" if apart else "across"


def _contains(region: Interval, value: float) -> bool:
    return (region[0] is None or value >= region[0]) and (region[1] is None or value <= region[1])


class JudgedClaim(_Strict):
    """A claim with what was measured of it at `preset`; None where it was not."""

    claim: Claim
    preset: str
    measured: Estimate | None = None
    nulls: dict[str, Estimate] = {}

    @property
    def id(self) -> str:
        """The claim's id."""
        return self.claim.id

    @property
    def verdict(self) -> Verdict:
        """What `Claim.verdict` says of what was measured."""
        return self.claim.verdict(self.preset, self.measured, self.nulls)[0]

    @property
    def reason(self) -> str:
        """Why the verdict is what it is."""
        return self.claim.verdict(self.preset, self.measured, self.nulls)[1]

    def as_dict(self) -> dict[str, Any]:
        """What was measured, as plain JSON values; the registration stays where it is."""
        return {**self.model_dump(mode="json", exclude={"claim"}), "id": self.id, "verdict": self.verdict}


def registered_claims(chapter: str, folder: str | Path | None = None) -> dict[str, Claim]:
    """The claims of a chapter by name, from `notebooks/claims/<chapter>.yml`, in its order.

    Args:
        chapter: its name.
        folder: that holds `<chapter>.yml`; None for the checkout's own, or those that were installed with the library.

    Raises:
        ValueError: there is no such file, or it is refused: the message names file, claim and field.
    """
    path = Path(folder) / f"{chapter}.yml" if folder else chapter_file(f"claims/{chapter}.yml")
    fields = read_mapping(path)
    claims = {}
    for name, given in fields.items():
        if isinstance(given, dict) and "id" in given:
            raise ValueError(f"{path.name}: {name}: id: the chapter and the claim's name make it; leave it out")
        try:
            claims[name] = Claim(**{"id": f"{chapter}.{name}", **(given if isinstance(given, dict) else {"": given})})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "claim"
            raise ValueError(f"{path.name}: {name}: {field}: {first['msg']}") from error
    return claims


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds `name: value`, each name once.

    Raises:
        ValueError: there is no such file, it is no mapping, or it names something twice.
    """

    class Loader(yaml.SafeLoader):
        pass

    def once(loader: Any, node: Any) -> dict[str, Any]:
        names = [str(key.value) for key, _ in node.value]  # a name as it is written: `null` is one, too
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.YAMLError(f"{twice[0]!r} stands there twice")
        if "<<" in names:
            raise yaml.YAMLError("merge keys (<<) are not read; write the fields out")
        return dict(zip(names, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True))

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, once)
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise ValueError(f"{path}: no such file can be read") from error
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:  # such as 2026-02-30, or Latin-1
        raise ValueError(f"{path.name}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name}: expected lines `name: value`")
    return found
