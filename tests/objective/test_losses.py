"""Losses that are no mean over the batch: refused, or told of."""

import jax
import jax.numpy as jnp
import pytest
from objective.problems import N, errors, squares

import sharpflat as sf


def normalised(weights, batch):
    return jnp.mean(
        errors(weights, sf.Batch(batch.inputs - batch.inputs.mean(0, keepdims=True), batch.labels))
    )


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
