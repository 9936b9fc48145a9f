"""Numbers, estimates and tables as a chapter shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from descent.repro.estimates import Estimate

_BAR = re.compile(r"(?<!\\)\|")  # one that is not escaped yet


def estimate_text(measured: Estimate | None) -> str:
    """`93 (84 to 101)`: the value with its interval; the value alone where there is none.

    Example:
        >>> estimate_text(Estimate(value=92.53, low=84.2, high=100.8, units=10, level=0.95))
        '93 (84 to 101)'
    """
    if measured is None:
        return "-"
    if measured.low is None or measured.high is None or measured.low == measured.high:
        return number_text(measured.value)
    width = min(measured.high - measured.low, 1e300)
    value, low, high = (number_text(each, width) for each in (measured.value, measured.low, measured.high))
    return f"{value} ({low} to {high}{', 90 %' if measured.level == 0.9 else ''})"


def nulls_text(nulls: Mapping[str, Estimate]) -> str:
    """Each null's estimate, after its name where there are several."""
    texts = {name: estimate_text(each) for name, each in nulls.items()}
    return "; ".join(f"{name} {text}" if len(texts) > 1 else text for name, text in texts.items()) or "-"


def number_text(value: float, spread: float = 0.0) -> str:
    """A number to three digits; where it has a finite spread, to two digits of that.

    Example:
        >>> number_text(0.01234), number_text(12345.6), number_text(92.53, spread=16.6)
        ('0.0123', '12346', '93')
    """
    if not 0 < spread < np.inf:
        return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
    digits = max(0, 1 - int(np.floor(np.log10(spread))))
    if digits > 6 and abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{round(value, digits) + 0.0:.{min(digits, 12)}f}"  # + 0.0 makes -0.0 to 0.0


def interval_text(interval: Sequence[float | None]) -> str:
    """An interval in words: `80.9 to 104`, `at most 0.05`, `at least 1`, `exactly 10`."""
    low, high = interval
    if low is None:
        return f"at most {_bound(high)}"
    if high is None:
        return f"at least {_bound(low)}"
    return f"{_bound(low)} to {_bound(high)}" if low != high else f"exactly {_bound(low)}"


def _bound(value: float | None) -> str:
    """A bound as it was registered: a rounded one could stand on the other side of a value that was measured."""
    number = float(value or 0)
    return np.format_float_positional(number, trim="-") if abs(number) > 1e-4 or not number else repr(number)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table. Numbers are written as `str` does, so format them before; a `|` stays within its cell.

    Raises:
        ValueError: a row has another number of cells than the header, or is a text.

    Example:
        >>> print(markdown_table(("rank", "error"), [(1, "0.50"), (2, "0.25")]))
        | rank | error |
        | --- | --- |
        | 1 | 0.50 |
        | 2 | 0.25 |
    """
    lines = [header, ["---"] * len(header), *rows]
    if bad := [row for row in lines if isinstance(row, str) or len(row) != len(header)]:
        raise ValueError(f"row {bad[0]!r}: expected {len(header)} cells, one for each of {', '.join(header)}")
    cells = [[_BAR.sub(r"\|", " ".join(str(cell).splitlines())) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
