"""One filter of two weights: the direction is an angle, and the mean radius an integral over it."""

import jax.numpy as jnp
import numpy as np
from helpers import ONE, Case

import sharpflat as sf

SPECTRUM, WEIGHTS, RISE = np.array([9.0, 1.0]), np.array([3.0, -4.0]), 0.5


def bowl():
    """L = ½ Σ h_i (w_i − m_i)² at its minimum m, and a bias that must not move."""
    center = jnp.asarray(WEIGHTS, jnp.result_type(float))[:, None]
    spectrum = jnp.asarray(SPECTRUM, center.dtype)[:, None]

    def loss(params, batch):
        step = params["kernel"] - center
        return 0.5 * jnp.sum(spectrum * step**2) + jnp.sum(params["bias"] ** 2)

    params = {"kernel": center, "bias": jnp.zeros(1)}
    return sf.Objective.from_function(loss, params, ONE)


angles = np.linspace(0, 2 * np.pi, 10_000, endpoint=False)
curvature = SPECTRUM[0] * np.cos(angles) ** 2 + SPECTRUM[1] * np.sin(angles) ** 2
RADIUS = np.mean(np.sqrt(2 * RISE / curvature)) / np.linalg.norm(WEIGHTS)

CASES = [Case("radius_to_loss", "one filter", bowl, RADIUS, {"rise": RISE, "directions": 40})]
