"""A small network, plain descent on it, and rules walked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sharpflat as sf
from sharpflat.objective import cross_entropy
from sharpflat.training import Recipe, make_optimizer

KEY = jax.random.key(5)
N, BATCH = 24, 8


def data(dtype=jnp.float32):
    inputs = jax.random.normal(jax.random.key(1), (N, 5), dtype)
    return sf.Batch(inputs, jax.random.randint(jax.random.key(2), (N,), 0, 3))


def descent(model, **about):
    """Plain descent of rate 1, whose step is minus the gradient."""
    rule = make_optimizer("gradient_descent", {"learning_rate": 1.0})
    return Recipe(sf.Model.of(model), cross_entropy, rule, **about)


def mlp(batch_norm=False):
    return sf.models["mlp"](3, width=4, depth=1, batch_norm=batch_norm)


def close(found, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


PARAMS = {
    "kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]),
    "bias": jnp.zeros(2),
    "scale": jnp.array([4.0, 2.0]),
}
GRADS = {
    "kernel": jnp.array([[0.3, 0.1], [-0.2, 0.4]]),
    "bias": jnp.array([0.5, -0.25]),
    "scale": jnp.array([0.1, 0.7]),
}


def walked(rule, count=2, params=PARAMS, grad_fn=lambda point: GRADS):
    rule, points = optax.with_extra_args_support(rule), [params]
    state = rule.init(params)
    for _ in range(count):
        change, state = rule.update(
            grad_fn(params), state, params, grad_fn=grad_fn, key=KEY, value=None
        )
        params = optax.apply_updates(params, change)
        points.append(params)
    return points
