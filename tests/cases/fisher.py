"""The true Fisher trace of softmax regression, tr F = (1/n) Σ_i ‖x_i‖² Σ_c p_c (1 − p_c)."""

import jax.numpy as jnp
import numpy as np
from helpers import Case

import sharpflat as sf

WEIGHTS = np.random.default_rng(2).normal(size=(2, 3))


def linear_start(key, inputs):
    return jnp.zeros((2, 3))


def linear(params, inputs):
    return inputs @ params


def softmax_regression(n, scale=1.0, loss="cross_entropy"):
    number, rng = jnp.result_type(float), np.random.default_rng(3)
    data = (jnp.asarray(rng.normal(size=(n, 2)), number), jnp.asarray(rng.integers(0, 3, n)))
    model = sf.Model.from_functions(linear_start, linear)
    params = jnp.asarray(scale * WEIGHTS, number)
    return sf.Objective.from_model(model, params, {}, data, loss=loss, chunk=7)


def probabilities(objective):
    """Softmax of the outputs, in double precision."""
    logits = np.asarray(objective.data.inputs, np.float64) @ np.asarray(
        objective.params, np.float64
    )
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def true_trace(objective):
    p = probabilities(objective)
    squares = np.sum(np.asarray(objective.data.inputs, np.float64) ** 2, axis=1)
    return float(np.mean(squares * np.sum(p * (1 - p), axis=1)))


CASES = [
    Case(
        "fisher_trace", "softmax-5", lambda: softmax_regression(5),
        true_trace(softmax_regression(5)), {"draws": 30},
    ),
    Case(
        "fisher_trace", "softmax-60", lambda: softmax_regression(60),
        true_trace(softmax_regression(60)),
    ),
]  # fmt: skip
