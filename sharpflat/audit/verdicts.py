"""Whether a change moved a metric, beyond what rounding, solvers and chance explain."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from sharpflat.sharpness import Estimate

Verdict = Literal["invariant", "fooled", "undecided"]

SAME = 0.005
"""Relative: rounding, and what solvers leave, is below it."""
TOLERANCE = 0.02
"""Relative: a solver's certificate is within 1 %, and there are two of them."""
RESOLUTION = 0.2
"""A comparison that cannot tell a change of this size decides nothing."""
PAIRED = 1e-3
"""Closer than this, two random estimates drew the same numbers to the same effect."""
FAR = 0.5
"""Beyond this (a factor of two) a change is believed without certificates."""


def verdict(before: Estimate, after: Estimate) -> Verdict:
    """Whether a change moved a metric: `fooled` if so, `invariant` if not, else `undecided`.

    With d = |after − before|, m the larger of the two magnitudes and s the combined standard error,

    - `fooled`: d > 2 % m + 3 s; and d > m / 2, a factor of two, where a certificate did not hold or
      a standard error is not known;
    - `invariant`: both certificates held, d ≤ 0.5 % m + 3 s, and that bound is at most 20 % m (or d
      below 0.1 % m, which random estimates reach only where the change leaves each draw alone);
    - `undecided`: all else, and what is not finite.
    """
    values = np.array([before.value, after.value])
    if not np.isfinite(values).all():
        return "undecided"
    difference, size = float(np.ptp(values)), float(np.abs(values).max())
    noise = 3 * math.hypot(before.standard_error or 0, after.standard_error or 0)
    certified = before.converged and after.converged
    known = None not in (before.standard_error, after.standard_error)
    if difference > max(TOLERANCE * size + noise, 0 if certified and known else FAR * size):
        return "fooled"
    resolved = SAME * size + noise <= RESOLUTION * size or difference <= PAIRED * size
    same = difference <= SAME * size + noise
    return "invariant" if certified and same and resolved else "undecided"


def factor(before: float, after: float) -> float:
    """After over before; 1 where both are the same, if only 0."""
    if before == after:
        return 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(after) / before)


def far(factor: float) -> float:
    """How far from 1; a change of sign is the farthest."""
    return abs(math.log(factor)) if 0 < factor < math.inf else math.inf


def factor_error(before: Estimate, after: Estimate) -> float | None:
    """Standard error of the factor, the two taken for independent; None where one is not known.

    0 where both are exact, and where they drew the same numbers to the same effect.
    """
    errors = (before.standard_error, after.standard_error)
    if errors == (0, 0) or abs(after.value - before.value) <= PAIRED * abs(before.value):
        return None if None in errors else 0.0
    if None in errors or not (before.value and math.isfinite(before.value)):
        return None
    ratio = after.value / before.value
    return math.hypot(errors[1] or 0, ratio * (errors[0] or 0)) / abs(before.value)
