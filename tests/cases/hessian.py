"""Moments of Hessians that are known."""

import functools

import jax.numpy as jnp
import numpy as np
from helpers import ONE, Case, quadratic, rotated

import sharpflat as sf

SPECTRUM = np.array([30.0, 12.0, 5.0, *np.linspace(-0.5, 2, 57)])
BOWL = functools.partial(quadratic, rotated(SPECTRUM))
KERNEL = np.random.default_rng(5).normal(size=(6, 3))
CURVATURE = rotated(np.linspace(0.5, 4, 18), seed=2).reshape(6, 3, 6, 3)


def regression():
    """Linear regression: the Gauss–Newton matrix is XᵀX / n for each of two outputs."""
    inputs = np.random.default_rng(0).normal(size=(40, 20)) * np.linspace(0.2, 3, 20)
    model = sf.Model.from_functions(lambda key, x: jnp.zeros((20, 2)), lambda w, x: x @ w)
    data = jnp.asarray(inputs, jnp.float32), jnp.zeros((40, 2))
    objective = sf.Objective.from_model(model, jnp.ones((20, 2)), {}, data, loss="squared_error")
    return objective, 2 * float(np.sum(inputs**2)) / 40


def layer():
    """½ ⟨W, H W⟩ with a dense H over the kernel's entries."""
    curvature = jnp.asarray(CURVATURE, jnp.float32)
    return sf.Objective.from_function(
        lambda w, batch: 0.5 * jnp.einsum("as,asbt,bt->", w["kernel"], curvature, w["kernel"]),
        {"kernel": jnp.asarray(KERNEL, jnp.float32)},
        ONE,
    )


KAPPA = np.einsum("as,at,bsbt->", KERNEL, KERNEL, CURVATURE)

CASES = [
    Case("hessian_trace", "outliers", BOWL, SPECTRUM.sum(), {"steps": 5}),
    Case("hessian_trace", "plain", BOWL, SPECTRUM.sum(), {"steps": 0, "probes": 40}),
    Case("hessian_frobenius_norm", "outliers", BOWL, np.linalg.norm(SPECTRUM), {"steps": 5}),
    Case("ggn_trace", "regression", lambda: regression()[0], regression()[1], {"steps": 5}),
    Case(
        "hessian_spectral_density", "mean", BOWL, SPECTRUM.mean(),
        {"probes": 30, "steps": 10, "points": 111},
    ),
    Case("relative_flatness", "dense", layer, KAPPA),
]  # fmt: skip
