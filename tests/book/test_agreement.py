"""Rows of a table of claims that another processor measured: which agree, and which are found to differ."""

from typing import get_args

import pytest

from descent.repro.claims import Verdict
from descent_book.run.notebook import UNJUDGED, alike, brought, distance

HEADER = "| claim | verdict | measured | accepted | null |\n| --- | --- | --- | --- | --- |"


def table(measured: str, verdict: str = "reproduced", null: str = "40 (30 to 50)", name: str = "slope") -> str:
    row = f"| `{name}` | {verdict} | {measured} | -1.25 to 3 | {null} |"
    return "\n".join([HEADER, row, "| `fixed` | holds | 1 | exactly 1 | - |"])


@pytest.mark.parametrize(
    "measured", ["2.01", "1.1", "3.9", "2.0 (1.0 to 3.0)", "-2 (-9 to 5)", "1.9 (1.8 to 2.0)"], ids=lambda each: each
)
def test_a_row_within_half_of_a_value_or_interval_is_the_stored_one(measured: str) -> None:
    stored = "2.0 (1.0 to 3.0)" if "(" in measured else "2"
    assert brought(table(measured), table(stored)) == table(stored)


@pytest.mark.parametrize("accepted", ["at least 0.05", "at most 0.05", "0.05 to 3", "-0.05 to 0", "exactly 5e-02"])
def test_beside_the_bound_that_judges_them_small_values_are_close(accepted: str) -> None:
    stored, near, far = (table(value).replace("-1.25 to 3", accepted) for value in ("0", "-0.006", "-0.06"))
    assert brought(near, stored) == stored
    assert brought(far, stored) == far


@pytest.mark.parametrize(
    "found",
    [
        table("0.9"),
        table("4.1"),
        table("2 (1 to 3)"),
        table("2", "not reproduced"),
        table("2", null="-"),
        table("2", null="100 (90 to 110)"),
        table("2", null="40 (30 to 50); 1"),
        table("2", name="other"),
        table("2").replace("-1.25", "-1.5"),
        table("2") + "\n| `more` | reproduced | 1 | 1 | - |",
        "another text",
        "",
    ],
)
def test_what_differs_by_more_or_in_anything_else_stays_and_so_fails(found: str) -> None:
    assert brought(found, table("2")) == found != table("2")


def test_rows_are_brought_one_by_one() -> None:
    found = table("2.1").replace("holds | 1 |", "holds | 9 |")
    assert brought(found, table("2")) == table("2").replace("holds | 1 |", "holds | 9 |")


def test_the_distance_is_per_the_largest_value_spread_or_nearest_bound_and_two_zeros_are_equal() -> None:
    assert distance(0, 0) == 0
    assert distance(1, 3) == distance(3, 1) == pytest.approx(2 / 3)
    assert distance(1, 3, spread=8) == 0.25
    assert distance(1, 3, spread=1, interval=(None, 4)) == 0.5
    assert distance(1, 3, interval=(-5, 40)) == 0.4
    assert distance(0, 0.01, interval=(0.0, None)) == 1
    assert distance(1e-12, -1e-12) < 1e-4  # both are zero for float32


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("x86_64 AVX512", "x86_64 AVX512", True),
        ("x86_64 AVX2", "x86_64 AVX512", True),
        ("x86_64 DEFAULT", "x86_64 AVX2", False),
        ("arm64 DEFAULT", "arm64 DEFAULT", True),
        ("arm64 DEFAULT", "x86_64 DEFAULT", False),
    ],
)
def test_processors_are_alike_or_not(one: str, other: str, expected: bool) -> None:
    assert alike(one, other) == alike(other, one) == expected


def test_what_is_not_judged_is_called_so_by_the_scorecard() -> None:
    assert UNJUDGED in get_args(Verdict)


@pytest.mark.parametrize("verdict", ["reproduced", "not reproduced"])
def test_between_unlike_processors_a_value_counts_where_a_verdict_rests_on_it(verdict: str) -> None:
    stored, near, far = (table(value, UNJUDGED) for value in ("2", "2.1", "200 (197 to 203)"))
    assert [brought(found, stored, False) for found in (near, far)] == [stored, stored]
    assert [brought(found, stored, True) for found in (near, far)] == [stored, far]
    for changed in (
        table("2", verdict),
        table("2", UNJUDGED).replace("at most", "at least").replace("-1.25", "-1.5"),
        table("2", UNJUDGED, name="other"),
    ):
        assert brought(changed, stored, False) == changed
    stored, near, far = (table(value, verdict) for value in ("2", "2.1", "200 (197 to 203)"))
    assert [brought(found, stored, False) for found in (near, far)] == [stored, far]
