"""Holm's procedure against its definition."""

import numpy as np
import pytest

from sharpflat.statistics import holm


def test_adjusted_in_the_order_given():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    assert holm([]).shape == (0,)


def test_familywise_error_is_kept():
    """Of 20 true hypotheses one is rejected in at most 5 % of families."""
    draws = np.random.default_rng(0).uniform(size=(4000, 20))
    wrong = np.mean([holm(row).min() <= 0.05 for row in draws])
    assert 0.04 < wrong < 0.06


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, np.nan])
