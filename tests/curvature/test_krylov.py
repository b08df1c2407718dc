"""Krylov spaces: orthonormal, exact, and the same whoever grew them."""

import jax
import jax.numpy as jnp
import matfree.decomp
import numpy as np
import pytest
from helpers import quadratic, rotated

import sharpflat as sf
from sharpflat.curvature.krylov import Krylov, hessian
from sharpflat.curvature.lanczos import RISK, eigenpairs, outermost_eigenvalue

SPECTRUM = [50.0, 20.0, *np.linspace(0, 1, 48)]


def space(matrix, seed=0):
    return Krylov(hessian, quadratic(matrix), jax.random.key(seed))


def test_basis_is_orthonormal_and_projects_the_matrix(x64):
    """Without reorthogonalisation the top eigenvalue comes back as ghosts (classic mistake 4)."""
    matrix = rotated(SPECTRUM)
    krylov = space(matrix)
    m = krylov.grow(40)
    basis = np.asarray(krylov.basis(m))[:m]
    np.testing.assert_allclose(basis @ basis.T, np.eye(m), atol=1e-12)
    np.testing.assert_allclose(krylov.tridiagonal(m), basis @ matrix @ basis.T, atol=1e-10)
    leak = matrix @ basis.T - basis.T @ krylov.tridiagonal(m)
    assert np.linalg.norm(leak) == pytest.approx(krylov.coupling(m), rel=1e-6)


def test_the_tridiagonal_is_that_of_another_library(x64):
    matrix = jnp.asarray(rotated(SPECTRUM))
    krylov = space(matrix)
    m = krylov.grow(12)
    lanczos = matfree.decomp.tridiag_sym(m, reortho="full", custom_vjp=False)
    theirs = lanczos(lambda v: matrix @ v, krylov.basis(1)[0]).J_small
    np.testing.assert_allclose(krylov.tridiagonal(m), theirs, atol=1e-10)


def test_single_precision_keeps_it_orthonormal():
    krylov = space(rotated(SPECTRUM))
    m = krylov.grow(40)
    basis = np.asarray(krylov.basis(m))[:m]
    np.testing.assert_allclose(basis @ basis.T, np.eye(m), atol=1e-5)


def test_it_ends_where_the_space_is_invariant():
    assert space(rotated([3.0] * 5 + [1.0] * 5)).grow(10) == 2
    assert space(np.zeros((6, 6))).grow(6) == 1


def test_growing_keeps_what_is_there_whatever_the_order():
    """A metric's number must not depend on which metrics were measured before it."""
    alone, grown = space(rotated(SPECTRUM)), space(rotated(SPECTRUM))
    grown.grow(35)
    found = [outermost_eigenvalue(one, tolerance=1e-3, max_steps=50) for one in (alone, grown)]
    assert found[0] == found[1]
    np.testing.assert_array_equal(alone.basis(5)[:5], grown.basis(5)[:5])


def test_steps_already_made_cost_no_product():
    made = []

    def counted(objective):
        made.append(1)
        return hessian(objective)

    krylov = Krylov(counted, quadratic(rotated(SPECTRUM)), jax.random.key(0))
    krylov.grow(20)
    krylov.grow(12)
    assert len(made) == 1


def test_locked_vectors_stay_out():
    matrix = rotated(SPECTRUM)
    top = np.linalg.eigh(matrix)[1][:, -1:].T
    krylov = Krylov(hessian, quadratic(matrix), jax.random.key(0), jnp.asarray(top, jnp.float32))
    m = krylov.grow(30)
    assert krylov.size == 49
    assert np.abs(np.asarray(krylov.basis(m)) @ top.T).max() < 1e-5
    assert np.linalg.eigvalsh(krylov.tridiagonal(m)).max() == pytest.approx(20, rel=1e-4)


def test_smallest_end():
    krylov = space(rotated([5.0, 1.0, 0.5, -2.0, -0.1]))
    found = eigenpairs(krylov, jax.random.key(1), 2, tolerance=1e-4, max_steps=5, sign=-1.0)
    np.testing.assert_allclose(found.values, [-2.0, -0.1], rtol=1e-4)


def test_a_round_without_certificate_does_not_prove_that_no_copy_is_missing(x64):
    """From a start that holds one 2 and a 1 alone; two steps do not show the other 2."""
    spectrum = jnp.array([2.0, 2.0, 1.0, *np.linspace(-1.9, 0.9, 200)])
    bowl = sf.Objective.from_function(
        lambda w, batch: 0.5 * jnp.sum(spectrum * w**2),
        jnp.zeros(203),
        (jnp.ones((1, 1)), jnp.ones(1)),
    )
    for steps, complete in ((2, False), (60, True)):
        krylov = Krylov(hessian, bowl, jax.random.key(0))
        start = jnp.zeros(203).at[jnp.array([0, 2])].set(0.5**0.5)
        krylov._basis, krylov._last = krylov._basis.at[0].set(start), start
        found = eigenpairs(krylov, jax.random.key(1), 2, tolerance=1e-4, max_steps=steps)
        assert (found.missed <= RISK) == complete
    np.testing.assert_allclose(found.values, [2.0, 2.0], rtol=1e-4)


def test_a_space_may_be_used_at_no_step_after_it_has_grown():
    krylov = space(rotated(SPECTRUM))
    krylov.grow(5)
    assert krylov.tridiagonal(0).shape == (0, 0)


def test_from_a_warm_start_one_that_has_overtaken_it_is_found(x64):
    """The eigenvector of what was the largest is an eigenvector still."""
    matrix = np.diag([3.0, 2.5, *np.linspace(0, 1, 48)])
    start = jnp.eye(50)[1]
    warm = Krylov(hessian, quadratic(matrix), jax.random.key(0), start=start)
    found = outermost_eigenvalue(warm, tolerance=1e-6, max_steps=50)
    assert found.value == pytest.approx(3.0, rel=1e-6)
    again = Krylov(hessian, quadratic(matrix), jax.random.key(0), start=jnp.eye(50)[0])
    fewer = outermost_eigenvalue(again, tolerance=1e-6, max_steps=50)
    cold = outermost_eigenvalue(space(matrix), tolerance=1e-6, max_steps=50)
    assert fewer.products <= cold.products
    assert fewer.value == pytest.approx(3.0, rel=1e-6)
