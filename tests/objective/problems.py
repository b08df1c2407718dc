"""A network on a dozen examples."""

import jax
import jax.numpy as jnp

import sharpflat as sf

N = 12


def network(batch_norm=False):
    return sf.models["mlp"](3, width=4, depth=1, batch_norm=batch_norm)


def made(data, chunk=N, batch_norm="running", with_batch_norm=False, **kwargs):
    model = sf.Model.of(network(with_batch_norm))
    params, state = model.init(jax.random.key(1), data[0])
    return sf.Objective.from_model(
        model, params, state, data, batch_norm=batch_norm, chunk=chunk, **kwargs
    )


def errors(weights, batch):
    return (batch.inputs @ weights - batch.labels) ** 2


def squares(loss, data, **kwargs):
    return sf.Objective.from_function(loss, 2 * jnp.ones(5), (data[0] + 1, data[1]), **kwargs)
