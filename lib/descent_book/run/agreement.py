"""How far a measured value may lie from the one that another machine has: promise R2 of the reproducibility page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

UNJUDGED = "not judged at this preset"
RELATIVE = 0.5  # of the value, its spread or the bound that judges it, whichever is largest
_ROW = re.compile(r"(\| `[^`]+` \| .* \| )([^|]+)( \| )([^|]+)( \| \d+ \| [^|]+ \|)")
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?")
_SMALLEST = 2.0**-23  # what float32 cannot tell from zero beside one
_ALIKE = ("x86_64 AVX2", "x86_64 AVX512")  # sums of as many terms at a time or of twice as many


def processor(provenance: Mapping[str, object]) -> str:
    """The kind of processor of a run, on which the last bits depend, such as `x86_64 AVX2`."""
    return f"{provenance['machine']} {provenance['cpu_capability']}"


def alike(one: str, other: str) -> bool:
    """Whether all measured values are comparable between two kinds of processor.

    Between others, such as one without vector instructions, a chaotic training ends elsewhere: a value on which no
    verdict is given is not compared then, one on which a verdict is given always is.
    """
    return one == other or {one, other} <= set(_ALIKE)


def distance(one: float, other: float, spread: float = 0.0, interval: Iterable[float | None] = ()) -> float:
    """How far two values lie apart, per the largest of their sizes, of `spread` and of what a claim compares them with.

    Args:
        one: a measured value, in the claim's unit, as all the others.
        other: the same one elsewhere.
        spread: over seeds, the larger one of the two.
        interval: of the claim. Of its bounds the smallest in size that is not zero counts: beside a bound of 0.05, 0
            and -0.006 are close, though no fraction of zero says so.
    """
    bounds = [abs(bound) for bound in interval if bound]
    return abs(one - other) / max(abs(one), abs(other), spread, min(bounds, default=0.0), _SMALLEST)


def comparable(verdict: str, both_alike: bool) -> bool:
    """Whether a measured value with this verdict is compared between processors that are alike or not."""
    return both_alike or verdict != UNJUDGED


def brought(found: str, stored: str, both_alike: bool = True) -> str:
    """The table of claims `found`, in which every row that agrees with the one in `stored` is that row.

    Rows agree when their measured values, where they are `comparable`, are within `RELATIVE` of one another and all
    else is equal, the verdict above all. A text of another shape comes back as it is.
    """
    lines, kept = found.split("\n"), stored.split("\n")
    if len(lines) != len(kept):
        return found
    pairs = zip(lines, kept, strict=True)
    return "\n".join(other if _agree(one, other, both_alike) else one for one, other in pairs)


def _agree(one: str, other: str, both_alike: bool) -> bool:
    rows = [_ROW.fullmatch(line) for line in (one, other)]
    if not all(rows):
        return False
    (head, accepted, _, value, tail), (*other_head, _, other_value, other_tail) = (row.groups() for row in rows if row)
    if ([head, accepted], tail) != (other_head, other_tail):
        return False
    if not comparable(tail.strip("| ").split(" | ")[-1], both_alike):
        return True
    (mean, *spread), (other_mean, *other_spread) = (
        [float(number) for number in text.split(" ± ")] for text in (value, other_value)
    )
    bounds = [float(word) for word in accepted.split() if _NUMBER.fullmatch(word)]
    return distance(mean, other_mean, max([*spread, *other_spread, 0.0]), bounds) <= RELATIVE
