"""Re-estimated batch-norm averages."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sharpflat as sf
from sharpflat.networks import pooled, recalibrate

DATA = sf.Batch(jax.random.normal(jax.random.key(0), (24, 5)) * 3 + 1, jnp.zeros(24, jnp.int32))


@pytest.fixture(scope="module")
def network():
    model = sf.Model.of(sf.models["mlp"](3, width=4, depth=1, batch_norm=True))
    return model, *model.init(jax.random.key(1), DATA.inputs)


def test_averages_are_those_of_the_data(network):
    """The mean and the variance itself, not its root (classic mistake 5)."""
    model, params, state = network
    after = recalibrate(model, params, state, DATA, chunk=24)["batch_stats"]["BatchNorm_0"]
    hidden = DATA.inputs @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]
    np.testing.assert_allclose(after["mean"], hidden.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after["var"], hidden.var(axis=0), rtol=1e-4)


@pytest.mark.parametrize("chunk", [7, 10])
def test_a_smaller_last_chunk_counts_by_its_size(network, chunk):
    model, params, state = network
    after = recalibrate(model, params, state, DATA, chunk)["batch_stats"]["BatchNorm_0"]
    hidden = DATA.inputs @ params["Dense_0"]["kernel"]
    np.testing.assert_allclose(after["mean"], hidden.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after["var"], hidden.var(axis=0), rtol=1e-4)


@pytest.mark.parametrize("scale", [255.0, 5000.0])
def test_large_inputs_leave_no_rounding_in_the_variance(network, scale):
    model, params, state = network
    data = sf.Batch(scale * DATA.inputs, DATA.labels)
    after = recalibrate(model, params, state, data, 7)["batch_stats"]["BatchNorm_0"]
    kernel = np.asarray(params["Dense_0"]["kernel"], np.float64)
    hidden = np.asarray(data.inputs, np.float64) @ kernel
    np.testing.assert_allclose(after["var"], hidden.var(axis=0), rtol=1e-3)


def test_old_averages_leave_no_trace(network):
    model, params, state = network
    other = jax.tree.map(lambda leaf: leaf + 100.0, state)
    one, two = (recalibrate(model, params, s, DATA, 24) for s in (state, other))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


def test_averages_of_parts_in_whole_chunks_pool_to_those_of_all(network):
    model, params, state = network
    ends = [0, 10, 20, 24]
    parts = [sf.Batch(DATA.inputs[i:j], DATA.labels[i:j]) for i, j in itertools.pairwise(ends)]
    states = [recalibrate(model, params, state, part, 5) for part in parts]
    whole = recalibrate(model, params, state, DATA, 5)
    for a, b in zip(*map(jax.tree.leaves, (pooled(states, [10, 10, 4]), whole)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert pooled(states[:1], [10]) is states[0]


def test_a_model_without_averages_keeps_its_state():
    model = sf.Model.of(sf.models["mlp"](3, width=4))
    params, state = model.init(jax.random.key(1), DATA.inputs)
    assert recalibrate(model, params, state, DATA, 24) == state
