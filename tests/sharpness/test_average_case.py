"""The mean rise under noise: exact where noise cancels, within its error elsewhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ONE, quadratic, rotated

import sharpflat as sf

H = rotated([9.0, 4.0, 1.0, 0.25])
WEIGHTS = np.array([1.0, -2.0, 0.0, 3.0])


def average(objective, seed=0, **arguments):
    return sf.measure(objective, {"average_case_sharpness": arguments}, seed=seed)


def bowl():
    return quadratic(H, WEIGHTS, floor=0.5)


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_rho_is_a_standard_deviation_or_a_half_width(noise, adaptive, x64):
    """Classic mistake 5: with the variance in its place the value would be ρ² times smaller."""
    scale = np.abs(WEIGHTS) if adaptive else np.ones(4)
    expected = 0.5 * 0.3**2 * np.sum(scale**2 * np.diag(H)) / (3 if noise == "uniform" else 1)
    estimate = average(bowl(), rho=0.3, noise=noise, adaptive=adaptive, draws=4000)
    assert abs(estimate.value - expected) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.03 * expected
    assert estimate.converged


def check_one_weight(relative):
    """L = w² at w = 3: the antithetic rise is ρ² w² u² exactly, whose u² we read off another bowl.

    The same seed draws the same u for L = 1000 w² at the same w.
    """
    small, large = (
        sf.Objective.from_function(lambda w, batch, k=k: k * w**2, jnp.array(3.0), ONE)
        for k in (1.0, 1000.0)
    )
    for arguments in ({"noise": "uniform"}, {"adaptive": False}, {"batch_size": None}):
        one = average(small, antithetic=True, **arguments)
        other = average(large, antithetic=True, **arguments)
        assert other.value == pytest.approx(1000 * one.value, rel=relative)
        assert other.standard_error == pytest.approx(1000 * one.standard_error, rel=relative)


def test_scales_with_the_loss_in_double_precision(x64):
    check_one_weight(1e-6)


def test_scales_with_the_loss_in_single_precision():
    check_one_weight(1e-3)


def test_antithetic_draws_take_the_gradient_out(x64):
    """On a linear loss every pair cancels; without pairs the same draws scatter."""
    slope = sf.Objective.from_function(lambda w, batch: jnp.sum(w), jnp.asarray(WEIGHTS), ONE)
    pairs = average(slope, antithetic=True)
    assert abs(pairs.value) < 1e-14
    assert pairs.standard_error < 1e-14
    assert average(slope).standard_error > 0.01


def test_the_error_is_that_of_independent_draws_at_fixed_subsets(x64):
    """Subsets of different losses must not add to the error: they are no draws."""
    inputs = jnp.asarray([[1.0], [100.0]])
    objective = sf.Objective.from_function(
        lambda w, batch: jnp.mean(batch.inputs) * jnp.sum(w**2),
        jnp.asarray(WEIGHTS),
        (inputs, jnp.zeros(2)),
    )
    estimate = average(objective, batch_size=1, draws=50, rho=0.01)
    rises = estimate.details["rises"]
    assert rises.shape == (2, 50)
    assert estimate.value == pytest.approx(rises.mean(), rel=1e-12)
    error = np.sqrt(rises.var(axis=1, ddof=1).sum() / 50) / 2
    assert estimate.standard_error == pytest.approx(error, rel=1e-9)
    assert len(set(np.round(rises[0] / rises[1], 6))) > 1, "draws are fresh for each subset"
    assert average(objective, draws=1).standard_error is None


def test_zero_weights_stay_where_they_are(x64):
    """Classic mistake 8. The third weight is 0, and its curvature does not count."""
    steep = quadratic(np.diag([0.0, 0.0, 1e6, 0.0]), WEIGHTS)
    estimate = average(steep)
    assert (estimate.value, estimate.standard_error, estimate.converged) == (0.0, 0.0, True)


def test_all_examples_together_or_a_few_subsets(x64):
    inputs = jnp.arange(10.0)[:, None]
    objective = sf.Objective.from_function(
        lambda w, batch: jnp.mean(batch.inputs) * (1 + jnp.sum(w)),
        jnp.asarray(WEIGHTS),
        (inputs, jnp.zeros(10)),
    )
    here = 1 + WEIGHTS.sum()
    whole = average(objective, batch_size=None).details["losses"]
    np.testing.assert_allclose(whole, [4.5 * here])
    thirds = average(objective, batch_size=3).details["losses"]
    np.testing.assert_allclose(thirds, np.array([1.0, 4.0, 7.0]) * here)
    np.testing.assert_allclose(average(objective, batch_size=99).details["losses"], whole)


def test_normalized_logits_do_not_see_the_scale_of_the_outputs(x64):
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(20, 4))), jnp.asarray(rng.integers(0, 3, 20))
    model = sf.Model.from_functions(lambda key, x: jnp.zeros((4, 3)), lambda w, x: x @ w)
    weights = jnp.asarray(rng.normal(size=(4, 3)))
    values = [
        average(sf.Objective.from_model(model, k * weights, {}, data), normalize_logits=True).value
        for k in (1.0, 7.0)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_draw_that_is_not_finite_is_not_certified():
    cliff = sf.Objective.from_function(
        lambda w, batch: jnp.where(w > 3, jnp.inf, w), jnp.array(3.0), ONE
    )
    assert not average(cliff).converged
    assert average(cliff).standard_error is None


def test_works_on_any_tree_of_parameters():
    tree = {"a": jnp.ones((2, 3)), "b": [jnp.ones(()), (jnp.ones(4),)]}
    objective = sf.Objective.from_function(
        lambda w, batch: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(w)), tree, ONE
    )
    estimate = average(objective, draws=400)
    assert abs(estimate.value - 0.01 * 11) < 4 * estimate.standard_error
    bare = dataclasses.replace(objective, params=jnp.ones(11))
    assert average(bare, draws=400).value == pytest.approx(0.11, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": -0.1}, "average_case_sharpness.rho"),
        ({"noise": "normal"}, "average_case_sharpness.noise"),
        ({"draws": 0}, "average_case_sharpness.draws"),
        ({"batch_size": 0}, "average_case_sharpness.batch_size"),
        ({"normalize_logits": True}, "normalize_logits: an objective made by from_function"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(sf.InputError, match=message):
        average(bowl(), **arguments)
