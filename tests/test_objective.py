"""Objective against dense linear algebra and against plain sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import sharpflat as sf

N = 12


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(N, 5)), jnp.float32), jnp.asarray(rng.integers(0, 3, N))


def network(batch_norm=False):
    return sf.models["mlp"](3, width=4, depth=1, batch_norm=batch_norm)


def made(data, chunk=N, batch_norm="running", with_batch_norm=False, **kwargs):
    model = sf.Model.of(network(with_batch_norm))
    params, state = model.init(jax.random.key(1), data[0])
    return sf.Objective.from_model(
        model, params, state, data, batch_norm=batch_norm, chunk=chunk, **kwargs
    )


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


def test_a_subset_that_the_chunk_does_not_divide_is_refused_under_batch(data):
    objective = made(data, chunk=4, batch_norm="batch", with_batch_norm=True)
    with pytest.raises(sf.InputError, match="chunk: 4 does not divide the 6 examples"):
        objective.subset(range(6))


@pytest.mark.parametrize("chunk", [3, 5, 12])
def test_recalibrated_chunks_bound_memory_for_one_such_layer(data, chunk):
    whole = made(data, batch_norm="recalibrated", with_batch_norm=True)
    parts = made(data, chunk=chunk, batch_norm="recalibrated", with_batch_norm=True)
    np.testing.assert_allclose(parts.loss(whole.params), whole.loss(whole.params), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 5, "batch_norm": "batch", "with_batch_norm": True}, "chunk: 5 does not divide"),
        ({"chunk": 0}, "chunk: expected a whole number"),
        ({"batch_norm": "runing"}, "did you mean 'running'"),
        ({"loss": "crossentropy"}, "did you mean 'cross_entropy'"),
    ],
)
def test_bad_input_is_named(data, change, message):
    with pytest.raises(sf.InputError, match=message):
        made(data, **change)


def loss_of_nothing(params, batch):
    return jnp.zeros(())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((jnp.ones((0, 2)), jnp.ones(0)), "data: the data set is empty"),
        ((jnp.ones((3, 2)), jnp.ones(2)), "data: 3 inputs but labels of shape"),
        (jnp.ones((2, 2)), r"data: expected a pair .* got an array of shape \(2, 2\)"),
        ((jnp.ones(2), jnp.ones(2), jnp.ones(2)), "data: expected a pair .* got 3 parts"),
        ((["a"], jnp.ones(1)), "data: expected two arrays"),
    ],
)
def test_data_that_are_none_are_refused(data, message):
    with pytest.raises(sf.InputError, match=message):
        sf.Objective.from_function(loss_of_nothing, jnp.ones(()), data)


@pytest.mark.parametrize(
    ("loss", "params", "message"),
    [
        (loss_of_nothing, {}, "params: are empty"),
        (loss_of_nothing, {"a": {"w": jnp.arange(3)}}, "params: 'a/w' expected floating-point"),
        (loss_of_nothing, jnp.ones(2, complex), "params: expected floating-point numbers"),
        (lambda w, batch: w, jnp.ones(3), r"loss: expected a scalar.*got shape \(3,\)"),
        (lambda w, batch: (w[0], w), jnp.ones(3), "loss: expected a scalar.*got tuple"),
    ],
)
def test_parameters_and_losses_that_are_none_are_refused(data, loss, params, message):
    with pytest.raises(sf.InputError, match=message):
        sf.Objective.from_function(loss, params, data)


def test_a_mean_where_each_example_has_a_loss_is_refused(data):
    with pytest.raises(sf.InputError, match=r"loss: expected a number an example, got shape \(\)"):
        made(data, loss=lambda outputs, labels: jnp.mean(outputs))


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("first", [-1, 3])
def test_labels_that_no_output_has_are_refused(data, loss, first):
    """One-based classes too: the loss would be NaN, or that of another class."""
    labels = data[1].at[0].set(first)
    with pytest.raises(sf.InputError, match="labels: expected 0 to 2, as there are 3 outputs"):
        made((data[0], labels), loss=loss)


@pytest.mark.parametrize(
    ("labels", "loss"),
    [
        (np.zeros(N), "cross_entropy"),
        (np.eye(3)[[0] * N], "cross_entropy"),
        (np.zeros((N, 1), int), "cross_entropy"),
        (np.zeros(N), "squared_error"),
        (np.zeros((N, 1), int), "squared_error"),
    ],
)
def test_labels_of_another_kind_are_refused(data, labels, loss):
    with pytest.raises(sf.InputError, match="labels: expected "):
        made((data[0], jnp.asarray(labels)), loss=loss)


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


def errors(weights, batch):
    return (batch.inputs @ weights - batch.labels) ** 2


def normalised(weights, batch):
    return jnp.mean(
        errors(weights, sf.Batch(batch.inputs - batch.inputs.mean(0, keepdims=True), batch.labels))
    )


def squares(loss, data, **kwargs):
    return sf.Objective.from_function(loss, 2 * jnp.ones(5), (data[0] + 1, data[1]), **kwargs)


@pytest.mark.parametrize("chunk", [4, 5])
def test_a_sum_over_the_batch_is_refused(data, chunk):
    """Its numbers would depend on the chunk."""
    with pytest.raises(sf.InputError, match="loss: expected the mean over the batch, got a sum: "):
        squares(lambda w, batch: jnp.sum(errors(w, batch)), data, chunk=chunk)


def test_a_sum_is_refused_where_it_is_zero(data):
    """As at the minimum of least squares."""
    exact = (data[0], data[0] @ jnp.ones(5))
    with pytest.raises(sf.InputError, match="got a sum"):
        sf.Objective.from_function(
            lambda w, batch: jnp.sum(errors(w, batch)), jnp.ones(5), exact, chunk=4
        )


@pytest.mark.parametrize("loss", [lambda w, b: errors(w, b).sum() + 50 * w @ w, normalised])
def test_what_else_is_no_mean_is_told_of(data, loss):
    with pytest.warns(UserWarning, match="loss: is no mean over the batch"):
        squares(loss, (data[0].at[:6].add(3), data[1]), chunk=N - 1)


def test_half_of_the_examples_masked_is_no_sum(data):
    """Of two halves with nothing in one, a mean is the sum."""

    def masked(w, batch):
        labelled = batch.labels >= 0
        return jnp.sum(labelled * errors(w, batch)) / jnp.maximum(labelled.sum(), 1)

    labels = jnp.where(jnp.arange(N) < N // 2, 1.0, -1.0)
    with pytest.warns(UserWarning, match="is no mean over the batch"):
        squares(masked, (data[0], labels), chunk=N - 1)
    with pytest.warns(UserWarning, match="is a sum over the batch, which is right only if"):
        squares(lambda w, batch: jnp.sum(errors(w, batch)) / N, data)


def test_means_with_a_penalty_and_losses_of_all_their_examples_are_none_of_it(data):
    squares(lambda w, batch: jnp.mean(errors(w, batch)) + 10 * w @ w, data)
    squares(lambda w, batch: jnp.arange(N) @ errors(w, batch) / N, data)

    @jax.jit
    def summed(inputs):
        loss = squares(lambda w, batch: jnp.sum(errors(w, batch)), (inputs, data[1]))
        return loss.loss(loss.params)

    assert jnp.isfinite(summed(data[0])), "without numbers nothing can be compared"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["inputs", "labels"])
def test_data_that_are_not_finite_are_refused(data, part, value):
    inputs, labels = np.array(data[0]), np.zeros(N, np.float32)
    {"inputs": inputs, "labels": labels}[part][[3, 7]] = value
    message = f"data: {part} hold numbers that are not finite, in 2 of 12 examples, .* example 3"
    with pytest.raises(sf.InputError, match=message):
        made((inputs, labels), loss="squared_error")


def test_a_loss_of_ones_own_may_look_past_missing_labels(data):
    labels = jnp.asarray(data[1], jnp.float32).at[3].set(jnp.nan)

    def known(w, batch):
        missing = jnp.isnan(batch.labels)
        rows = errors(w, sf.Batch(batch.inputs, jnp.where(missing, 0.0, batch.labels)))
        return jnp.mean(jnp.where(missing, 0.0, rows))

    assert jnp.isfinite(squares(known, (data[0], labels)).loss(2 * jnp.ones(5)))


@pytest.mark.parametrize("kind", [int, bool])
def test_a_loss_of_whole_numbers_is_refused(data, kind):
    with pytest.raises(
        sf.InputError, match=f"loss: expected floating-point numbers, got {kind.__name__}"
    ):
        squares(lambda w, batch: jnp.sum(w).astype(kind), data)
    with pytest.raises(sf.InputError, match="loss: expected floating-point"):
        made(data, loss=lambda outputs, labels: outputs.argmax(axis=1) != labels)


STATISTICS = "batch_stats/BatchNorm_0/mean"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, s: ({"params": p}, s), "params: got 'params/.*; expected 'BatchNorm_0/bias'"),
        (lambda p, s: (p["Dense_0"], s), "params: got 'bias', 'kernel'; expected 'BatchNorm_0/b"),
        (lambda p, s: (p["Dense_0"]["bias"], s), "params: got one array; expected"),
        (
            lambda p, s: ({**p, "Dense_0": p["Dense_1"]}, s),
            r"params: 'Dense_0/bias' has shape \(3,\); expected \(4,\), as the model has it",
        ),
        (lambda p, s: (p, None), f"model_state: got nothing; expected '{STATISTICS}'"),
        (
            lambda p, s: (p, s["batch_stats"]),
            f"model_state: got 'BatchNorm_0/mean', .*; expected '{STATISTICS}'",
        ),
    ],
)
def test_parameters_and_states_of_another_model_are_named(data, change, message):
    model = sf.Model.of(network(batch_norm=True))
    with pytest.raises(sf.InputError, match=message):
        sf.Objective.from_model(model, *change(*model.init(jax.random.key(1), data[0])), data)


class Uninitialised(sf.Model):
    def apply(self, params, model_state, inputs, *, key=None, **flags):
        return network().apply({"params": params}, inputs, **flags), model_state


def test_parameters_that_do_not_fit_a_model_without_a_start(data):
    with pytest.raises(
        sf.InputError, match="params or model_state: do not fit the model: .*kernel"
    ):
        sf.Objective.from_model(Uninitialised(), {"w": jnp.ones(3)}, None, data)
