"""The smoothed loss against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ONE, quadratic, rotated

import sharpflat as sf

SPECTRUM = np.array([9.0, 4.0, 1.0, 0.25])


def test_rise_is_half_sigma_squared_times_the_trace(x64):
    """Classic mistake 5: σ is a standard deviation, and the value holds the loss itself."""
    objective = quadratic(rotated(SPECTRUM), np.ones(4), floor=0.5)
    estimate = sf.measure(objective, "low_pass_filter", sigma=0.1, draws=4000)
    expected = 0.5 * 0.01 * SPECTRUM.sum()
    assert abs(estimate.details["rise"] - expected) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.03 * expected
    assert estimate.details["loss"] == 0.5
    assert estimate.value == pytest.approx(0.5 + estimate.details["rise"], rel=1e-12)
    assert estimate.converged


def test_only_the_product_of_sigma_and_root_curvature_counts(x64):
    """At the same seed (σ, H) and (10 σ, H / 100) see the same draws: 1e-6 apart at most."""
    one = sf.measure(quadratic(rotated(SPECTRUM)), "low_pass_filter", sigma=0.01)
    other = sf.measure(quadratic(rotated(SPECTRUM) / 100), "low_pass_filter", sigma=0.1)
    assert one.value == pytest.approx(other.value, rel=1e-6)
    assert one.standard_error == pytest.approx(other.standard_error, rel=1e-6)


def test_the_same_in_single_precision():
    one = sf.measure(quadratic(rotated(SPECTRUM)), "low_pass_filter", sigma=0.01)
    other = sf.measure(quadratic(rotated(SPECTRUM) / 100), "low_pass_filter", sigma=0.1)
    assert one.value == pytest.approx(other.value, rel=1e-3)


def test_a_draw_that_is_not_finite_is_not_certified():
    cliff = sf.Objective.from_function(
        lambda w, batch: jnp.where(w > 3, jnp.inf, w), jnp.array(3.0), ONE
    )
    assert not sf.measure(cliff, "low_pass_filter").converged


def test_one_draw_has_no_error():
    assert sf.measure(quadratic(np.eye(2)), "low_pass_filter", draws=1).standard_error is None


@pytest.mark.parametrize("arguments", [{"sigma": 0.0}, {"draws": 0}, {"sigma": "small"}])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(sf.InputError, match=f"low_pass_filter.{next(iter(arguments))}"):
        sf.measure(quadratic(np.eye(2)), {"low_pass_filter": arguments})
