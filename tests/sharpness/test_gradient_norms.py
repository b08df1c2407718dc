"""Norms of gradients, and batch sharpness against every batch there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.gradient_noise import bowl
from cases.gradient_norms import INPUTS, LABELS, along_gradients, regression, sharpness
from helpers import ONE, quadratic, rotated

import sharpflat as sf

MATRIX = rotated([5.0, 2.0, 0.1])
CENTERS = np.random.default_rng(0).normal(size=(12, 3)) + 1.0
GRADIENT = MATRIX @ (0.5 - CENTERS.mean(axis=0))


def perceptron(n=30, batch_norm=False, policy="running", chunk=7):
    """A ReLU network in the precision of the hour, its averages not those of the data."""
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(n, 4)) + 0.3), jnp.asarray(rng.integers(0, 3, n))
    model = sf.Model.of(sf.models["mlp"](3, width=5, depth=2, batch_norm=batch_norm))
    start = jax.jit(model.init)(jax.random.key(1), data[0])
    params, state = jax.tree.map(lambda leaf: leaf.astype(data[0].dtype), start)
    return sf.Objective.from_model(model, params, state, data, batch_norm=policy, chunk=chunk)


@pytest.fixture(params=["double", "single"])
def tolerance(request):
    """Of relative errors: 1e-6 in double precision, 1e-3 in single."""
    with jax.enable_x64(request.param == "double"):
        yield 1e-6 if request.param == "double" else 1e-3


@pytest.mark.parametrize("chunk", [None, 5])
def test_gradient_norm_in_closed_form(tolerance, chunk):
    estimate = sf.measure(bowl(MATRIX, CENTERS, 0.5, chunk), "gradient_norm")
    assert estimate.value == pytest.approx(np.linalg.norm(GRADIENT), rel=tolerance)
    assert estimate.details["largest"] == pytest.approx(abs(GRADIENT).max(), rel=tolerance)
    steps = 0.5 - CENTERS
    loss = 0.5 * np.mean(np.sum((steps @ MATRIX) * steps, axis=1))
    assert estimate.details["loss"] == pytest.approx(loss, rel=tolerance)
    assert (estimate.standard_error, estimate.converged) == (0.0, True)


def test_gradient_norm_does_not_underflow():
    """The squares of 3e-25 are zero in single precision."""
    line = sf.Objective.from_function(
        lambda w, batch: jnp.mean(batch.inputs @ w),
        jnp.zeros(2),
        (jnp.array([[3e-25, 4e-25]]), jnp.ones(1)),
    )
    assert sf.measure(line, "gradient_norm").value == pytest.approx(5e-25, rel=1e-3, abs=0)


def test_gradient_norm_at_a_minimum_and_where_there_is_none():
    assert sf.measure(quadratic(MATRIX), "gradient_norm")[:3] == (0.0, 0.0, True)
    cusp = sf.Objective.from_function(lambda w, batch: jnp.sum(jnp.sqrt(w)), jnp.zeros(2), ONE)
    assert not sf.measure(cusp, "gradient_norm").converged


@pytest.mark.parametrize("chunk", [30, 7])
def test_input_gradient_norm_one_example_at_a_time(tolerance, chunk):
    objective = perceptron(chunk=chunk)

    def loss(inputs, label):
        data = sf.Batch(inputs[None], label[None])
        one = sf.Objective.from_model(objective.model, objective.params, {}, data)
        return one.loss(one.params)

    norms = np.linalg.norm(jax.vmap(jax.grad(loss))(*objective.data), axis=1)
    estimate = sf.measure(objective, "input_gradient_norm")
    assert estimate.value == pytest.approx(np.mean(norms), rel=tolerance)
    assert estimate.details["largest"] == pytest.approx(norms.max(), rel=tolerance)
    root = np.sqrt(np.mean(norms**2))
    assert estimate.details["root_mean_square"] == pytest.approx(root, rel=tolerance)
    assert (estimate.standard_error, estimate.converged) == (0.0, True)


def test_input_gradient_norm_in_closed_form(tolerance):
    """½ (x·w − y)² has the input's gradient (x·w − y) w."""
    weights = np.array([0.7, -0.4])
    expected = np.mean(np.abs(INPUTS @ weights - LABELS)) * np.linalg.norm(weights)
    estimate = sf.measure(regression(), "input_gradient_norm")
    assert estimate.value == pytest.approx(expected, rel=tolerance)


def test_input_gradient_norm_holds_recalibrated_averages_fixed(x64):
    objective = perceptron(batch_norm=True, policy="recalibrated")
    state = objective.state_at(objective.params)
    fixed = sf.Objective.from_model(
        objective.model, objective.params, state, objective.data, chunk=11
    )
    value = sf.measure(objective, "input_gradient_norm").value
    assert value == pytest.approx(sf.measure(fixed, "input_gradient_norm").value, rel=1e-9)
    assert value != pytest.approx(
        sf.measure(perceptron(batch_norm=True), "input_gradient_norm").value, rel=1e-3
    )


