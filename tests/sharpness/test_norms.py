"""Norms of the parameters, and path norms by going through every path."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers import quadratic

import sharpflat as sf

RNG = np.random.default_rng(0)
PARAMS = {"a": {"bias": RNG.normal(size=3), "kernel": RNG.normal(size=(2, 3))}, "b": RNG.normal()}
START = jax.tree.map(lambda leaf: leaf - 1.0, PARAMS)
DATA = (RNG.normal(size=(12, 3)), RNG.integers(0, 2, 12))


@pytest.fixture(params=["double", "single"])
def tolerance(request):
    """Of relative errors: 1e-6 in double precision, 1e-3 in single."""
    with jax.enable_x64(request.param == "double"):
        yield 1e-6 if request.param == "double" else 1e-3


def arrays(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), tree)


def holding(params):
    data = (jnp.ones((1, 1)),) * 2
    return sf.Objective.from_function(lambda w, b: jnp.zeros(()), arrays(params), data)


def test_parameter_norm_and_that_of_each_array(tolerance):
    estimate = sf.measure(holding(PARAMS), "parameter_norm")
    parts = [PARAMS["a"]["bias"], PARAMS["a"]["kernel"], PARAMS["b"]]
    expected = [np.sqrt(np.sum(np.square(part))) for part in parts]
    np.testing.assert_allclose(estimate.details["norms"], expected, rtol=tolerance)
    assert estimate.value == pytest.approx(np.linalg.norm(expected), rel=tolerance)
    assert holding(PARAMS).layers() == ["a/bias", "a/kernel", "b"]
    assert (estimate.standard_error, estimate.converged) == (0.0, True)


def test_parameter_norm_of_a_bare_array_and_of_some_parameters(tolerance):
    assert sf.measure(holding(np.array([3.0, 4.0])), "parameter_norm").value == 5.0
    some = sf.measure(holding(PARAMS).restrict("a/bias"), "parameter_norm").value
    assert some == pytest.approx(np.linalg.norm(PARAMS["a"]["bias"]), rel=tolerance)


def test_a_norm_that_overflows_is_not_called_converged():
    estimate = sf.measure(holding(np.full(2, 3e38)), "parameter_norm")
    assert not estimate.converged


def test_distance_from_the_start(tolerance):
    objective = holding(PARAMS)
    estimate = sf.measure(objective, "distance_from_initialization", initial_params=START)
    assert estimate.value == pytest.approx(np.sqrt(10), rel=tolerance)
    np.testing.assert_allclose(estimate.details["norms"], np.sqrt([3, 6, 1]), rtol=tolerance)
    length = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(START)))
    assert estimate.details["relative"] == pytest.approx(np.sqrt(10) / length, rel=tolerance)
    assert (estimate.standard_error, estimate.converged) == (0.0, True)
    still = sf.measure(objective, "distance_from_initialization", initial_params=PARAMS)
    assert still.value == pytest.approx(0.0, abs=1e-6)


def test_distance_of_some_parameters_from_the_whole_start(tolerance):
    some = holding(PARAMS).restrict("a/*")
    estimate = sf.measure(some, "distance_from_initialization", initial_params=START)
    assert estimate.value == pytest.approx(3.0, rel=tolerance)


def test_distance_from_zero_is_finite_with_no_relative_one():
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    estimate = sf.measure(holding(PARAMS), "distance_from_initialization", initial_params=zeros)
    assert np.isfinite(estimate.value)
    assert estimate.converged
    assert estimate.details["relative"] == np.inf


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"a": START["a"]}, "initial_params: has no 'b'"),
        ({**START, "b": np.zeros(2)}, r"initial_params: 'b' has shape \(2,\), where .* \(\)"),
        ({**START, "b": np.nan}, "initial_params: hold numbers that are not finite"),
        (None, "needs 'initial_params'"),
    ],
)
def test_a_start_that_does_not_match_is_refused(start, message):
    with pytest.raises(sf.InputError, match=message):
        sf.measure(holding(PARAMS), "distance_from_initialization", initial_params=start)


def test_distance_does_not_recompile_on_the_second_call():
    objective = holding(PARAMS)
    sf.measure(objective, "distance_from_initialization", initial_params=arrays(START))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        other = arrays(jax.tree.map(lambda leaf: leaf - 1.0, START))
        sf.measure(objective, "distance_from_initialization", initial_params=other, seed=1)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled


def objective_of(module, data=DATA, **about):
    """With parameters and averages at random, the averages positive."""
    number = jnp.result_type(float)
    inputs, labels = jnp.asarray(data[0], number), jnp.asarray(data[1])
    model = sf.Model.of(module)
    start = jax.eval_shape(model.init, jax.random.key(0), inputs)
    start = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, number), start)
    params = sf.trees.random_like(jax.random.key(1), start[0], sampler=jax.random.normal)
    state = sf.trees.random_like(jax.random.key(2), start[1], sampler=jax.random.uniform)
    return sf.Objective.from_model(model, params, state, (inputs, labels), **about)


def perceptron(**about):
    return objective_of(sf.models["mlp"](2, width=4, depth=1), **about)


def squares_of_paths(params, factors=1.0, shifts=None):
    """Σ over the paths of a perceptron with one hidden layer, one path at a time."""
    squares = jax.tree.map(lambda leaf: np.square(np.asarray(leaf, np.float64)), params)
    first, last = squares["Dense_0"], squares["Dense_1"]
    inputs, hidden = first["kernel"].shape
    factors, total = np.broadcast_to(factors, hidden), last["bias"].sum()
    for j, k in itertools.product(range(hidden), range(last["kernel"].shape[1])):
        below = sum(first["kernel"][i, j] for i in range(inputs)) + first["bias"][j]
        through = below * factors[j] + (0.0 if shifts is None else shifts[j] ** 2)
        total += through * last["kernel"][j, k]
    return total


def test_path_norm_by_every_path(tolerance):
    objective = perceptron()
    expected = squares_of_paths(objective.params)
    estimate = sf.measure(objective, "path_norm")
    assert estimate.value == pytest.approx(np.sqrt(expected), rel=tolerance)
    assert estimate.details["squared"] == pytest.approx(expected, rel=tolerance)
    assert (estimate.standard_error, estimate.converged) == (0.0, True)


class Convolution(nn.Module):
    """A 2 × 2 convolution of one channel to two, rectified, then a dense layer."""

    @nn.compact
    def __call__(self, inputs):
        x = nn.relu(nn.Conv(2, (2, 2), padding="VALID", use_bias=False)(inputs))
        return nn.Dense(2, use_bias=False)(x.reshape(len(x), -1))


def test_path_norm_of_a_convolution_by_every_path(tolerance):
    images = (RNG.normal(size=(2, 3, 3, 1)), np.zeros(2, int))
    objective = objective_of(Convolution(), data=images)
    kernel = np.asarray(objective.params["Conv_0"]["kernel"], np.float64) ** 2
    dense = np.asarray(objective.params["Dense_0"]["kernel"], np.float64).reshape(2, 2, 2, 2) ** 2
    total = 0.0
    for row, column, channel, output in itertools.product(range(2), repeat=4):
        for down, right in itertools.product(range(2), repeat=2):
            total += kernel[down, right, 0, channel] * dense[row, column, channel, output]
    found = sf.measure(objective, "path_norm")
    assert found.details["squared"] == pytest.approx(total, rel=tolerance)


@pytest.mark.parametrize(
    ("policy", "variance"),
    [("running", None), ("running", 1e-6), ("running", 0.0), ("batch", None)],
)
def test_batch_norm_is_a_factor_of_each_unit(policy, variance, tolerance):
    """Small variances too, where the layer's ε = 1e-3 is all there is of the denominator."""
    network = sf.models["mlp"](2, width=4, depth=1, batch_norm=True)
    objective = objective_of(network, batch_norm=policy, chunk=6)
    averages = objective.model_state["batch_stats"]["BatchNorm_0"]
    if variance is not None:
        averages["var"] = averages["var"].at[1:].set(variance)
    norm = {k: np.asarray(v, np.float64) for k, v in objective.params["BatchNorm_0"].items()}
    factors = norm["scale"] ** 2 / (np.asarray(averages["var"], np.float64) + 1e-3)
    expected = squares_of_paths(objective.params, factors, norm["bias"])
    found = sf.measure(objective, "path_norm")
    assert found.details["squared"] == pytest.approx(expected, rel=tolerance)
    assert found.converged


