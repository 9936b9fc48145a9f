"""Intervals against cases worked out on paper, and against their promise: how often they hold the true value."""

import numpy as np
import pytest
import scipy.stats
from pydantic import ValidationError

from descent.repro import estimates
from descent.repro.estimates import Estimate, estimate, summarised, value_range


def test_the_interval_of_a_mean_is_students() -> None:
    # by hand: mean 92, deviations -4, 4, 0, -1, 1, s = sqrt(34 / 4), t(0.975; 4) = 2.776445
    found = estimate([88.0, 96.0, 92.0, 91.0, 93.0])
    half = 2.7764451 * np.sqrt(34 / 4) / np.sqrt(5)
    assert (found.value, found.units, found.level) == (92.0, 5, 0.95)
    assert (found.low, found.high) == pytest.approx((92 - half, 92 + half), abs=1e-6)


def test_a_mean_that_is_summarised_has_the_same_interval() -> None:
    sample = np.array([1.0, 4.0, 2.5, 7.0])
    again = summarised(sample.mean(), sample.std(ddof=1), 4)
    assert again.model_dump() == pytest.approx(estimate(sample).model_dump())
    assert summarised(3.0, 0.0, 1) == Estimate(value=3.0, low=None, high=None, units=1, level=0.95)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert estimate([10, 10, 10]) == Estimate(value=10, low=10, high=10, units=3, level=0.95)


def test_six_of_six_is_wilsons_interval() -> None:
    # by hand: with p = 1 the lower end is n / (n + z^2), z = 1.959964
    found = estimate([1] * 6, "share")
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(6 / (6 + 1.959964**2), abs=1e-6)


def test_a_share_in_between_is_wilsons_interval() -> None:
    # by hand: centre (p + z^2 / 2n) / (1 + z^2 / n), p = 0.25, n = 8
    z, n, p = 1.959964, 8, 0.25
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    found = estimate([1, 0, 0, 0, 1, 0, 0, 0], "share")
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_the_interval_of_a_median_is_made_of_order_statistics() -> None:
    # of 6 values the least and the greatest hold the median with 1 - 2 / 2^6 = 96.9 %; of 5 with 93.75 % only
    assert (estimate([5, 1, 9, 3, 2, 4], "median").low, estimate([5, 1, 9, 3, 2, 4], "median").high) == (1, 9)
    few = estimate([1, 2, 3, 4, 50], "median")
    assert (few.value, few.low, few.high) == (3, None, None)


def test_one_value_has_no_interval() -> None:
    for statistic in ("mean", "median"):
        assert estimate(3.5, statistic) == Estimate(value=3.5, low=None, high=None, units=1, level=0.95)
    assert estimate([1], "share").low is None


def test_nested_units_are_resampled_by_groups_and_count_as_groups() -> None:
    groups = [np.full(100, value) for value in (0.0, 1.0, 2.0, 3.0, 4.0)]
    found, flat = estimate(groups), estimate(np.concatenate(groups))
    assert (found.units, flat.units) == (5, 500)
    assert found.value == flat.value == 2.0
    assert found.high - found.low > 10 * (flat.high - flat.low)
    assert estimate(groups) == found


def test_groups_of_different_lengths_are_weighed_by_their_rows() -> None:
    assert estimate([[0.0], [1.0, 1.0, 1.0]]).value == 0.75


def test_a_share_of_nested_units_counts_what_is_independent_among_them() -> None:
    # by hand: groups that agree within themselves, 8 of 10 all right: v = 10/9 * 10 * 0.16 / 100, n_eff = 9,
    # times (t(0.975; 49) / t(0.975; 9))^2 = (2.00958 / 2.26216)^2
    groups = [np.ones(5)] * 8 + [np.zeros(5)] * 2
    found, flat = estimate(groups, "share"), estimate(np.concatenate(groups), "share")
    count, z, p = 9 * (2.00958 / 2.26216) ** 2, 1.959964, 0.8
    half = z / (1 + z**2 / count) * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    centre = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-4)
    assert (found.value, found.units) == (0.8, 10)
    assert found.low < flat.low < flat.high < found.high


def test_a_share_of_all_nested_units_has_a_width() -> None:
    all_right = estimate([np.ones(5)] * 10, "share")  # as of ten units: whether those of a group go together is unknown
    assert (all_right.low, all_right.high) == pytest.approx((10 / (10 + 1.959964**2), 1), abs=1e-4)
    one_wrong = estimate([*[np.ones(5)] * 9, [1, 1, 1, 1, 0]], "share")
    assert one_wrong.low < all_right.low, "a miss never widens what is claimed"


@pytest.mark.parametrize("groups", [2, 3, 5, 10])
def test_the_mean_of_few_nested_groups_is_covered_as_often_as_it_says(groups: int) -> None:
    generator, hit = np.random.default_rng(7), 0
    for _ in range(1000):
        sizes = generator.integers(3, 9, size=groups)
        found = estimate([generator.normal() + 0.5 * generator.normal(size=size) for size in sizes])
        hit += found.low <= 0 <= found.high
    assert abs(hit / 1000 - 0.95) < 4 * (0.95 * 0.05 / 1000) ** 0.5


