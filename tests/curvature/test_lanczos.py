"""The certificate of an extreme eigenvalue: what the Lanczos polynomial says of a random start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import diagonal, quadratic, rotated

from sharpflat.curvature.krylov import Krylov, hessian
from sharpflat.curvature.lanczos import (
    RISK,
    eigenpairs,
    log_polynomial,
    missed,
    outermost_eigenvalue,
)

SPECTRUM = [50.0, 20.0, *np.linspace(0, 1, 48)]


@pytest.mark.parametrize("m", [1, 3, 5])
def test_the_polynomial_gives_the_next_vector(m, x64):
    """q_{m+1} = p_m(H) q_1, a unit vector: |p_m(λ)| |⟨v, q_1⟩| = |⟨v, q_{m+1}⟩| ≤ 1."""
    matrix = rotated(SPECTRUM)
    space = Krylov(hessian, quadratic(matrix), jax.random.key(0))
    space.grow(m)
    values, vectors = np.linalg.eigh(matrix)
    first, last = np.asarray(space.basis(m + 1))[[0, m]]
    ritz = np.linalg.eigvalsh(space.tridiagonal(m))
    growth = [log_polynomial(value, ritz, space.couplings(m)) for value in values]
    reached = np.exp(growth) * np.abs(vectors.T @ first)
    np.testing.assert_allclose(reached, np.abs(vectors.T @ last), atol=1e-9)
    assert reached.max() <= 1


@pytest.mark.parametrize(("spectrum", "tight"), [([2.0] + [1.0] * 199, True), (SPECTRUM, False)])
def test_the_bound_is_kept_and_met(spectrum, tight, x64):
    """At the outermost eigenvalue itself the bound is at most α for a share of at most α of starts.

    Where the next vector is that eigenvector, it is α to first order.
    """
    bowl, found = diagonal(spectrum), []
    for seed in range(400):
        space = Krylov(hessian, bowl, jax.random.key(seed))
        m = space.grow(1 if tight else 3)
        ritz = np.linalg.eigvalsh(space.tridiagonal(m))
        found.append(missed(space, ritz, max(spectrum)))
    for alpha in (0.05, 0.1, 0.2):
        share, spread = np.mean(np.array(found) <= alpha), np.sqrt(alpha * (1 - alpha) / 400)
        assert share <= alpha + 3 * spread
        assert not tight or share >= alpha - 3 * spread


def test_what_a_ritz_value_hides_and_what_a_whole_space_shows():
    space = Krylov(hessian, quadratic(rotated([3.0, 2.0, 1.0])), jax.random.key(0))
    ritz = np.linalg.eigvalsh(space.tridiagonal(space.grow(3)))
    assert missed(space, ritz, 2.5) == 1
    assert missed(space, ritz, 3.1) == 0
    flat = Krylov(hessian, quadratic(np.zeros((4, 4))), jax.random.key(0))
    assert missed(flat, np.linalg.eigvalsh(flat.tridiagonal(flat.grow(4))), 0.0) == 0


def test_of_a_start_that_is_half_given_twice_as_much_is_missed():
    """And the bulk, in which it lies, is left behind as by one that is all random."""
    bowl = diagonal([1.0] * 39_999 + [-0.5])
    spaces = [
        Krylov(hessian, bowl, jax.random.key(1), start=start) for start in (None, jnp.zeros(40_000))
    ]
    ritz = []
    for space in spaces:
        space.grow(2)
        ritz.append(np.linalg.eigvalsh(-space.tridiagonal(2)))
    plain, half = (missed(*pair, 0.6) for pair in zip(spaces, ritz, strict=True))
    assert half == pytest.approx(2 * plain, rel=1e-3)
    assert 0 < half < 1
    start = jnp.eye(1, 40_000)[0]
    warm = Krylov(hessian, bowl, jax.random.key(1), start=start)
    found = outermost_eigenvalue(warm, tolerance=1e-2, max_steps=50, sign=-1.0)
    assert found.value == pytest.approx(-0.5, rel=1e-2)
    assert found.missed <= RISK


@pytest.mark.parametrize("seed", range(5))
def test_a_further_pair_is_not_missed_in_a_bulk_at_one_place(seed):
    """The start of the last round lies in the bulk but for a part of p^(−1/2): one step, no 2."""
    space = Krylov(hessian, diagonal([5.0, 2.0] + [1.0] * 99_998), jax.random.key(seed))
    key = jax.random.key(100 + seed)
    found = eigenpairs(space, key, 2, tolerance=1e-2, max_steps=50)
    assert found.missed <= RISK
    np.testing.assert_allclose(found.values, [5.0, 2.0], rtol=1e-2)
