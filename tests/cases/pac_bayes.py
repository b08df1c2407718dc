"""A linear classifier, whose mean accuracy under Gaussian noise is a mean of normal integrals."""

import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.stats
from helpers import Case

import sharpflat as sf

WEIGHTS = np.array([1.0, -0.5, 2.0, 0.0])
EPSILON = 0.3


def examples():
    """Inputs on the right side of the plane, as far from it as they come."""
    inputs = np.random.default_rng(0).normal(size=(60, 4))
    return inputs * np.sign(inputs @ WEIGHTS)[:, None]


def score(w, inputs):
    """Logits (0, w · x): class 1 where w · x > 0."""
    return jnp.stack([jnp.zeros(len(inputs)), inputs @ w], axis=1)


def initial(key, inputs):
    return jnp.zeros(inputs.shape[1])


def classifier():
    model = sf.Model.from_functions(initial, score)
    data = jnp.asarray(examples(), jnp.float32), jnp.ones(60, int)
    return sf.Objective.from_model(model, jnp.asarray(WEIGHTS, jnp.float32), {}, data)


def flatness(variance):
    """1 / σ² where noise of `variance(σ)` on each weight costs a tenth of accuracy."""
    inputs = examples()

    def excess(sigma):
        spread = np.sqrt(inputs**2 @ variance(sigma))
        return scipy.stats.norm.cdf(-(inputs @ WEIGHTS) / spread).mean() - 0.1

    return scipy.optimize.brentq(excess, 1e-3, 10.0) ** -2


CASES = [
    Case(
        "pac_bayes_flatness", "linear", classifier,
        flatness(lambda sigma: np.full(4, sigma**2)), {"draws": 100},
    ),
    Case(
        "pac_bayes_flatness_magnitude", "linear", classifier,
        flatness(lambda sigma: (sigma * WEIGHTS) ** 2 + EPSILON**2),
        {"draws": 100, "epsilon": EPSILON},
    ),
]  # fmt: skip
