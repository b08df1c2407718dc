"""Objective against dense linear algebra and against plain sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from objective.problems import N, made

import sharpflat as sf


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


@pytest.mark.parametrize("chunk", [1, 5, 12, 100, None])
def test_chunks_only_bound_memory(data, chunk):
    """A smaller last chunk counts by its size: no mean of means (classic mistake 1)."""
    whole, parts = made(data), made(data, chunk=chunk)
    p = whole.params
    np.testing.assert_allclose(parts.loss(p), whole.loss(p), rtol=1e-6)
    np.testing.assert_allclose(parts.accuracy(p), whole.accuracy(p), rtol=1e-6)
    np.testing.assert_allclose(
        flat(parts.value_and_grad(p)[1]), flat(whole.value_and_grad(p)[1]), atol=1e-6
    )
    vector = jax.tree.map(jnp.ones_like, p)
    for name in ("hvp", "ggn_vp"):
        np.testing.assert_allclose(
            flat(getattr(parts, name)(p, vector)), flat(getattr(whole, name)(p, vector)), atol=1e-6
        )
    np.testing.assert_allclose(parts.losses(p), whole.losses(p), rtol=1e-5)
    assert parts.outputs(p).shape == (N, 3)


def test_products_agree_with_the_dense_hessian(data):
    objective = made(data, chunk=5)
    vector, unravel = ravel_pytree(objective.params)
    dense = jax.hessian(lambda w: made(data).loss(unravel(w)))(vector)
    v = jax.random.normal(jax.random.key(0), vector.shape)
    expected = np.asarray(dense @ v)
    np.testing.assert_allclose(
        flat(objective.hvp(objective.params, unravel(v))), expected, atol=2e-6
    )
    for same in (objective, made(data)):
        product = same.linearize_hvp(objective.params)
        np.testing.assert_allclose(flat(product(unravel(v))), expected, atol=2e-6)


def test_every_parameter_is_in_the_hessian(data):
    """Biases and batch norm's scales are not left out (classic mistake 2)."""
    objective = made(data, with_batch_norm=True, batch_norm="batch")
    names = objective.layers()
    assert {"BatchNorm_0/scale", "BatchNorm_0/bias", "Dense_0/kernel", "Dense_1/bias"} <= set(names)
    v = sf.trees.random_direction(jax.random.key(0), objective.params)
    image = objective.hvp(objective.params, v)
    moved = {n for n, leaf in zip(names, jax.tree.leaves(image), strict=True) if (leaf != 0).any()}
    # Batch norm takes the bias before it out of the function: its curvature is exactly none.
    assert set(names) - moved <= {"Dense_0/bias"}


def test_ggn_equals_the_hessian_of_a_linear_model(data):
    apply = sf.Model.from_functions(lambda key, x: jnp.ones((5, 3)), lambda w, x: x @ w)
    objective = sf.Objective.from_model(apply, jnp.ones((5, 3)), None, data)
    v = jax.random.normal(jax.random.key(0), (5, 3))
    w = objective.params
    np.testing.assert_allclose(objective.ggn_vp(w, v), objective.hvp(w, v), atol=1e-6)


def test_per_example_gradients_average_to_the_gradient(data):
    objective = made(data, chunk=5)
    rows = objective.per_example_gradients(objective.params)
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), rows)
    assert jax.tree.leaves(rows)[0].shape[0] == N
    np.testing.assert_allclose(
        flat(mean), flat(objective.value_and_grad(objective.params)[1]), atol=1e-6
    )


def test_batch_policy_uses_each_chunks_own_statistics(data):
    objective = made(data, chunk=6, batch_norm="batch", with_batch_norm=True)
    model, p, state = objective.model, objective.params, objective.model_state
    halves = [
        made((data[0][part], data[1][part]), batch_norm="batch", with_batch_norm=True).loss(p)
        for part in (slice(0, 6), slice(6, 12))
    ]
    np.testing.assert_allclose(objective.loss(p), np.mean(halves), rtol=1e-6)
    outputs, _ = model.apply(p, state, data[0][:6], batch_statistics=True, dropout=False)
    np.testing.assert_allclose(objective.outputs(p)[:6], outputs, rtol=1e-5)


