"""Problems with known answers, shared by the tests."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

import sharpflat as sf

ONE = (jnp.ones((1, 1)), jnp.ones(1))


def rotated(spectrum, seed=0):
    """A dense symmetric matrix with the given eigenvalues, in double precision."""
    spectrum = np.asarray(spectrum, dtype=np.float64)
    gaussian = np.random.default_rng(seed).normal(size=(len(spectrum), len(spectrum)))
    basis, _ = np.linalg.qr(gaussian)
    return (basis * spectrum) @ basis.T


def quadratic(matrix, minimum=None, floor=0.0):
    """f(w) = ½ (w − m)ᵀ H (w − m) + floor, at w = m: gradient zero, Hessian H."""
    matrix = jnp.asarray(matrix, jnp.result_type(float))
    center = jnp.zeros(len(matrix)) if minimum is None else jnp.asarray(minimum, matrix.dtype)

    def loss(params, batch):
        step = params["w"] - center
        return 0.5 * step @ matrix @ step + floor

    return sf.Objective.from_function(loss, {"w": center}, ONE)


def diagonal(spectrum):
    """f(w) = ½ Σ h_i w_i² at 0, in as many parameters as wanted: the matrix is never there."""
    spectrum = jnp.asarray(spectrum, jnp.result_type(float))
    zero = jnp.zeros_like(spectrum)
    return sf.Objective.from_function(lambda w, _: 0.5 * jnp.sum(spectrum * w**2), zero, ONE)


class Case(NamedTuple):
    """A metric on a problem where its value is known.

    `cases/` holds them, a module a family; `test_coverage.py` asks of every one of them whether
    value ± 1.96 standard errors covers the truth as often as it should.
    """

    metric: str
    problem: str
    objective: Callable[[], sf.Objective]
    truth: float
    arguments: dict[str, Any] = {}  # noqa: RUF012 — never written to
    inputs: dict[str, Any] = {}  # noqa: RUF012


class Nnx(nnx.Module):
    """An NNX network with batch norm."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(5, 8, rngs=rngs)
        self.bn = nnx.BatchNorm(8, rngs=rngs)
        self.body = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.body(nnx.relu(self.bn(self.hidden(x))))