def test_input_gradient_norm_refuses_what_has_none():
    words = sf.Objective.from_function(
        lambda w, batch: jnp.mean(w[batch.inputs]), jnp.ones(3), (jnp.array([0, 2]), jnp.ones(2))
    )
    with pytest.raises(sf.InputError, match="input_gradient_norm: inputs: .* got int32"):
        sf.measure(words, "input_gradient_norm")
    with pytest.raises(sf.InputError, match="not defined under batch_norm 'batch'"):
        sf.measure(perceptron(batch_norm=True, policy="batch", chunk=10), "input_gradient_norm")


@pytest.mark.parametrize("chunk", [None, 5])
def test_batch_sharpness_of_the_whole_data_is_the_curvature_along_the_gradient(tolerance, chunk):
    objective = bowl(MATRIX, CENTERS, 0.5, chunk)
    estimate = sf.measure(objective, "batch_sharpness", batch_size=12, draws=3)
    expected = GRADIENT @ MATRIX @ GRADIENT / (GRADIENT @ GRADIENT)
    assert estimate.value == pytest.approx(expected, rel=tolerance)
    assert estimate.details["ratio_of_expectations"] == pytest.approx(expected, rel=tolerance)
    assert estimate.standard_error <= tolerance * expected
    assert estimate.converged


def test_batch_sharpness_is_the_mean_of_ratios_beside_the_ratio_of_means(x64):
    estimate = sf.measure(regression(), "batch_sharpness", batch_size=1, draws=4000)
    curvature, square = along_gradients(1)
    apart = curvature.sum() / square.sum()
    assert abs(estimate.value - sharpness(1)) < 4 * estimate.standard_error
    error = estimate.details["ratio_of_expectations_standard_error"]
    assert abs(estimate.details["ratio_of_expectations"] - apart) < 4 * error
    assert abs(apart - sharpness(1)) > 10 * max(error, estimate.standard_error)


def test_batch_sharpness_under_batch_norm_of_the_batch_itself(x64):
    objective = perceptron(n=12, batch_norm=True, policy="batch", chunk=12)
    gradient = objective.value_and_grad(objective.params)[1]
    product = objective.hvp(objective.params, gradient)
    expected = sf.trees.vdot(gradient, product) / sf.trees.vdot(gradient, gradient)
    estimate = sf.measure(objective, "batch_sharpness", batch_size=12, draws=2)
    assert estimate.value == pytest.approx(float(expected), rel=1e-6)


def some_idle(idle, scale=1.0):
    """(scale/2) (w x_i)² over twelve examples of which `idle` have x = 0: gradient scale x²."""
    inputs = jnp.asarray(np.where(np.arange(12) < idle, 0.0, np.arange(12)))
    return sf.Objective.from_function(
        lambda w, batch: 0.5 * scale * jnp.mean((w * batch.inputs) ** 2), jnp.array(1.0),
        (inputs, jnp.zeros(12)),
    )  # fmt: skip


def test_batches_without_a_gradient_are_left_out_and_said(x64):
    """0/0 of one batch must not be the answer for all (classic mistake 8)."""
    estimate = sf.measure(some_idle(6), "batch_sharpness", batch_size=1, draws=400)
    expected = np.mean(np.arange(6, 12) ** 2)
    assert abs(estimate.value - expected) < 4 * estimate.standard_error
    assert estimate.details["zero_gradients"] == 400 - len(estimate.details["samples"])
    assert 150 < estimate.details["zero_gradients"] < 250
    assert not estimate.converged


def test_no_gradient_at_all_is_no_sharpness():
    estimate = sf.measure(some_idle(12), "batch_sharpness", batch_size=3)
    assert np.isnan(estimate.value)
    assert (estimate.standard_error, estimate.converged) == (None, False)
    assert estimate.details["zero_gradients"] == 100


def test_batch_sharpness_of_gradients_whose_squares_underflow():
    estimate = sf.measure(some_idle(0, 1e-24), "batch_sharpness", batch_size=12, draws=2)
    expected = pytest.approx(1e-24 * np.mean(np.arange(12) ** 2), rel=1e-3, abs=0)
    assert estimate.value == expected
    assert estimate.details["ratio_of_expectations"] == expected


def test_where_the_loss_overflows_there_is_no_batch_sharpness():
    with pytest.raises(sf.InputError, match="^loss: is"):
        sf.measure(bowl(3e37 * MATRIX, CENTERS, 50.0), "batch_sharpness", batch_size=4)


def test_batch_sharpness_of_one_draw_has_no_error():
    assert sf.measure(regression(), "batch_sharpness", batch_size=2, draws=1).standard_error is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 7}, "batch_size: 7 is above the 6 examples"),
        ({}, "batch_size: 16 is above the 6 examples"),
        ({"batch_size": 0}, "batch_sharpness.batch_size"),
        ({"draws": 0}, "batch_sharpness.draws"),
    ],
)
def test_batches_that_cannot_be_drawn_are_refused(arguments, message):
    with pytest.raises(sf.InputError, match=message):
        sf.measure(regression(), "batch_sharpness", **arguments)


def test_batches_that_the_chunk_does_not_divide_are_refused_before_any_work(monkeypatch):
    objective = perceptron(batch_norm=True, policy="batch", chunk=10)
    monkeypatch.setattr(jax.random, "split", None)
    with pytest.raises(sf.InputError, match="batch_sharpness: chunk: 10 does not divide the 16"):
        sf.measure(objective, "batch_sharpness")
