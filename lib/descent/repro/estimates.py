"""Estimates over repeated units, each with its interval: of a mean, a median, a share, and of nested units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

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

    Raises:
        ValueError: a number that is not finite, one end without the other, or ends in the wrong order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Finite
    low: Finite | None
    high: Finite | None
    units: int = Field(ge=1)
    level: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _has_both_ends_in_order(self) -> Estimate:
        if (self.low is None) != (self.high is None) or (self.low or 0) > (self.high or 0):
            raise ValueError(f"interval {self.low} to {self.high}: expected both ends, the lower one first, or neither")
        return self

    def within(self, low: float | None, high: float | None) -> Estimate:
        """The same, with the ends of its interval no farther than what the quantity can be; None is an open end."""
        if self.low is None or self.high is None:
            return self
        least, greatest = -np.inf if low is None else low, np.inf if high is None else high
        ends = {"low": max(self.low, least), "high": min(self.high, greatest)}
        return self.model_copy(update={name: float(end) for name, end in ends.items()})


def estimate(
    values: ArrayLike | Sequence[ArrayLike],
    statistic: Statistic | Callable[[NDArray[np.float64]], float] = "mean",
    level: float = 0.95,
) -> Estimate:
    """The mean, median or share of independent units, with its interval; or a statistic of nested ones.

    The interval of a mean is Student's, that of a share is Wilson's (1927), that of a median is made of order
    statistics, which are too few below six units at 95 %. `values` may hold a sequence for each group, such as the
    points of each training run. The mean of such nested units has Student's interval, with the variance between groups
    (linearised, Cochran 1977, section 9A), and their share has Wilson's at their effective number. For a median, or
    where `statistic` is a function, whole groups are drawn with replacement (a cluster bootstrap); the percentiles are
    widened for few groups as Hesterberg advises (2015, What Teachers Should Know About the Bootstrap), and below six
    groups at 95 % there is no interval, since none can be wide enough.

    Args:
        values: one number per unit, 0 or 1 for a share; or one array of rows per group, whose first axis is joined.
        statistic: of the values; or a function of the joined rows of the groups that gives a number.
        level: confidence of the interval, between 0 and 1.

    Raises:
        ValueError: there is no value, one is masked or not a finite real number, one of a share is neither 0 nor 1,
            groups are deeper than a list of numbers each, or the statistic of a resample is not finite.

    Example:
        >>> found = estimate([95.0, 87.0, 91.0, 99.0, 88.0])
        >>> found.value, round(found.low, 2), round(found.high, 2), found.units
        (92.0, 85.79, 98.21, 5)
        >>> round(estimate([1, 1, 1, 1, 1, 1], "share").low, 3)
        0.61
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a number between 0 and 1")
    listed = list(values) if isinstance(values, (list, tuple)) else list(np.atleast_1d(_numbers(values)))
    groups = [np.atleast_1d(_numbers(each)) for each in listed]
    if not groups or any(0 in group.shape or not np.isfinite(group).all() for group in groups):
        raise ValueError(f"values={_shown(values)}: expected finite numbers, at least one per unit")
    if not callable(statistic) and any(group.ndim > 1 for group in groups):
        raise ValueError(f"values={_shown(values)}: expected one number for each unit, or one list of numbers")
    if statistic == "share" and not all(np.isin(group, (0, 1)).all() for group in groups):
        raise ValueError(f"values={_shown(values)}: expected 0 or 1 for each unit of a share")
    if callable(statistic) or any(len(group) > 1 for group in groups):
        return _of_groups(groups, statistic, level)
    sample = np.concatenate(groups)
    low, high = {"mean": _student, "median": _order, "share": _wilson}[statistic](sample, level)
    value = float(np.median(sample)) if statistic == "median" else _mean(sample)
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
    sample = np.ravel(_numbers(values))
    if not sample.size or not np.isfinite(sample).all():
        raise ValueError(f"values={_shown(values)}: expected finite numbers, at least one")
    ends = float(sample.min()), float(sample.max())
    return Estimate(value=_mean(sample), low=ends[0], high=ends[1], units=sample.size, level=1.0)


def _numbers(values: Any) -> NDArray[np.float64]:
    """Values as float64; masked, complex and other values that are no real numbers are refused."""
    parts = values if isinstance(values, (list, tuple)) else [values]
    try:
        if any(np.ma.is_masked(part) for part in parts):
            raise ValueError("some are masked")
        found = np.asarray(values.detach() if hasattr(values, "detach") else values)
        if found.dtype.kind not in "biuf":
            raise ValueError(f"they are of type {found.dtype}")
        return found.astype(float)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"values={_shown(values)}: expected real numbers ({error})") from error


def _mean(sample: NDArray[np.float64]) -> float:
    """The mean; of equal values that very value, which their sum may round away from."""
    with np.errstate(over="raise"):
        try:
            return float(np.clip(sample.mean(), sample.min(), sample.max()))
        except FloatingPointError as error:
            raise ValueError(f"values={_shown(sample)}: their sum is too large for a float") from error


def _shown(values: Any) -> str:
    text = " ".join(str(values).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def _half_width(deviation: float, units: int, level: float) -> float:
    return float(scipy.stats.t.ppf((1 + level) / 2, units - 1) * deviation / np.sqrt(units))


def _student(sample: NDArray[np.float64], level: float) -> tuple[float | None, float | None]:
    if len(sample) < 2:
        return None, None
    deviation = float(sample.std(ddof=1)) if np.ptp(sample) else 0.0  # of equal values rounding would leave some
    half = _half_width(deviation, len(sample), level)
    return _mean(sample) - half, _mean(sample) + half


def _student_of_groups(groups: Sequence[NDArray[np.float64]], level: float) -> tuple[float, float]:
    """Student's interval of the mean of all rows, from the sums of the groups: a ratio, linearised."""
    n, k = sum(map(len, groups)), len(groups)
    mean = _mean(np.concatenate(groups))
    residuals = np.array([(group - mean).sum() for group in groups])
    half = _half_width(float(np.sqrt((residuals**2).sum() / (k - 1))) * k / n, k, level)
    return mean - half, mean + half


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
    is made smaller for few groups. From a single hit or miss, or none, it cannot be told whether those of a group go
    together; the groups count then.
    """
    rows, hits = (np.array([measure(group) for group in groups]) for measure in (len, np.sum))
    n, k, share = int(rows.sum()), len(groups), float(hits.sum() / rows.sum())
    variance = k / (k - 1) * ((hits - rows * share) ** 2).sum() / n**2
    if min(hits.sum(), n - hits.sum()) < 2:
        return _wilson_of(share, k, level)
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
    value = _mean(np.concatenate(groups)) if statistic == "mean" else value
    if not np.isfinite(value):
        raise ValueError(f"the statistic of all {count} groups is {value}: expected a finite number")
    exact = {"share": _nested_share, "mean": _student_of_groups}.get(statistic if isinstance(statistic, str) else "")
    # a percentile never leaves the values of the groups, among which are both sides of the truth too seldom when few
    if count < 2 or (exact is None and 2.0 ** (1 - count) > 1 - level):
        return Estimate(value=value, low=None, high=None, units=count, level=level)
    if exact is not None:
        low, high = exact(groups, level)
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
