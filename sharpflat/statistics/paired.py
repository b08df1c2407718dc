"""Comparisons of two settings whose samples come in pairs (the same seed in both)."""

from __future__ import annotations

from typing import Any

import numpy as np

from sharpflat.statistics.intervals import Interval, as_samples, geometric_interval, mean_interval

EXACT_UP_TO = 16


def paired_difference(first: Any, second: Any, confidence: float = 0.95) -> Interval:
    """The mean of first − second over pairs, with its t interval.

    Args:
        first: `[n]` numbers, one a pair.
        second: `[n]` numbers, in the same order.
        confidence: the interval's coverage, between 0 and 1.

    Raises:
        ValueError: other lengths, no pairs, a number that is not finite (named).

    Example:
        >>> paired_difference([3.0, 5.0], [1.0, 2.0]).mean
        2.5
    """
    return mean_interval(np.subtract(*_pairs(first, second)), confidence)


def log_ratio_interval(first: Any, second: Any, confidence: float = 0.95) -> Interval:
    """The geometric mean of first/second over pairs, with the t interval of the log ratios.

    Args:
        first: `[n]` positive numbers, one a pair.
        second: `[n]` positive numbers, in the same order.
        confidence: the interval's coverage, between 0 and 1.

    Returns:
        `mean`, `low` and `high` are ratios; `sd` is a factor, as in `geometric_interval`.

    Raises:
        ValueError: other lengths, no pairs, a number that is not positive (named).

    Example:
        >>> round(log_ratio_interval([2.0, 8.0], [1.0, 1.0]).mean, 6)
        4.0
    """
    first, second = _pairs(first, second, positive=True)
    return geometric_interval(first / second, confidence)


def sign_flip_p_value(first: Any, second: Any, draws: int = 100_000, seed: int = 0) -> float:
    """Two-sided p of "the differences are symmetric about 0", by flipping their signs.

    p = the share of sign patterns s with |Σ sᵢdᵢ| ≥ |Σ dᵢ|, d = first − second. Exact up to 16
    pairs (so at least 2/2ⁿ: five pairs cannot go below 0.0625); of more pairs `draws` random
    patterns count, the observed one among them.

    Args:
        first: `[n]` numbers, one a pair.
        second: `[n]` numbers, in the same order.
        draws: random patterns, above 16 pairs.
        seed: of the random patterns.

    Raises:
        ValueError: other lengths, no pairs, a number that is not finite (named).

    Example:
        >>> sign_flip_p_value([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
        0.25

    Source: Fisher (1935), The design of experiments, section 21.
    """
    differences = np.subtract(*_pairs(first, second))
    n = len(differences)
    # Patterns that tie with the observed one must count though their sums round differently.
    bound = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    if n <= EXACT_UP_TO:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ differences) >= bound))
    generator = np.random.default_rng(seed)
    rows = max(1, 2**20 // n)
    extreme = sum(
        int(np.sum(np.abs((1 - 2 * generator.integers(0, 2, (size, n))) @ differences) >= bound))
        for size in (min(rows, draws - begin) for begin in range(0, draws, rows))
    )
    return (1 + extreme) / (1 + draws)


def _pairs(first: Any, second: Any, positive: bool = False) -> tuple[np.ndarray, np.ndarray]:
    a, b = as_samples(first, "first", positive), as_samples(second, "second", positive)
    if len(a) != len(b):
        raise ValueError(f"pairs: first has {len(a)} samples, second has {len(b)}")
    return a, b
