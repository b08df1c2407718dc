"""Brackets around a crossing, from any start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpflat.sharpness.crossing import first_crossing


def search(target, start=0.1, tolerance=1e-3, limit=60, **arguments):
    @jax.jit
    def run(target):
        def passed(scale, seen):
            return scale > target, seen + 1

        start_array = jnp.asarray(start)
        return first_crossing(passed, start_array, tolerance, limit, state=0, **arguments)

    return run(target)


@pytest.mark.parametrize("target", [1e-6, 0.05, 0.1, 0.15, 3.0, 1e6])
def test_the_bracket_holds_the_target(target):
    found = search(target)
    assert found.low <= np.float32(target) < found.high
    assert found.within(1e-3)
    assert found.high <= found.low * (1 + 1e-3)
    assert found.low <= found.scale <= found.high
    assert found.state == found.evaluations


def test_no_more_evaluations_than_a_bracket_takes():
    """0.1, 0.2, then log₂(ln 2 / ln 1.0625) = 4 bisections (rounded up)."""
    assert search(0.15, tolerance=1 / 16).evaluations == 6


def test_one_sided_brackets_are_not_within_any_tolerance():
    never = search(np.inf, limit=5)
    assert (float(never.low), float(never.high)) == (pytest.approx(1.6), np.inf)
    assert never.scale == never.low
    always = search(0.0, limit=5)
    assert (float(always.low), float(always.high)) == (0.0, pytest.approx(0.1 / 16))
    assert always.scale == always.high
    assert not never.within(1e9)
    assert not always.within(1e9)


def test_largest_ends_a_search_without_a_crossing():
    found = search(np.inf, largest=1.0)
    assert found.low == pytest.approx(1.6)
    assert found.evaluations == 5


def test_a_limit_of_none_tries_nothing():
    found = search(1.0, limit=0)
    assert found.evaluations == 0
    assert np.isinf(found.scale)