class Residual(nn.Module):
    """x + batch norm (x W), twice, each with its own ε."""

    @nn.compact
    def __call__(self, inputs, *, use_running_average):
        x = inputs
        for epsilon in (1e-2, 1e-4):
            step = nn.Dense(3, use_bias=False)(x)
            norm = nn.BatchNorm(use_running_average=use_running_average, epsilon=epsilon)
            x = x + nn.relu(norm(step))
        return x


def test_batch_norms_within_residual_blocks_keep_their_own_epsilon(tolerance):
    objective = objective_of(Residual())
    params, averages = objective.params, objective.model_state["batch_stats"]
    x = np.ones(3)
    for block, epsilon in enumerate((1e-2, 1e-4)):
        kernel = np.asarray(params[f"Dense_{block}"]["kernel"], np.float64) ** 2
        norm, variance = params[f"BatchNorm_{block}"], averages[f"BatchNorm_{block}"]["var"]
        factor = np.asarray(norm["scale"], np.float64) ** 2 / (np.asarray(variance) + epsilon)
        x = x + (x @ kernel) * factor + np.asarray(norm["bias"], np.float64) ** 2
    found = sf.measure(objective, "path_norm").details["squared"]
    assert found == pytest.approx(x.sum(), rel=tolerance)


class Foreign(nnx.Module):
    """A dense layer, batch norm and a dense layer, in NNX."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, epsilon=1e-2, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, inputs):
        return self.last(nnx.relu(self.norm(self.first(inputs))))


def test_path_norm_of_an_nnx_network():
    network = Foreign(nnx.Rngs(0))
    network.norm.var[...] = jnp.array([1e-3, 0.1, 1.0, 2.0])
    network.norm.mean[...] = jnp.ones(4)
    objective = sf.Objective.from_model(network, None, None, (jnp.asarray(DATA[0]), DATA[1]))
    params = {
        f"Dense_{i}": {"kernel": layer.kernel[...], "bias": layer.bias[...]}
        for i, layer in enumerate((network.first, network.last))
    }
    factors = 1 / (np.asarray(network.norm.var[...], np.float64) + 1e-2)
    expected = squares_of_paths(params, factors, np.zeros(4))
    found = sf.measure(objective, "path_norm").details["squared"]
    assert found == pytest.approx(expected, rel=1e-4)


def test_path_norm_takes_the_averages_of_the_policy(x64):
    network = sf.models["mlp"](2, width=4, depth=1, batch_norm=True)
    recalibrated = objective_of(network, batch_norm="recalibrated")
    state = recalibrated.state_at(recalibrated.params)
    stored = sf.Objective.from_model(
        recalibrated.model, recalibrated.params, state, recalibrated.data
    )
    value = sf.measure(recalibrated, "path_norm").value
    assert value == pytest.approx(sf.measure(stored, "path_norm").value, rel=1e-9)
    running = sf.measure(objective_of(network), "path_norm").value
    assert value != pytest.approx(running, rel=1e-2)


def test_path_norm_is_fooled_by_no_rescaling_between_layers(x64):
    objective = perceptron()
    params = objective.params
    first, last = params["Dense_0"], params["Dense_1"]
    rescaled = {
        "Dense_0": jax.tree.map(lambda leaf: 7 * leaf, first),
        "Dense_1": {**last, "kernel": last["kernel"] / 7},
    }
    other = sf.Objective.from_model(objective.model, rescaled, {}, objective.data)
    plain = sf.measure(objective, "path_norm").value
    assert sf.measure(other, "path_norm").value == pytest.approx(plain, rel=1e-9)
    assert sf.measure(objective.restrict("Dense_0/*"), "path_norm").value == pytest.approx(plain)


class Unscaled(nn.Module):
    """Batch norm without a scale."""

    @nn.compact
    def __call__(self, inputs, *, use_running_average):
        norm = nn.BatchNorm(use_running_average=use_running_average, use_scale=False)
        return norm(nn.Dense(2)(inputs))


def test_networks_without_a_path_norm_are_refused_before_any_work():
    with pytest.raises(sf.InputError, match="path_norm: outputs: .* has no outputs"):
        sf.measure(quadratic(np.eye(2)), "path_norm")
    with pytest.raises(sf.InputError, match="path_norm: params: batch norm .*var' has no scale"):
        sf.measure(objective_of(Unscaled()), "path_norm")
    words = sf.Objective.from_model(
        nn.Embed(5, 2), {"embedding": jnp.ones((5, 2))}, {}, (jnp.array([0, 4]), jnp.array([0, 1]))
    )
    with pytest.raises(sf.InputError, match="path_norm: inputs: .* got int32"):
        sf.measure(words, "path_norm")


def test_a_path_norm_that_overflows_is_not_called_converged():
    objective = perceptron()
    huge = jax.tree.map(lambda leaf: 1e12 * leaf, objective.params)
    other = sf.Objective.from_model(objective.model, huge, {}, objective.data)
    assert not sf.measure(other, "path_norm").converged
