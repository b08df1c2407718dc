"""The chains: Gaussians exactly at any stable step, batches, drift."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ONE, quadratic, rotated

import sharpflat as sf
from sharpflat.sharpness import langevin
from sharpflat.sharpness.langevin import (
    Posterior,
    chain,
    drifts,
    largest_curvature,
    too_noisy,
    too_wide,
)


@functools.partial(jax.jit, static_argnames=("steps", "batch_size", "chains"))
def run(objective, posterior, step_size, steps, batch_size, chains=64, seed=0):
    def one(key):
        return chain(objective, key, posterior, step_size, objective.params, steps, batch_size)

    return jax.lax.map(one, jax.random.split(jax.random.key(seed), chains))


@pytest.mark.parametrize("share", [0.1, 1.0, 2.0, 3.5])
def test_variance_of_a_gaussian_at_every_stable_step(share, x64):
    """h = 3, strength 2, pull 4: k = 10, ½ h E w² = 0.15; Euler's were 1 / (1 − ε k/4) wider."""
    bowl, steps = quadratic([[3.0]]), 10_000 if share < 1 else 2000
    rises, excess, _ = run(bowl, Posterior(2.0, 4.0), share / 10, steps, 1)
    settled = np.asarray(rises)[:, 200:].mean(axis=1)
    error = settled.std(ddof=1) / 8
    assert abs(settled.mean() - 0.15) < 4 * error
    assert error < 0.01 * 0.15
    assert np.asarray(excess)[:, 200:].mean() == pytest.approx(0, abs=0.05)


def test_steps_beyond_stability_explode(x64):
    rises, excess, _ = run(quadratic([[3.0]]), Posterior(2.0, 4.0), 4.2 / 10, 500, 1)
    assert np.asarray(rises)[:, -1].mean() > 1e3
    assert too_wide(np.asarray(excess), np.asarray(rises))


def scattered(w, batch):
    """½ h w₁² + w₁ x̄: examples differ in their slope along the first of many parameters."""
    return 1.5 * w[0] ** 2 + w[0] * jnp.mean(batch.inputs)


def test_the_excess_is_the_width_of_the_noisy_directions_alone(x64):
    """One noisy direction, k = 10, and 300 free ones: x = ε strength² S / (4 (1 − ε k/4))."""
    slopes, step = jnp.asarray([6.0, -6.0])[:, None], 0.2
    objective = sf.Objective.from_function(scattered, jnp.zeros(301), (slopes, jnp.zeros(2)))
    rises, excess, noise = run(objective, Posterior(2.0, 4.0), step, 4000, 1)
    widening = step * 2.0**2 * 36 / (4 * (1 - step * 10 / 4))
    found = np.asarray(excess)[:, 200:].mean(axis=1)
    assert abs(found.mean() - widening) < 4 * found.std(ddof=1) / 8
    assert found.std(ddof=1) / 8 < 0.01 * widening
    assert np.asarray(rises)[:, 200:].mean() == pytest.approx(0.15 * (1 + widening), rel=0.02)
    told = np.asarray(noise)[:, 200:].mean() / (1 - step * 10 / 4)
    assert told == pytest.approx(widening, rel=0.02)


def test_what_the_loss_leaves_free_has_no_excess():
    free = sf.Objective.from_function(lambda w, batch: 0.0 * jnp.sum(w), jnp.ones(300), ONE)
    rises, excess, noise = run(free, Posterior(2.0, 4.0), 0.2, 50, 1, chains=4)
    assert np.abs(excess).max() < 1e-3 * 300
    assert not np.any(rises)
    assert not np.any(noise)


def test_batches_are_drawn_without_replacement(x64):
    """A batch of all examples but one has one of n losses: the mean without one of them."""
    inputs = jnp.asarray([1.0, 2.0, 4.0, 8.0])[:, None]
    objective = sf.Objective.from_function(
        lambda w, batch: jnp.mean(batch.inputs) * (1 + w**2), jnp.array(0.0), (inputs, jnp.zeros(4))
    )
    seen = set()
    for seed in range(60):
        part = langevin._batch(objective, jax.random.key(seed), 3)
        seen.add(round(float(part.loss(0.0)) * 3))
    assert seen == {7, 11, 13, 14}
    assert langevin._batch(objective, jax.random.key(0), 4) is objective
    assert langevin._batch(objective, jax.random.key(0), 99) is objective


def test_a_batch_is_compared_with_itself(x64):
    """Examples that differ by a constant only add no noise to the recorded rise."""
    offsets = jnp.asarray([0.0, 100.0, -300.0, 1000.0])[:, None]
    objective = sf.Objective.from_function(
        lambda w, batch: jnp.mean(batch.inputs) + jnp.sum(w**2),
        jnp.zeros(1),
        (offsets, jnp.zeros(4)),
    )
    rises, _, noise = run(objective, Posterior(1.0, 1.0), 0.1, 50, 1, chains=2)
    assert np.abs(noise).max() < 1e-9
    assert np.asarray(rises).min() >= -1e-9
    assert np.asarray(rises).max() < 50


@pytest.mark.parametrize("spectrum", [[9.0, 4.0, 1.0], [-9.0, 4.0, 1.0], [0.0, 0.0, 0.0]])
def test_largest_curvature_in_magnitude(spectrum, x64):
    found = largest_curvature(quadratic(rotated(spectrum)), jax.random.key(0), 1)
    assert found == pytest.approx(np.abs(spectrum).max(), rel=1e-3, abs=1e-12)


def traces(change, chains=16, seed=0):
    noise = np.random.default_rng(seed).normal(size=(chains, 100))
    return 10 + noise + change * np.linspace(0, 1, 100)[None]


def test_drift_is_seen_over_noise():
    assert sum(drifts(traces(0.0, seed=seed)) for seed in range(300)) <= 9
    assert all(drifts(traces(2.0, seed=seed)) for seed in range(20))
    assert not drifts(np.full((4, 10), 3.0))
    assert drifts(traces(0.0)[:1]), "one chain cannot tell"
    assert drifts(traces(0.0)[:, :1]), "nor one step"
    assert drifts(np.full((4, 10), np.nan))


def test_excess_above_a_tenth_is_too_wide():
    assert not too_wide(traces(0.0) - 10, traces(0.0))
    assert not too_wide(traces(0.0) - 9.5, traces(0.0)), "half a tenth"
    assert too_wide(traces(0.0) - 8, traces(0.0))
    assert not too_wide(traces(0.0) - 12, traces(0.0)), "narrow is another fault"
    assert not too_wide(np.zeros((4, 10)), np.zeros((4, 10)))
    assert too_wide(np.full((4, 10), np.nan), traces(0.0))


def test_noise_is_small_only_where_that_is_sure():
    """Below a tenth of the mean, which is 10, with its error."""
    assert not too_noisy(np.full((4, 10), 0.9), traces(0.0))
    assert too_noisy(np.full((4, 10), 1.1), traces(0.0))
    unsure = 0.7 + np.array([-0.3, 0.3, -0.3, 0.3])[:, None] * np.ones(10)[None]
    assert too_noisy(unsure, traces(0.0))
    assert not too_noisy(np.zeros((4, 10)), np.zeros((4, 10)))
    assert too_noisy(np.full((4, 10), np.nan), traces(0.0))
    assert too_noisy(np.full((4, 10), np.inf), traces(0.0))


def test_what_exploded_is_recorded_as_such():
    trace = np.array([[1.0, np.inf, 1e200, -3.0, np.nan]])
    np.testing.assert_array_equal(langevin.recorded(trace, 1), [[np.nan, np.nan, -3.0, np.nan]])
