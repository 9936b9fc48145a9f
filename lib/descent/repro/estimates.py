"""Estimates over repeated units, each with its interval: of a mean, a median, a share, and of nested units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

Statistic = Literal["mean", "median", "share"]
RESAMPLES = 4999  # of the cluster bootstrap; the ends of a 95 % interval then vary by 2 % of its width
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Estimate(BaseModel):
    """One number over repeated units, with its interval.

    Attributes:
        value: the mean, the median or the share.
        low: lower end of the interval; None where the units are too few for one.
        high: upper end, likewise.
        units: how many units were measured; of nested units, how many groups.
        level: the confidence of the interval, such as 0.95; 1 for the least and the greatest of all values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Finite
    low: Finite | None
    high: Finite | None
    units: int = Field(ge=1)
    level: float = Field(gt=0, le=1)


def estimate(
    values: ArrayLike | Sequence[ArrayLike],
    statistic: Statistic | Callable[[NDArray[np.float64]], float] = "mean",
    level: float = 0.95,
) -> Estimate:
    """The mean, median or share of independent units, with its interval; or a statistic of nested ones.

    The interval of a mean is Student's, that of a share is Wilson's (1927), that of a median is made of order
    statistics, which are too few below six units at 95 %. Where `values` holds a sequence for each group, such as the
    points of each training run, or `statistic` is a function, whole groups are drawn with replacement (a cluster
    bootstrap), and the percentiles are widened for few groups as Hesterberg advises (2015, What Teachers Should Know
    About the Bootstrap). A share of nested units has Wilson's interval at their effective number.

    Args:
        values: one number per unit, 0 or 1 for a share; or one array of rows per group, whose first axis is joined.
        statistic: of the values; or a function of the joined rows of the groups that gives a number.
        level: confidence of the interval, between 0 and 1.

    Raises:
        ValueError: there is no value, one is not finite, one of a share is neither 0 nor 1, or the statistic of a
            resample is not finite.

    Example:
        >>> found = estimate([95.0, 87.0, 91.0, 99.0, 88.0])
        >>> found.value, round(found.low, 2), round(found.high, 2), found.units
        (92.0, 85.79, 98.21, 5)
        >>> round(estimate([1, 1, 1, 1, 1, 1], "share").low, 3)
        0.61
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a number between 0 and 1")
    listed = list(values) if isinstance(values, (list, tuple)) else list(np.atleast_1d(np.asarray(values, dtype=float)))
    groups = [np.atleast_1d(np.asarray(each, dtype=float)) for each in listed]
    if not groups or any(0 in group.shape or not np.isfinite(group).all() for group in groups):
        raise ValueError(f"values={_shown(values)}: expected finite numbers, at least one per unit")
    if statistic == "share" and not all(np.isin(group, (0, 1)).all() for group in groups):
        raise ValueError(f"values={_shown(values)}: expected 0 or 1 for each unit of a share")
    if callable(statistic) or any(len(group) > 1 for group in groups):
        return _of_groups(groups, statistic, level)
    sample = np.concatenate(groups)
    low, high = {"mean": _student, "median": _order, "share": _wilson}[statistic](sample, level)
    value = float(np.median(sample) if statistic == "median" else sample.mean())
    return Estimate(value=value, low=low, high=high, units=len(sample), level=level)


def summarised(mean: float, deviation: float, units: int, level: float = 0.95) -> Estimate:
    """The estimate of a mean from the mean and sample standard deviation of `units` values, by Student's t.

    Example:
        >>> round(summarised(92.5, 11.6, units=10).low, 1)
        84.2
    """
    half = _half_width(deviation, units, level) if units > 1 else None
    ends = (None, None) if half is None else (mean - half, mean + half)
    return Estimate(value=mean, low=ends[0], high=ends[1], units=units, level=level)


def value_range(values: ArrayLike) -> Estimate:
    """The mean of all values with the least and the greatest of them, for a check that each value has to pass.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    sample = np.ravel(np.asarray(values, dtype=float))
    if not sample.size or not np.isfinite(sample).all():
        raise ValueError(f"values={_shown(values)}: expected finite numbers, at least one")
    ends = float(sample.min()), float(sample.max())
    return Estimate(value=float(sample.mean()), low=ends[0], high=ends[1], units=sample.size, level=1.0)


