"""The smoothed loss where a Gaussian's mean is known."""

import jax.numpy as jnp
import numpy as np
from helpers import ONE, Case, quadratic, rotated

import sharpflat as sf

SLOPES = np.array([1.0, -2.0, 0.5, 3.0])
SPECTRUM = [9.0, 4.0, 1.0, 0.25]


def exponential():
    """L = Σ exp(b_i w_i) at w = 0.1: E L(w + σ u) = Σ exp(0.1 b_i + b_i² σ² / 2)."""
    slopes = jnp.asarray(SLOPES, jnp.result_type(float))
    return sf.Objective.from_function(
        lambda w, batch: jnp.sum(jnp.exp(slopes * w)), jnp.full(4, 0.1), ONE
    )


CASES = [
    Case(
        "low_pass_filter", "exponential", exponential,
        np.sum(np.exp(0.1 * SLOPES + SLOPES**2 * 0.3**2 / 2)), {"sigma": 0.3},
    ),
    Case(
        "low_pass_filter", "quadratic", lambda: quadratic(rotated(SPECTRUM), floor=2.0),
        2.0 + 0.5 * 0.01**2 * sum(SPECTRUM),
    ),
]  # fmt: skip