def test_recalibrated_policy_reestimates_at_every_point(data):
    """Perturbed parameters do not see the averages of the unperturbed (classic mistake 3)."""
    recalibrated = made(data, batch_norm="recalibrated", with_batch_norm=True)
    batch = made(data, batch_norm="batch", with_batch_norm=True)
    running = made(data, batch_norm="running", with_batch_norm=True)
    moved = jax.tree.map(lambda leaf: 3 * leaf + 0.1, recalibrated.params)
    # With one chunk, re-estimated averages are the batch's own statistics.
    np.testing.assert_allclose(recalibrated.loss(moved), batch.loss(moved), rtol=1e-5)
    assert abs(running.loss(moved) - batch.loss(moved)) > 1e-2


def test_recalibrated_gradient_holds_statistics_fixed(data):
    recalibrated = made(data, batch_norm="recalibrated", with_batch_norm=True)
    p = recalibrated.params
    frozen = sf.Objective.from_model(
        recalibrated.model, p, recalibrated.state_at(p), data, batch_norm="running"
    )
    np.testing.assert_allclose(
        flat(recalibrated.value_and_grad(p)[1]), flat(frozen.value_and_grad(p)[1]), atol=1e-6
    )


def test_data_are_arguments_not_constants(data):
    """The same shapes run the same program, whatever the numbers (classic mistake 16)."""
    first = made(data)
    second = made((data[0] + 1, data[1]))
    first.loss(first.params)
    from sharpflat.objective import derivatives

    before = derivatives.loss._cache_size()
    assert first.loss(first.params) != second.loss(second.params)
    assert derivatives.loss._cache_size() == before


def test_subset_and_from_function(data):
    objective = made(data)
    part = objective.subset([3, 1])
    np.testing.assert_allclose(
        part.losses(part.params), objective.losses(objective.params)[np.array([3, 1])], rtol=1e-6
    )
    plain = sf.Objective.from_function(
        lambda w, batch: jnp.mean((batch.inputs @ w["w"] - batch.labels) ** 2),
        {"w": np.ones(5)}, data, chunk=5,
    )  # fmt: skip
    expected = np.mean((np.asarray(data[0]).sum(axis=1) - np.asarray(data[1])) ** 2)
    np.testing.assert_allclose(plain.loss(plain.params), expected, rtol=1e-5)
    for name in ("outputs", "losses", "accuracy"):
        with pytest.raises(sf.InputError, match=f"{name}.*from_function"):
            getattr(plain, name)(plain.params)


def test_squared_error_of_integer_labels_is_of_one_hot_vectors(data):
    objective = made(data, loss="squared_error")
    outputs = np.asarray(objective.outputs(objective.params))
    expected = 0.5 * ((outputs - np.eye(3)[np.asarray(data[1])]) ** 2).sum(axis=1)
    np.testing.assert_allclose(objective.losses(objective.params), expected, rtol=1e-5)


@pytest.mark.parametrize("chunk", [3, 5, 12])
def test_recalibrated_chunks_bound_memory_for_one_such_layer(data, chunk):
    whole = made(data, batch_norm="recalibrated", with_batch_norm=True)
    parts = made(data, chunk=chunk, batch_norm="recalibrated", with_batch_norm=True)
    np.testing.assert_allclose(parts.loss(whole.params), whole.loss(whole.params), rtol=1e-5)


def test_objectives_are_made_inside_compiled_programs(data):
    """There labels may be traced, or constants among what is."""
    model, state = made(data).model, made(data).params

    @jax.jit
    def of_parameters(params):
        return sf.Objective.from_model(model, params, {}, data).loss(params)

    np.testing.assert_allclose(of_parameters(state), made(data).loss(state), rtol=1e-6)

    @jax.jit
    def loss(labels):
        objective = made((data[0], labels))
        return objective.loss(objective.params)

    np.testing.assert_allclose(loss(data[1]), made(data).loss(made(data).params), rtol=1e-6)