@pytest.mark.parametrize("groups", [3, 5, 10])
def test_a_nested_share_at_its_bound_is_seldom_above_it(groups: int) -> None:
    generator, above = np.random.default_rng(8), 0
    for _ in range(2000):
        agreeing = generator.random(groups) < 0.7  # rows that agree with their group
        above += estimate([np.full(20, float(each)) for each in agreeing], "share").low > 0.7
    assert above / 2000 < 0.025 + 4 * (0.025 * 0.975 / 2000) ** 0.5


def test_too_few_groups_have_no_interval_of_a_median() -> None:
    groups = [np.arange(3.0) + step for step in range(6)]
    assert (estimate(groups[:5], "median").low, estimate(groups[:5], "median").units) == (None, 5)
    assert estimate(groups, "median").low is not None


@pytest.mark.parametrize("value", [0.1, 0.7, 0.95, 1.7, 1e-9])
@pytest.mark.parametrize("units", [2, 3, 5, 7, 20])
def test_equal_values_are_their_own_interval(value: float, units: int) -> None:
    found = estimate([value] * units)
    assert (found.low, found.value, found.high) == (value, value, value)
    nested = estimate([[value] * 3] * units)
    assert (nested.low, nested.value, nested.high) == (value, value, value)
    assert value_range([value] * units).value == value


def test_an_interval_ends_where_the_quantity_does() -> None:
    found = estimate([0.9, 1.0, 1.0])
    assert found.high > 1
    assert (found.within(0, 1).low, found.within(0, 1).high) == (found.low, 1.0)
    assert found.within(None, None) == found
    with pytest.raises(ValidationError, match="expected both ends, the lower one first, or neither"):
        Estimate(value=1, low=2, high=0, units=3, level=0.95)


def test_wilsons_interval_is_scipys() -> None:
    for hits, n in ((0, 4), (3, 7), (50, 50), (1, 200)):
        ends = scipy.stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
        found = estimate([1] * hits + [0] * (n - hits), "share")
        assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=1e-12)


def test_a_statistic_of_the_rows_is_that_of_the_joined_rows() -> None:
    def slope(rows: np.ndarray) -> float:
        return float(np.polyfit(rows[:, 0], rows[:, 1], 1)[0])

    generator = np.random.default_rng(3)
    groups = [np.stack([x, 2 * x + generator.normal(size=20)], 1) for x in generator.normal(size=(8, 20))]
    found = estimate(groups, slope)
    assert found.low < 2 < found.high
    assert found.value == slope(np.concatenate(groups))


@pytest.mark.parametrize(
    ("values", "statistic", "said"),
    [
        ([], "mean", r"values=\[\]: expected finite numbers, at least one per unit"),
        ([1.0, float("nan")], "mean", "nan.*: expected finite numbers"),
        ([float("inf")], "share", "inf.*: expected finite numbers"),
        ([[1.0], []], "mean", "expected finite numbers, at least one per unit"),
        ([0, 1, 0.5], "share", "expected 0 or 1 for each unit of a share"),
        ([[1.0, 2.0], [3.0]], lambda rows: float("nan"), "the statistic of all 2 groups is nan"),
        ([[1.0], [2.0]] * 3, lambda rows: rows.mean() if len(set(rows)) > 1 else np.nan, "resamples is not finite"),
        (np.ma.masked_greater([1.0, 2.0, 9.0], 5), "mean", "expected real numbers .*masked"),
        ([1.0, np.ma.masked], "mean", "expected real numbers .*masked"),
        ([1 + 2j, 3], "mean", "expected real numbers .*complex"),
        (["12", "13"], "mean", "expected real numbers"),
        (np.ones((3, 1, 4)), "mean", "expected one number for each unit, or one list of numbers"),
        ([np.ones((3, 2))] * 2, "share", "expected one number for each unit, or one list of numbers"),
        ({1.0: 2.0}.values(), "mean", "expected real numbers"),
        ([10**400], "mean", "expected real numbers"),
        ([1e308, 1e308], "mean", "too large for a float"),
    ],
)
def test_what_has_no_estimate_is_refused(values: object, statistic: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        estimate(values, statistic)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_is_between_zero_and_one(level: float) -> None:
    with pytest.raises(ValueError, match=f"level={level}: expected a number between 0 and 1"):
        estimate([1, 2], level=level)


def test_nan_is_never_part_of_an_estimate() -> None:
    with pytest.raises(ValueError, match="finite"):
        Estimate(value=float("nan"), low=None, high=None, units=1, level=0.95)
    with pytest.raises(ValueError, match="expected finite numbers"):
        value_range([1, float("nan")])


def test_a_range_is_that_of_all_values() -> None:
    assert value_range([[1, 5], [3, 3]]) == Estimate(value=3, low=1, high=5, units=4, level=1)


def test_the_cluster_bootstrap_holds_the_truth_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "RESAMPLES", 499)
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        groups = [centre + generator.normal(size=4) for centre in generator.normal(size=10)]
        found = estimate(groups)
        held += found.low <= 0 <= found.high
    assert 0.88 < held / 200 <= 0.99
