"""Gradient noise on a bowl about scattered centers, where gradients and Hessian are known."""

import jax.numpy as jnp
import numpy as np
from helpers import Case, rotated

import sharpflat as sf


def bowl_loss(params, batch):
    step = params["w"][None] - batch.inputs
    return 0.5 * jnp.mean(jnp.sum((step @ params["matrix"]) * step, axis=1))


def bowl(matrix, centers, at=0.0, chunk=None):
    """½ mean_i (w − x_i)ᵀ A (w − x_i) as a function of w: g_i = A (w − x_i), H = A."""
    number = jnp.result_type(float)
    centers = jnp.asarray(centers, number)
    params = {"matrix": jnp.asarray(matrix, number), "w": jnp.full(centers.shape[1], at, number)}
    data = (centers, jnp.zeros(len(centers)))
    return sf.Objective.from_function(bowl_loss, params, data, chunk).restrict("w")


MATRIX = rotated(np.linspace(0.2, 6, 8))
CENTERS = np.random.default_rng(5).normal(size=(20, 8))


def seen_by_noise(matrix, centers):
    covariance = matrix @ np.cov(centers.T, ddof=0) @ matrix
    return np.trace(matrix @ covariance) / np.trace(covariance)


def alignment(matrix, centers):
    return seen_by_noise(matrix, centers) / (np.trace(matrix) / len(matrix))


def scattered():
    return bowl(MATRIX, CENTERS, 0.3)


CASES = [
    Case("noise_curvature_alignment", "bowl", scattered, alignment(MATRIX, CENTERS)),
    Case(
        "noise_curvature_alignment.noise_weighted_curvature", "bowl", scattered,
        seen_by_noise(MATRIX, CENTERS), {"draws": 100},
    ),
    Case(
        "noise_curvature_alignment.mean_eigenvalue", "bowl", scattered,
        np.trace(MATRIX) / len(MATRIX),
    ),
]  # fmt: skip
