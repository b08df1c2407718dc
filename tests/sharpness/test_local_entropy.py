"""The free energy of quadratics, its integral, and chains that are too short."""

import jax.numpy as jnp
import numpy as np
import pytest
from cases.langevin import AWAY, SPECTRUM, bowl, free_energy, noisy_bowl, with_statistics
from helpers import ONE

import sharpflat as sf
from sharpflat.sharpness.local_entropy import GAUSS, KRONROD, NODES

LONG = {"sigma": 0.7, "chains": 16, "steps": 40, "burn_in": 40}


def entropy(objective, seed=0, **arguments):
    return sf.measure(objective, {"local_entropy": arguments}, seed=seed)


@pytest.mark.parametrize("weights", [np.zeros(len(SPECTRUM)), AWAY])
@pytest.mark.parametrize("t", [0.5, 2.0])
def test_quadratic_within_its_error(weights, t, x64):
    estimate = entropy(bowl(weights), inverse_temperature=t, **LONG)
    exact = free_energy(t, 0.7, weights)
    assert abs(estimate.value - exact) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.02 * exact
    assert estimate.converged
    details = estimate.details
    assert estimate.value == pytest.approx(t * details["loss"] + details["rise"])
    assert details["rise"] == pytest.approx(details["chains"].mean())
    assert details["rise"] == pytest.approx(KRONROD @ details["energies"])


def test_sigma_is_a_standard_deviation_in_single_precision():
    """Classic mistake 5. Ten thousand directions at t h σ² = 1: ½ log 2 each."""
    wide = sf.Objective.from_function(
        lambda w, batch: 0.5 * jnp.sum(w**2) / 0.3**2, jnp.zeros(10_000), ONE
    )
    estimate = entropy(wide, sigma=0.3)
    exact = 5_000 * np.log(2)
    assert abs(estimate.value - exact) < 4 * estimate.standard_error
    assert estimate.standard_error < 1e-2 * exact
    assert estimate.converged


def test_below_the_mean_loss_under_the_same_noise(x64):
    """Jensen: −log E exp(−L) ≤ E L, and equal to it where L varies little."""
    smoothed = sf.measure(bowl(AWAY), "low_pass_filter", sigma=0.7, draws=4000)
    assert entropy(bowl(AWAY), **LONG).value < smoothed.value - 10 * smoothed.standard_error
    smoothed = sf.measure(bowl(), "low_pass_filter", sigma=0.01, draws=1000)
    close = entropy(bowl(), chains=16)
    error = 4 * np.hypot(smoothed.standard_error, close.standard_error)
    assert abs(close.value - smoothed.value) < error
    assert error < 1e-2 * (smoothed.value - 0.4)


def test_the_rules_of_quadrature():
    """Exact to degree 11 (and 5) on [0, 1], the three-point rule within the seven."""
    for degree in range(12):
        assert KRONROD @ NODES**degree == pytest.approx(1 / (degree + 1), rel=1e-12)
    for degree in range(6):
        assert GAUSS @ NODES**degree == pytest.approx(1 / (degree + 1), rel=1e-12)
    r = 25.0
    energies = 0.5 * r / (1 + NODES * r)
    exact = 0.5 * np.log1p(r)
    assert KRONROD @ energies == pytest.approx(exact, rel=2e-3)
    assert (KRONROD - GAUSS) @ energies == pytest.approx(0.1 * exact, rel=0.1)


def test_a_quadrature_that_is_too_coarse_is_not_certified(x64):
    """t h σ² = 1000: the integrand falls by that factor from β = 0 to 1."""
    steep = sf.Objective.from_function(
        lambda w, batch: 0.5 * 1000 * jnp.sum(w**2), jnp.zeros(50), ONE
    )
    coarse = entropy(steep, sigma=1.0, burn_in=2100, steps=8)
    assert not coarse.converged
    assert abs(coarse.details["quadrature_gap"]) > 0.1 * coarse.value
    assert entropy(steep, sigma=0.1, burn_in=30, steps=100).converged


def test_chains_that_remember_their_start_are_not_certified(x64):
    """At t h σ² = 10 about 22 steps are needed; the default 4 are for small σ."""
    assert entropy(bowl(AWAY), inverse_temperature=2.0, **{**LONG, "burn_in": 23}).converged
    short = entropy(bowl(AWAY), inverse_temperature=2.0, **{**LONG, "burn_in": 4})
    assert not short.converged


def test_recalibrated_batch_norm_is_never_certified():
    running, recalibrated = (
        entropy(with_statistics(policy), **LONG) for policy in ("running", "recalibrated")
    )
    assert running.converged
    assert recalibrated.value == pytest.approx(running.value)
    assert not recalibrated.converged


def test_one_chain_has_no_error_and_no_certificate():
    estimate = entropy(bowl(), **{**LONG, "chains": 1})
    assert estimate.standard_error is None
    assert not estimate.converged


def test_a_loss_that_is_not_finite_is_not_certified():
    cliff = sf.Objective.from_function(
        lambda w, batch: jnp.where(w > 3.005, jnp.inf, w), jnp.array(3.0), ONE
    )
    estimate = entropy(cliff)
    assert np.isnan(estimate.value)
    assert estimate.standard_error is None
    assert not estimate.converged


def test_mini_batches_leave_the_mean(x64):
    """Examples whose losses differ by constants and slopes: the batch's noise averages out."""
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(60, 4)))
    objective = sf.Objective.from_function(
        lambda w, batch: jnp.mean(batch.inputs @ w) + 0.5 * jnp.sum(w**2) + jnp.mean(batch.labels),
        jnp.zeros(4),
        (inputs, jnp.asarray(rng.normal(size=60))),
    )
    slope = np.asarray(inputs).mean(axis=0)
    r = 0.1**2
    here = float(objective.loss(jnp.zeros(4)))
    exact = here + 2 * np.log1p(r) - 0.5 * r / (1 + r) * slope @ slope
    estimate = entropy(objective, sigma=0.1, batch_size=10, chains=64, steps=32)
    assert abs(estimate.value - exact) < 4 * estimate.standard_error


@pytest.mark.parametrize("free", [0, 200])
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_batches_whose_noise_widens_the_chains_are_not_certified(noise, free, x64):
    """Slopes that differ by example, at t = 50: 110 where 5.2 is right, and free parameters."""
    slopes = np.random.default_rng(0).normal(size=(50, 4))
    slopes -= slopes.mean(axis=0)
    objective = sf.Objective.from_function(
        noisy_bowl, jnp.zeros(4 + free), (jnp.asarray(noise * slopes), jnp.zeros(50))
    )
    estimate = entropy(objective, inverse_temperature=50.0, batch_size=5, **{**LONG, "sigma": 0.5})
    exact = 2 * np.log1p(50 * 0.5**2)
    assert estimate.converged is (noise == 0)
    if noise:
        assert estimate.details["quadrature_gap"] < 0.1 * estimate.value
        assert estimate.value - exact == pytest.approx(estimate.details["excess"], rel=0.1)
    else:
        assert abs(estimate.value - exact) < 4 * estimate.standard_error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0.0}, "local_entropy.sigma"),
        ({"inverse_temperature": -1.0}, "local_entropy.inverse_temperature"),
        ({"steps": 0}, "local_entropy.steps"),
        ({"temperature": 1.0}, "did you mean 'inverse_temperature'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(sf.InputError, match=message):
        entropy(bowl(), **arguments)
