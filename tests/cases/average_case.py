"""Average-case sharpness on losses whose Gaussian and uniform means are known."""

import jax.numpy as jnp
import numpy as np
from helpers import ONE, Case, rotated

import sharpflat as sf

H = rotated([9.0, 4.0, 1.0, 0.25])
WEIGHTS = np.array([1.0, -2.0, 0.5, 0.0])
FACTORS = np.array([1.0, 3.0, 0.5, 2.0, 1.0, 0.0, 7.0])
RHO = 0.3


def bowl():
    """L_B = mean(a) · ½ wᵀHw away from its minimum, so that the gradient adds noise."""
    inputs, matrix = jnp.asarray(FACTORS)[:, None], jnp.asarray(H, jnp.result_type(float))

    def loss(w, batch):
        return jnp.mean(batch.inputs) * 0.5 * w @ matrix @ w

    return sf.Objective.from_function(loss, jnp.asarray(WEIGHTS), (inputs, jnp.zeros(7)))


def exponential():
    """L = Σ exp(w_i): E exp(w + s u) = exp(w + s²/2) for a standard normal u."""
    return sf.Objective.from_function(
        lambda w, batch: jnp.sum(jnp.exp(w)), jnp.asarray(WEIGHTS), ONE
    )


def mean_rise(scale):
    return np.sum(np.exp(WEIGHTS + (RHO * scale) ** 2 / 2) - np.exp(WEIGHTS))


CURVATURE = 0.5 * RHO**2 * np.sum(WEIGHTS**2 * np.diag(H))
SUBSETS = {"rho": RHO, "batch_size": 3, "draws": 30}
TWO = FACTORS[:6].reshape(2, 3).mean()

CASES = [
    Case("average_case_sharpness", "subsets", bowl, TWO * CURVATURE, SUBSETS),
    Case(
        "average_case_sharpness", "uniform", bowl, TWO * CURVATURE / 3,
        {**SUBSETS, "noise": "uniform"},
    ),
    Case(
        "average_case_sharpness", "exponential", exponential, mean_rise(np.abs(WEIGHTS)),
        {"rho": RHO, "batch_size": None, "draws": 60},
    ),
    Case(
        "average_case_sharpness", "antithetic", exponential, mean_rise(1.0),
        {"rho": RHO, "batch_size": None, "draws": 60, "antithetic": True, "adaptive": False},
    ),
]  # fmt: skip
