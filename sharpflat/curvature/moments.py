"""Trace and Frobenius norm of a symmetric operator: a Krylov space exactly, the rest by probes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sharpflat.curvature.krylov import Krylov, in_range


class Moments(NamedTuple):
    """With Q a Krylov basis, T = QᵀHQ, and P = I − QQᵀ the projection on its complement.

    Attributes:
        trace: tr(E_l H) less tr(E_l PHP) for each leaf l, E_l the projection on it, `[leaves]`.
        square: ‖H‖_F² less ‖PHP‖_F², a scalar.
        traces: vᵀE_l PHPv for each probe v, `[probes, leaves]`; its mean estimates tr(E_l PHP).
        squares: ‖PHPv‖² for each probe, `[probes]`; its mean estimates ‖PHP‖_F².
        products: operator products used.
    """

    trace: np.ndarray
    square: float
    traces: np.ndarray
    squares: np.ndarray
    products: int


def moments(space: Krylov, key: jax.Array, steps: int, probes: int) -> Moments:
    """Both moments of the space's operator, from the same products.

    H = QQᵀH + PHQQᵀ + PHP. Of the first two everything is known from Lanczos: HQ = QT + β q eᵀ,
    with q the next basis vector. The outliers of the spectrum lie in Q, and what is left to the
    probes varies little; they are independent of Q, so their mean is unbiased and their spread
    gives the standard error. Where Q is the whole space, the result is exact.

    Args:
        space: a Krylov space of H, used as far as it has grown.
        key: PRNG key of the probes, whose entries are independent signs.
        steps: dimension of Q.
        probes: how many.

    Source: Hutch++ (Meyer et al., 2021) with Q of Chen and Hallman (2022).
    """
    m = space.grow(steps)
    basis, beta, triangle = space.basis(m + 1), space.coupling(m), space.tridiagonal(m)
    padded = np.zeros((len(basis), len(basis)))
    padded[:m, :m] = triangle
    if m:
        padded[m, m - 1] = padded[m - 1, m] = beta
    trace = _known(space.objective.params, basis, jnp.asarray(padded, basis.dtype))
    square = float(np.sum(triangle**2) + 2 * beta**2)
    traces, squares = np.zeros((probes, len(trace))), np.zeros(probes)
    if m < space.size:
        product = space.operator(space.objective)
        keys = jax.random.split(key, probes)
        found = _probed(product, space.objective.params, space.basis(m), keys)
        traces, squares, scales = (np.asarray(part, np.float64) for part in found)
        squares = squares * scales**2
    products = m + probes * (m < space.size)
    return Moments(np.asarray(trace, np.float64), square, traces, squares, products)


def _by_leaf(params: Any, left: jax.Array, right: jax.Array) -> jax.Array:
    """Σ left ∘ right over each leaf of flat vectors, `[leaves]`."""
    _, unravel = ravel_pytree(params)
    return jnp.stack([jnp.sum(leaf) for leaf in jax.tree.leaves(unravel(left * right))])


@jax.jit
def _known(params: Any, basis: jax.Array, triangle: jax.Array) -> jax.Array:
    """tr(E_l (QQᵀH + PHQQᵀ)): with T bordered by β, Σ_ij T_ij ⟨q_i, q_j⟩ over the leaf."""

    def one(total: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        vector, weights = row
        return total + _by_leaf(params, vector, weights @ basis), None

    zero = jnp.zeros(len(jax.tree.leaves(params)), basis.dtype)
    return jax.lax.scan(one, zero, (basis, triangle))[0]


@jax.jit
def _probed(
    product: Any, params: Any, basis: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """vᵀE_l PHPv, ‖PHPv‖² over a scale's square, and that scale."""
    flat, unravel = ravel_pytree(params)

    def outside(vector: jax.Array) -> jax.Array:
        return vector - (basis @ vector) @ basis

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        probe = jax.random.rademacher(key, flat.shape, dtype=flat.dtype)
        image = outside(ravel_pytree(product(unravel(outside(probe).astype(flat.dtype))))[0])
        small, scale = in_range(image)
        return _by_leaf(params, probe, image), small @ small, scale

    return jax.lax.map(one, keys)
