"""Paired comparisons: hand-computed values, exact and sampled p values, refusals."""

import math

import numpy as np
import pytest

from sharpflat.statistics import (
    log_ratio_interval,
    mean_interval,
    paired_difference,
    sign_flip_p_value,
)


def test_paired_difference_by_hand():
    # Differences 1, 2, 3: mean 2, s = 1; t(0.975, 2) = 4.3026527.
    interval = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    reach = 4.30265273 / math.sqrt(3)
    assert interval == pytest.approx((2, 1, 2 - reach, 2 + reach, 3))


def test_pairing_removes_what_the_pairs_share():
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 100, 8)
    first, second = shared + 1 + generator.normal(0, 0.1, 8), shared
    paired = paired_difference(first, second)
    assert paired.low > 0.5
    assert mean_interval(first).high - mean_interval(first).low > 50


def test_log_ratio_by_hand_and_its_inverse():
    # log2 ratios 1, 2, 3: geometric mean 4, factor 2.
    first, second = [20.0, 4.0, 80.0], [10.0, 1.0, 10.0]
    reach = 2 ** (4.30265273 / math.sqrt(3))
    assert log_ratio_interval(first, second) == pytest.approx((4, 2, 4 / reach, 4 * reach, 3))
    inverse = log_ratio_interval(second, first)
    assert (inverse.mean, inverse.low) == pytest.approx((1 / 4, 1 / (4 * reach)))


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1, 2, 3, 4, 5], 2 / 32),  # only the observed pattern and its mirror
        ([1, 1, 1, -1], 10 / 16),  # |sum| ≥ 2: all but the 6 balanced patterns
        ([0.1, 0.2, -0.3], 1.0),  # a sum of zero, up to rounding
        ([3.0], 1.0),
        ([0.0, 0.0], 1.0),
    ],
)
def test_sign_flip_is_exact_for_few_pairs(differences, expected):
    second = np.full(len(differences), 7.0)
    assert sign_flip_p_value(second + differences, second) == expected


def test_sign_flip_sampled_agrees_with_the_exact_share_of_equal_steps():
    # 20 differences of ±1 with 15 plus: p = P(|Binomial(20) − 10| ≥ 5) = 0.041389.
    differences = np.array([1.0] * 15 + [-1.0] * 5)
    p = sign_flip_p_value(differences, np.zeros(20), draws=50_000)
    assert p == pytest.approx(0.041389, abs=4 * math.sqrt(0.0414 / 50_000))
    assert p == sign_flip_p_value(differences, np.zeros(20), draws=50_000)
    assert p != sign_flip_p_value(differences, np.zeros(20), draws=50_000, seed=1)


def test_sampled_p_is_never_zero():
    assert sign_flip_p_value(np.full(40, 1.0), np.zeros(40), draws=999) == 1 / 1000


def test_p_is_uniform_where_nothing_differs():
    generator = np.random.default_rng(3)
    p = [sign_flip_p_value(generator.normal(size=8), np.zeros(8)) for _ in range(1000)]
    assert np.mean(np.array(p) <= 0.25) == pytest.approx(0.25, abs=4 * math.sqrt(0.1875 / 1000))


@pytest.mark.parametrize("function", [paired_difference, log_ratio_interval, sign_flip_p_value])
def test_refusals(function):
    with pytest.raises(ValueError, match="first has 2 samples, second has 3"):
        function([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"second\[0\] is nan"):
        function([1.0], [math.nan])


def test_ratios_of_what_is_not_positive_are_refused():
    with pytest.raises(ValueError, match=r"first\[1\] is -1.0, expected a positive"):
        log_ratio_interval([1.0, -1.0], [1.0, 1.0])
