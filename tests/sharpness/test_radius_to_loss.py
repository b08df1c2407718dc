"""The distance at which the loss has risen, along filter-normalised directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ONE, quadratic

import sharpflat as sf
from sharpflat.sharpness.radius_to_loss import filter_normalized_direction

KERNEL = np.random.default_rng(0).normal(size=(5, 3))
FILTERS = np.array([9.0, 1.0, 0.25])


def radius(objective, seed=0, **arguments):
    return sf.measure(objective, {"radius_to_loss": arguments}, seed=seed)


def bowl(scale=1.0):
    """L = ½ Σ_f h_f ‖w_f − m_f‖² at m, f the output, the last axis: t = √(2 rise / Σ h_f ‖w_f‖²).

    Its bias lies in a valley so steep that the least step would cross at once.
    """
    center = jnp.asarray(scale * KERNEL, jnp.result_type(float))
    curvature = jnp.asarray(FILTERS, center.dtype)[None]

    def loss(params, batch):
        kernel, bias = params["Dense_0"]["kernel"], params["Dense_0"]["bias"]
        return 0.5 * jnp.sum(curvature * (kernel - center) ** 2) + 1e12 * jnp.sum((bias - 2) ** 2)

    params = {"Dense_0": {"kernel": center, "bias": jnp.full(3, 2.0, center.dtype)}}
    return sf.Objective.from_function(loss, params, ONE)


def exact(rise, scale=1.0):
    return np.sqrt(2 * rise / np.sum(FILTERS * np.sum((scale * KERNEL) ** 2, axis=0)))


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_filters_lie_along_the_last_axis_in_double_precision(scale, x64):
    """Classic mistake 7: normalised along the first axis, directions would differ in radius."""
    estimate = radius(bowl(scale), rise=2.0, tolerance=1e-8, directions=4, largest=1e6)
    np.testing.assert_allclose(estimate.details["samples"], exact(2.0, scale), rtol=1e-6)
    assert estimate.value == pytest.approx(exact(2.0, scale), rel=1e-6)
    assert estimate.converged
    assert estimate.details["direction_norm"] == pytest.approx(np.linalg.norm(scale * KERNEL))


def test_single_precision():
    estimate = radius(bowl(), rise=2.0, tolerance=1e-5)
    assert estimate.value == pytest.approx(exact(2.0), rel=1e-3)
    assert estimate.converged


def test_default_rise_is_a_halved_likelihood(x64):
    estimate = radius(bowl(), tolerance=1e-8, directions=2)
    assert estimate.value == pytest.approx(exact(np.log(2)), rel=1e-6)


def test_directions_of_a_network(x64):
    """Every filter of the direction is as long as the weights'; biases and batch norm stay."""
    model = sf.Model.of(sf.models["mlp"](3, width=5, depth=1, batch_norm=True))
    params, _ = model.init(jax.random.key(0), jnp.ones((2, 6)))
    params["Conv"] = {"kernel": jax.random.normal(jax.random.key(1), (3, 3, 2, 4))}
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    direction = filter_normalized_direction(jax.random.key(2), params)
    again = filter_normalized_direction(jax.random.key(3), params)
    for d, other, w in zip(*map(jax.tree.leaves, (direction, again, params)), strict=True):
        if w.ndim < 2:
            assert (d == 0).all()
            continue
        axes = tuple(range(w.ndim - 1))
        np.testing.assert_allclose(jnp.sum(d**2, axes), jnp.sum(w**2, axes), rtol=1e-6)
        assert not np.allclose(d, other)


def test_a_rescaled_relu_network_has_the_same_radius(x64):
    """(α a, b / α) is the same function (Dinh 2017), and every filter's norm goes along."""
    rng = np.random.default_rng(0)
    a, b = jnp.asarray(rng.normal(size=(4, 5))), jnp.asarray(rng.normal(size=(5, 1)))
    inputs = jnp.asarray(rng.normal(size=(30, 4)))
    data = inputs, jax.nn.relu(inputs @ a) @ b

    def loss(params, batch):
        return jnp.mean((jax.nn.relu(batch.inputs @ params["a"]) @ params["b"] - batch.labels) ** 2)

    values = [
        radius(sf.Objective.from_function(loss, {"a": k * a, "b": b / k}, data), tolerance=1e-8)
        for k in (1.0, 5.0)
    ]
    assert values[0].value == pytest.approx(values[1].value, rel=1e-6)
    assert values[0].standard_error > 0


def test_the_error_is_that_of_the_mean_over_directions(x64):
    rng = np.random.default_rng(0)
    curvature = jnp.asarray(rng.uniform(0.1, 10, size=(4, 2)))
    objective = sf.Objective.from_function(
        lambda w, batch: jnp.sum(curvature * (w - 1) ** 2), jnp.ones((4, 2)), ONE
    )
    estimate = radius(objective, directions=12)
    samples = estimate.details["samples"]
    assert estimate.value == pytest.approx(samples.mean())
    assert estimate.standard_error == pytest.approx(samples.std(ddof=1) / np.sqrt(12))
    assert radius(objective, directions=1).standard_error is None


def test_a_loss_that_does_not_rise_that_far_is_not_certified():
    bounded = sf.Objective.from_function(
        lambda w, batch: jnp.tanh(jnp.sum((w - 1) ** 2)), jnp.ones((2, 2)), ONE
    )
    assert radius(bounded, rise=0.5).converged
    estimate = radius(bounded, rise=1.5, largest=8.0)
    assert not estimate.converged
    assert estimate.value >= 8
    assert np.isinf(estimate.details["high"]).all()


def test_zero_weights_give_no_direction_and_no_nan():
    """Classic mistake 8: a filter of zero weights has a direction of zero."""
    objective = sf.Objective.from_function(lambda w, batch: jnp.sum(w**2), jnp.zeros((2, 2)), ONE)
    estimate = radius(objective)
    assert np.isfinite(estimate.value)
    assert not estimate.converged


def test_a_loss_that_is_not_finite_counts_as_risen(x64):
    cliff = sf.Objective.from_function(
        lambda w, batch: jnp.where(jnp.sum((w - 1) ** 2) > 1, jnp.nan, 0.0 * jnp.sum(w)),
        jnp.ones((2, 2)),
        ONE,
    )
    assert radius(cliff, tolerance=1e-8).value == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rise": 0}, "radius_to_loss.rise"),
        ({"directions": 0}, "radius_to_loss.directions"),
        ({"draws": 3}, "unknown key 'draws'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(sf.InputError, match=message):
        radius(bowl(), **arguments)


def test_parameters_without_filters_are_refused():
    with pytest.raises(sf.InputError, match="radius_to_loss: params: no array has two axes"):
        radius(quadratic(np.eye(3)))