def _shown(values: Any) -> str:
    text = " ".join(str(values).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def _half_width(deviation: float, units: int, level: float) -> float:
    return float(scipy.stats.t.ppf((1 + level) / 2, units - 1) * deviation / np.sqrt(units))


def _student(sample: NDArray[np.float64], level: float) -> tuple[float | None, float | None]:
    if len(sample) < 2:
        return None, None
    half = _half_width(float(sample.std(ddof=1)), len(sample), level)
    return float(sample.mean()) - half, float(sample.mean()) + half


def _wilson(sample: NDArray[np.float64], level: float) -> tuple[float | None, float | None]:
    return _wilson_of(float(sample.mean()), len(sample), level) if len(sample) > 1 else (None, None)


def _wilson_of(share: float, count: float, level: float) -> tuple[float, float]:
    """Wilson's interval of a share of `count` units, which need not be a whole number."""
    z = scipy.stats.norm.ppf((1 + level) / 2)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _nested_share(groups: Sequence[NDArray[np.float64]], level: float) -> tuple[float, float]:
    """Wilson's interval at the effective number of units of a clustered sample, after Korn and Graubard (1998).

    It is the number at which independent units would vary as the shares of the groups do, at most their own number, and
    is made smaller for few groups. A bootstrap would give no width at all to a share of 1.
    """
    rows, hits = (np.array([measure(group) for group in groups]) for measure in (len, np.sum))
    n, k, share = int(rows.sum()), len(groups), float(hits.sum() / rows.sum())
    variance = k / (k - 1) * ((hits - rows * share) ** 2).sum() / n**2
    effective = min(n, share * (1 - share) / variance) if variance > 0 else n
    few = scipy.stats.t.ppf((1 + level) / 2, [n - 1, k - 1])
    return _wilson_of(share, effective * (few[0] / few[1]) ** 2, level)


def _order(sample: NDArray[np.float64], level: float) -> tuple[float | None, float | None]:
    ends = scipy.stats.quantile_test(sample, p=0.5).confidence_interval(level)
    low, high = (None if np.isnan(end) else float(end) for end in ends)
    return (None, None) if low is None or high is None else (low, high)


def _of_groups(groups: Sequence[NDArray[np.float64]], statistic: Any, level: float) -> Estimate:
    """The cluster bootstrap."""
    of: Any = statistic if callable(statistic) else np.median if statistic == "median" else np.mean
    value, count = float(of(np.concatenate(groups))), len(groups)
    if not np.isfinite(value):
        raise ValueError(f"the statistic of all {count} groups is {value}: expected a finite number")
    if count < 2:
        return Estimate(value=value, low=None, high=None, units=count, level=level)
    if statistic == "share":
        low, high = _nested_share(groups, level)
        return Estimate(value=value, low=low, high=high, units=count, level=level)
    generator = np.random.default_rng(0)  # the same groups have the same interval, on every machine
    drawn = [generator.integers(count, size=count) for _ in range(RESAMPLES)]
    resampled = np.array([float(of(np.concatenate([groups[i] for i in chosen]))) for chosen in drawn])
    if not np.isfinite(resampled).all():
        bad = int((~np.isfinite(resampled)).sum())
        raise ValueError(f"the statistic of {bad} of {RESAMPLES} resamples is not finite: the groups are too few")
    tail = scipy.stats.norm.cdf(-np.sqrt(count / (count - 1)) * scipy.stats.t.ppf((1 + level) / 2, count - 1))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value=value, low=float(low), high=float(high), units=count, level=level)
