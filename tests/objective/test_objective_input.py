"""What an objective refuses: by name, before any work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective.problems import N, errors, made, network, squares

import sharpflat as sf


def test_a_subset_that_the_chunk_does_not_divide_is_refused_under_batch(data):
    objective = made(data, chunk=4, batch_norm="batch", with_batch_norm=True)
    with pytest.raises(sf.InputError, match="chunk: 4 does not divide the 6 examples"):
        objective.subset(range(6))


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
