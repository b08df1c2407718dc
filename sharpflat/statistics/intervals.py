"""Student's t intervals of a mean, on the plain and on the log scale."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import scipy.special


class Interval(NamedTuple):
    """A mean and where it lies.

    Attributes:
        mean: the estimate.
        sd: the samples' standard deviation (ddof = 1); nan for one sample.
        low: lower end of the confidence interval; nan for one sample.
        high: its upper end; nan for one sample.
        n: number of samples.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int


def mean_interval(samples: Any, confidence: float = 0.95) -> Interval:
    """The mean x̄ with its Student-t interval x̄ ± t₍ₙ₋₁₎ s/√n.

    Args:
        samples: `[n]` independent, roughly normal numbers, n ≥ 1.
        confidence: the interval's coverage, between 0 and 1.

    Returns:
        The interval; of one sample, which says nothing of its error, `sd` and both ends are nan.

    Raises:
        ValueError: no samples, one that is not finite (named), or a confidence outside (0, 1).

    Example:
        >>> mean_interval([1.0, 2.0, 3.0]).high.__round__(3)
        4.484

    Source: Student (1908), The probable error of a mean.
    """
    values = as_samples(samples, "samples")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, math.nan, 1)
    sd = float(values.std(ddof=1))
    reach = float(scipy.special.stdtrit(n - 1, (1 + confidence) / 2)) * sd / math.sqrt(n)
    return Interval(mean, sd, mean - reach, mean + reach, n)


def geometric_interval(samples: Any, confidence: float = 0.95) -> Interval:
    """The geometric mean with the t interval of the logarithms, carried back by exp.

    Args:
        samples: `[n]` positive numbers.
        confidence: the interval's coverage, between 0 and 1.

    Returns:
        `mean`, `low` and `high` in the samples' unit; `sd` is the geometric standard deviation
        exp(s of the logarithms): a factor, one sd reaches from mean/sd to mean·sd.

    Raises:
        ValueError: as `mean_interval`, or a sample that is not positive (named).

    Example:
        >>> round(geometric_interval([1.0, 100.0]).mean, 6)
        10.0
    """
    logs = mean_interval(np.log(as_samples(samples, "samples", positive=True)), confidence)
    with np.errstate(over="ignore"):  # two samples far apart reach beyond any float
        mean, sd, low, high = (float(x) for x in np.exp(logs[:4]))
    return Interval(mean, sd, low, high, logs.n)


def overlap(a: Interval, b: Interval) -> bool:
    """Whether two intervals have a point in common.

    Overlap does not show that means agree: for runs paired by seed use `paired_difference`.

    Raises:
        ValueError: an interval of one sample, which has no ends.
    """
    for name, interval in (("a", a), ("b", b)):
        if math.isnan(interval.low) or math.isnan(interval.high):
            raise ValueError(f"{name}: an interval of {interval.n} sample(s) has no ends")
    return a.low <= b.high and b.low <= a.high


def as_samples(samples: Any, name: str, positive: bool = False) -> np.ndarray:
    """`samples` as a float64 vector, every one of them usable.

    Raises:
        ValueError: not a vector, empty, or an entry that is not finite (or not positive); named.
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name}: expected a vector of numbers, got shape {values.shape}")
    usable = np.isfinite(values) & ((values > 0) | (not positive))
    if not usable.all():
        first = int(np.argmin(usable))
        wanted = "a positive number" if positive else "a finite number"
        raise ValueError(f"{name}[{first}] is {values[first]}, expected {wanted}")
    return values
