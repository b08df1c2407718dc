"""Trace and Frobenius norm by leaf: exact where Q is everything, unbiased elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ONE, rotated
from jax.flatten_util import ravel_pytree

import sharpflat as sf
from sharpflat.curvature.krylov import Krylov, hessian
from sharpflat.curvature.moments import moments

SPECTRUM = [30.0, 10.0, *np.linspace(-0.5, 2, 10)]
PARAMS = {"a": np.zeros((2, 3)), "b": np.zeros(6)}


@pytest.fixture
def problem(x64):
    matrix = jnp.asarray(rotated(SPECTRUM))

    def loss(params, batch):
        flat = ravel_pytree(params)[0]
        return 0.5 * flat @ matrix @ flat

    return sf.Objective.from_function(loss, PARAMS, ONE), np.asarray(matrix)


def found(objective, steps, probes, seed=0):
    space = Krylov(hessian, objective, jax.random.key(seed))
    return moments(space, jax.random.key(seed + 1000), steps, probes)


def test_exact_where_the_space_is_whole(problem):
    objective, matrix = problem
    m = found(objective, steps=12, probes=5)
    diagonal = np.diag(matrix)
    np.testing.assert_allclose(m.trace, [diagonal[:6].sum(), diagonal[6:].sum()], rtol=1e-10)
    assert m.square == pytest.approx(np.sum(matrix**2), rel=1e-10)
    assert (m.traces == 0).all()
    assert m.products == 12


@pytest.mark.parametrize("steps", [0, 3])
def test_unbiased_by_leaf_and_in_the_square(problem, steps):
    objective, matrix = problem
    m = found(objective, steps=steps, probes=4000)
    diagonal = np.diag(matrix)
    for leaf, truth in enumerate([diagonal[:6].sum(), diagonal[6:].sum()]):
        samples = m.trace[leaf] + m.traces[:, leaf]
        assert abs(samples.mean() - truth) < 4 * samples.std() / np.sqrt(len(samples))
    samples = m.square + m.squares
    assert abs(samples.mean() - np.sum(matrix**2)) < 4 * samples.std() / np.sqrt(len(samples))


def test_the_space_takes_the_outliers_off_the_probes(problem):
    objective, _ = problem
    plain, deflated = (found(objective, steps, 400).traces.sum(axis=1).std() for steps in (0, 4))
    assert deflated < 0.2 * plain
