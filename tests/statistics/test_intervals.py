"""Intervals: hand-computed values, coverage by simulation, refusals."""

import math

import numpy as np
import pytest

from sharpflat.statistics import Interval, geometric_interval, mean_interval, overlap


def test_interval_by_hand():
    # mean 10, s = 2, n = 5; t(0.975, 4) = 2.7764451 from printed tables.
    samples = [8.0, 8.0, 10.0, 12.0, 12.0]
    reach = 2.7764451052 * 2 / math.sqrt(5)
    assert mean_interval(samples) == pytest.approx((10, 2, 10 - reach, 10 + reach, 5))


@pytest.mark.parametrize(("confidence", "t"), [(0.9, 6.3137515), (0.99, 63.6567412)])
def test_confidence_sets_the_quantile(confidence, t):
    interval = mean_interval([-1.0, 1.0], confidence)
    assert interval.high == pytest.approx(t, rel=1e-6)  # s/√n = 1
    assert interval.low == -interval.high


@pytest.mark.parametrize("n", [2, 5, 20])
def test_covers_the_truth_as_often_as_it_says(n):
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(2000):
        interval = mean_interval(generator.normal(3.0, 2.0, n))
        hits += interval.low <= 3.0 <= interval.high
    assert hits / 2000 == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))


def test_geometric_interval_covers_the_median_of_lognormal_samples():
    generator = np.random.default_rng(8)
    hits = 0
    for _ in range(2000):
        interval = geometric_interval(np.exp(generator.normal(1.0, 1.5, 5)))
        assert interval.low > 0
        hits += interval.low <= math.e <= interval.high
    assert hits / 2000 == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))


def test_geometric_interval_by_hand():
    # Logarithms (base 10) 1, 2, 3: mean 2, s = 1; t(0.975, 2) = 4.3026527.
    reach = 10 ** (4.30265273 / math.sqrt(3))
    expected = (100, 10, 100 / reach, 100 * reach, 3)
    assert geometric_interval([10.0, 100.0, 1000.0]) == pytest.approx(expected)


@pytest.mark.parametrize("function", [mean_interval, geometric_interval])
def test_one_sample_has_no_error(function):
    interval = function([2.5])
    assert (interval.mean, interval.n) == (pytest.approx(2.5), 1)
    assert np.isnan([interval.sd, interval.low, interval.high]).all()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([1.0, math.nan], r"samples\[1\] is nan"),
        ([math.inf, 1.0], r"samples\[0\] is inf"),
        ([], "expected a vector"),
        ([[1.0, 2.0]], r"shape \(1, 2\)"),
    ],
)
def test_unusable_samples_are_refused_by_name(samples, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(samples)


def test_geometric_interval_refuses_what_has_no_logarithm():
    with pytest.raises(ValueError, match=r"samples\[1\] is 0.0, expected a positive number"):
        geometric_interval([1.0, 0.0])


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
def test_confidence_out_of_range(confidence):
    with pytest.raises(ValueError, match="confidence"):
        mean_interval([1.0, 2.0], confidence)


def between(low, high):
    return Interval((low + high) / 2, 1.0, low, high, 5)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 1), (2, 3), False),
        ((0, 2), (1, 3), True),
        ((0, 9), (4, 5), True),
        ((0, 1), (1, 2), True),
    ],
)
def test_overlap(a, b, expected):
    assert overlap(between(*a), between(*b)) is expected
    assert overlap(between(*b), between(*a)) is expected


def test_overlap_of_a_single_sample_is_refused():
    with pytest.raises(ValueError, match=r"b: an interval of 1 sample"):
        overlap(between(0, 1), mean_interval([1.0]))
