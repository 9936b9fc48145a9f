"""One row of a forest plot, as SVG: an estimate in units of the accepted region, and the null beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from descent.repro.claims import Interval, JudgedClaim
from descent.repro.estimates import Estimate

WIDTH, HEIGHT, EDGE = 300, 34, 8  # in SVG units; nothing is drawn nearer to an end than EDGE


def position(region: Interval, estimates: Sequence[Estimate]) -> tuple[Callable[[float], float], float, float]:
    """Where a value stands, as a share of the width, and where the region begins and ends.

    A region with two bounds is the middle third of the row, so that rows can be compared. One with a single bound
    begins at 0.4 or ends at 0.6, and the farthest end of the estimate is 0.35 away from it.

    Args:
        region: its bounds; None is an open end.
        estimates: the claim's own estimate, whose ends set the scale where the region has none.
    """
    low, high = region
    ends = [end for each in estimates for end in (each.value, each.low, each.high) if end is not None]
    if low is not None and high is not None and low < high:
        return (lambda value: 1 / 3 + (value - low) / (high - low) / 3), 1 / 3, 2 / 3
    bound = low if low is not None else high
    assert bound is not None
    scale = max((abs(end - bound) for end in ends), default=0.0) or abs(bound) or 1.0
    at = 0.5 if low == high else 0.4 if high is None else 0.6
    begin, end = (0.49, 0.51) if low == high else (at, 1.0) if high is None else (0.0, at)
    return (lambda value: at + 0.35 * (value - bound) / scale), begin, end


def strip(judged: JudgedClaim) -> str:
    """The row of a claim that was measured, as an SVG element; empty for one that was not.

    It is hidden from screen readers: the card says the same numbers in words below it.
    """
    if judged.measured is None:
        return ""
    region = judged.claim.region(judged.preset)
    place, begin, end = position(region, [judged.measured])

    def x(value: float) -> float:
        return min(max(place(value) * WIDTH, EDGE), WIDTH - EDGE)

    def mark(estimate: Estimate, y: int, kind: str) -> str:
        outside = not EDGE <= place(estimate.value) * WIDTH <= WIDTH - EDGE
        at = x(estimate.value)
        line = ""
        if estimate.low is not None and estimate.high is not None:
            line = f'<path d="M{x(estimate.low):.4g} {y}H{x(estimate.high):.4g}"/>'
        tip = 5 if at > WIDTH / 2 else -5
        dot = (
            f'<path d="M{at + tip:.4g} {y}l{-1.5 * tip:g}-4v8z"/>'
            if outside
            else f'<circle cx="{at:.4g}" cy="{y}" r="4"/>'
        )
        return f'<g class="{kind}">{line}{dot}</g>'

    nulls = "".join(mark(null, HEIGHT - 8, "null") for null in judged.nulls.values())
    return (
        f'<svg class="forest" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">'
        f'<rect class="region" x="{begin * WIDTH:.4g}" width="{(end - begin) * WIDTH:.4g}" height="{HEIGHT}"/>'
        f"{mark(judged.measured, 11, 'measured')}{nulls}</svg>"
    )
