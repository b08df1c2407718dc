"""The critical learning rate against closed forms, dense Hessians and a root finder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from helpers import ONE, quadratic, rotated
from jax.flatten_util import ravel_pytree

import sharpflat as sf

H = rotated([9.0, 4.0, 1.0, 0.25])
WEIGHTS = np.array([1.0, -2.0, 0.5, 3.0])
GRADIENT = H @ WEIGHTS
ALONG = GRADIENT @ H @ GRADIENT / (GRADIENT @ GRADIENT)


def bowl(weights=WEIGHTS, floor=0.0):
    objective = quadratic(H, floor=floor)
    params = {"w": jnp.asarray(weights, objective.params["w"].dtype)}
    return dataclasses.replace(objective, params=params)


def networks():
    """A deep linear network, logistic regression and a two-layer ReLU network."""
    rng = np.random.default_rng(0)
    inputs, targets = jnp.asarray(rng.normal(size=(30, 4))), jnp.asarray(rng.normal(size=30))
    weights = {"a": jnp.asarray(rng.normal(size=(4, 3))), "b": jnp.asarray(rng.normal(size=3))}
    signs = jnp.sign(targets)

    def deep_linear(p, batch):
        return jnp.mean((batch.inputs @ p["a"] @ p["b"] - batch.labels) ** 2)

    def logistic(p, batch):
        return jnp.mean(jax.nn.softplus(-batch.labels * (batch.inputs @ p)))

    def relu(p, batch):
        return jnp.mean((jax.nn.relu(batch.inputs @ p["a"]) @ p["b"] - batch.labels) ** 2)

    return {
        "deep linear": sf.Objective.from_function(deep_linear, weights, (inputs, targets), 7),
        "logistic": sf.Objective.from_function(logistic, weights["a"][:, 0], (inputs, signs), 7),
        "relu": sf.Objective.from_function(relu, weights, (inputs, targets), 7),
    }


def test_bowl_in_double_precision(x64):
    """On a quadratic both are gᵀHg / gᵀg."""
    estimate = sf.measure(bowl(), "critical_sharpness", tolerance=1e-8)
    assert estimate.value == pytest.approx(ALONG, rel=1e-6)
    assert (estimate.standard_error, estimate.converged) == (0.0, True)
    assert sf.measure(bowl(), "directional_sharpness").value == pytest.approx(ALONG, rel=1e-6)


def test_along_the_sign_of_the_gradient(x64):
    """Δ = sign g, which is not g: ΔᵀHΔ / Δᵀg on a quadratic, by both."""
    signs = np.sign(GRADIENT)
    exact = signs @ H @ signs / (signs @ GRADIENT)
    assert abs(exact / ALONG - 1) > 0.1
    estimate = sf.measure(bowl(), "critical_sharpness", direction="sign", tolerance=1e-8)
    assert estimate.value == pytest.approx(exact, rel=1e-6)
    assert estimate.converged
    assert estimate.details["slope"] == pytest.approx(np.abs(GRADIENT).sum())
    estimate = sf.measure(bowl(), "directional_sharpness", direction="sign")
    assert estimate.value == pytest.approx(exact, rel=1e-12)
    assert estimate.details["slope"] == pytest.approx(np.abs(GRADIENT).sum())


def test_a_tiny_gradient_is_not_zero():
    """1e-24 in single precision, whose square underflows."""
    weights = 1e-24 * WEIGHTS
    estimate = sf.measure(bowl(weights), "directional_sharpness")
    assert estimate.value == pytest.approx(ALONG, rel=1e-3)
    assert estimate.converged
    assert estimate.details["gradient_norm"] == pytest.approx(1e-24 * np.linalg.norm(GRADIENT))
    critical = sf.measure(bowl(weights), "critical_sharpness", evaluations=5)
    assert critical.details["gradient_norm"] == estimate.details["gradient_norm"]
    assert np.isfinite(critical.value)
    assert not critical.converged, "the loss itself is below the smallest number"


def test_bowl_in_single_precision():
    estimate = sf.measure(bowl(), "critical_sharpness", tolerance=1e-4)
    assert estimate.value == pytest.approx(ALONG, rel=1e-3)
    assert estimate.converged
    assert sf.measure(bowl(), "directional_sharpness").value == pytest.approx(ALONG, rel=1e-3)


@pytest.mark.parametrize("name", ["deep linear", "logistic", "relu"])
def test_networks_against_a_root_finder_and_dense_hessians(name, x64):
    objective = networks()[name]
    flat, unravel = ravel_pytree(objective.params)
    loss = jax.jit(lambda w: objective.loss(unravel(w)))
    gradient, hessian = np.asarray(jax.grad(loss)(flat)), np.asarray(jax.hessian(loss)(flat))
    along = gradient @ hessian @ gradient / (gradient @ gradient)
    assert sf.measure(objective, "directional_sharpness").value == pytest.approx(along, rel=1e-6)

    def rise(rate):
        return float(loss(flat - rate * gradient) - loss(flat))

    grid = np.geomspace(1e-3, 100, 400)
    first = next(i for i, rate in enumerate(grid) if rise(rate) > 0)
    root = scipy.optimize.brentq(rise, grid[first - 1], grid[first], xtol=1e-14)
    estimate = sf.measure(objective, "critical_sharpness", tolerance=1e-8)
    assert estimate.converged
    assert estimate.value == pytest.approx(2 / root, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_bracket_holds_the_rate_at_any_scale(scale, x64):
    """Doubled or halved from 0.1, then bisected to 1/16."""
    objective = sf.Objective.from_function(
        lambda w, batch: 0.5 * scale * jnp.sum(w**2), jnp.ones(3), ONE
    )
    estimate = sf.measure(objective, "critical_sharpness")
    low, high = estimate.details["low"], estimate.details["high"]
    assert low <= 2 / scale <= high <= low * (1 + 1 / 16)
    assert estimate.value == pytest.approx(scale, rel=1 / 32)
    assert estimate.converged


def test_zero_gradient_has_no_rate():
    for name in ("critical_sharpness", "directional_sharpness"):
        estimate = sf.measure(bowl(np.zeros(4)), name)
        assert np.isnan(estimate.value)
        assert not estimate.converged
    assert sf.measure(bowl(np.zeros(4)), "critical_sharpness").details["evaluations"] == 0


def test_a_loss_that_never_rises_again_is_not_certified():
    slope = sf.Objective.from_function(lambda w, batch: jnp.sum(w), jnp.ones(3), ONE)
    estimate = sf.measure(slope, "critical_sharpness", evaluations=20)
    assert not estimate.converged
    assert estimate.value == pytest.approx(2 / (0.1 * 2**19))
    assert np.isinf(estimate.details["high"])
    assert sf.measure(slope, "directional_sharpness").value == 0


def test_too_few_evaluations_are_not_certified():
    estimate = sf.measure(bowl(), "critical_sharpness", evaluations=3)
    assert estimate.details["evaluations"] == 3
    assert not estimate.converged


def test_a_fall_below_the_rounding_of_the_loss_is_not_certified():
    """1e4 + ½ wᵀHw with w = 1e-3: in single precision only rounding is left."""
    estimate = sf.measure(bowl(1e-3 * WEIGHTS, floor=1e4), "critical_sharpness")
    assert not estimate.converged
    assert sf.measure(bowl(WEIGHTS, floor=1.0), "critical_sharpness").converged


def test_a_loss_that_is_not_finite_counts_as_risen(x64):
    cliff = sf.Objective.from_function(
        lambda w, batch: jnp.where(w < -1, jnp.nan, w), jnp.array(0.0), ONE
    )
    estimate = sf.measure(cliff, "critical_sharpness", tolerance=1e-8)
    assert estimate.value == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0}, "critical_sharpness.tolerance"),
        ({"evaluations": 0}, "critical_sharpness.evaluations"),
        ({"steps": 5}, "unknown key 'steps'"),
        ({"direction": "random"}, "critical_sharpness.direction"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(sf.InputError, match=message):
        sf.measure(bowl(), {"critical_sharpness": arguments})
