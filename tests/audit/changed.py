"""Networks whose parametrisation changes, and the rows of one change."""

import jax
import jax.numpy as jnp
import numpy as np

import sharpflat as sf

ALPHA = 3.0


def objective_of(seed=0, **network):
    """Random parameters, biases and averages, in the default precision."""
    rng = np.random.default_rng(seed)

    def random(like):
        return jnp.asarray(0.7 * rng.normal(size=like.shape), jnp.result_type(float))

    inputs = random(np.empty((30, 4)))
    model = sf.Model.of(sf.models["mlp"](3, **{"width": 5, "depth": 1, **network}))
    params, state = jax.eval_shape(model.init, jax.random.key(seed), inputs)
    params = jax.tree.map(random, params)
    state = jax.tree.map(lambda like: jnp.abs(random(like)), state)
    data = (inputs, jnp.asarray(rng.integers(0, 3, 30)))
    return sf.Objective.from_model(model, params, state, data, chunk=15)


def by_change(table, index=0):
    """The rows of one of the metrics by the change's name."""
    names = list(dict.fromkeys(row.metric for row in table.rows))
    return {row.change: row for row in table.rows if row.metric == names[index]}
