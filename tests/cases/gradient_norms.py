"""Batch sharpness of a linear regression, by going through every batch."""

import itertools

import jax.numpy as jnp
import numpy as np
from helpers import Case

import sharpflat as sf

INPUTS = (
    np.random.default_rng(0).normal(size=(6, 2)) * np.array([1.0, 1.0, 1.0, 2.0, 2.0, 3.0])[:, None]
)
LABELS = np.array([1.0, -1.0, 0.5, 2.0, -0.5, 1.5])
WEIGHTS = np.array([0.7, -0.4])


def squared_loss(params, batch):
    return 0.5 * jnp.mean((batch.inputs @ params - batch.labels) ** 2)


def regression():
    number = jnp.result_type(float)
    data = (jnp.asarray(INPUTS, number), jnp.asarray(LABELS, number))
    return sf.Objective.from_function(squared_loss, jnp.asarray(WEIGHTS, number), data)


def along_gradients(size):
    """gᵀHg and ‖g‖² of every batch of `size` different examples."""
    found = []
    for batch in itertools.combinations(range(len(INPUTS)), size):
        x, y = INPUTS[list(batch)], LABELS[list(batch)]
        gradient, hessian = x.T @ (x @ WEIGHTS - y) / size, x.T @ x / size
        found.append((gradient @ hessian @ gradient, gradient @ gradient))
    return np.array(found).T


def sharpness(size):
    curvature, square = along_gradients(size)
    return float(np.mean(curvature / square))


def ratio_of_expectations(size):
    curvature, square = along_gradients(size)
    return float(np.mean(curvature) / np.mean(square))


CASES = [
    Case("batch_sharpness", "regression-2", regression, sharpness(2), {"batch_size": 2}),
    Case(
        "batch_sharpness", "regression-4", regression, sharpness(4), {"batch_size": 4, "draws": 30}
    ),
    Case(
        "batch_sharpness.ratio_of_expectations", "regression-2", regression,
        ratio_of_expectations(2), {"batch_size": 2},
    ),
]  # fmt: skip
