"""Extreme eigenvalues of a symmetric operator on parameters, each with its certificate."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sharpflat.curvature.krylov import Krylov


class Eigenvalue(NamedTuple):
    """One eigenvalue.

    Attributes:
        value: λ.
        residual: ‖Hv − λv‖ / |λ|.
        error: a bound of the relative distance to an eigenvalue of H: see `outermost_eigenvalue`.
        products: operator products used, those of a shared space included.
    """

    value: float
    residual: float
    error: float
    products: int


class Eigenpairs(NamedTuple):
    """Eigenvalues, the wanted end first.

    Attributes:
        values: `[k]`.
        vectors: `[k, p]`, orthonormal, the parameters flattened by `ravel_pytree`.
        residuals: ‖Hv − λv‖ / |λ|, `[k]`.
        products: operator products used, those of a shared space included.
    """

    values: np.ndarray
    vectors: jax.Array
    residuals: np.ndarray
    products: int


def outermost_eigenvalue(
    space: Krylov, *, tolerance: float, max_steps: int, sign: float = 1.0
) -> Eigenvalue:
    """The largest eigenvalue (with `sign` −1 the smallest), to a relative error of `tolerance`.

    The space grows until min(r, r² / δ) ≤ `tolerance` |λ|, r = ‖Hv − λv‖ = β |s_m| from Lanczos and
    δ the distance from λ to the other Ritz values, each less its own residual. Some eigenvalue lies
    within r of λ (Weyl), and within r² / δ if no other one is nearer to λ than δ (Kato and Temple):
    nearer ones that the space has not met yet would escape the second.

    Args:
        space: a Krylov space of the operator, used as far as it has grown.
        tolerance: of the relative error.
        max_steps: Lanczos steps at most.
        sign: +1 for the largest, −1 for the smallest.

    Source: Parlett (1998), theorems 4.5.1 and 11.7.1.
    """
    m = space.grow(max_steps, lambda m: _outermost(space, m, sign).error <= tolerance)
    return _outermost(space, m, sign)


def _outermost(space: Krylov, m: int, sign: float) -> Eigenvalue:
    values, rotation = np.linalg.eigh(sign * space.tridiagonal(m))
    rounding = space.epsilon * np.abs(values).max()
    residuals = space.coupling(m) * np.abs(rotation[-1]) + rounding
    value, residual = values[-1], residuals[-1]
    gap = np.min(value - values[:-1] - residuals[:-1]) if m > 1 else 0.0
    bound = min(residual, residual**2 / gap) if gap > 0 else residual
    size = abs(value) if value else 1.0
    return Eigenvalue(sign * value, residual / size, (bound + rounding) / size, m)


def eigenpairs(
    space: Krylov,
    key: jax.Array,
    k: int,
    *,
    tolerance: float,
    max_steps: int,
    sign: float = 1.0,
) -> Eigenpairs:
    """The `k` algebraically largest eigenpairs (with `sign` −1 the smallest).

    The space grows until its outermost k Ritz pairs have a residual of at most `tolerance`, which
    is then computed anew from products of their own. Those are locked, and the next round looks in
    their complement from a new start, so that eigenvalues of any multiplicity are found, until a
    round shows nothing further out; a round that certifies nothing ends it all.

    Args:
        space: a Krylov space of the operator, used as far as it has grown.
        key: PRNG key of the later rounds' starts.
        k: at most the number of parameters.
        tolerance: of the relative residual.
        max_steps: Lanczos steps of a round, at most.
        sign: +1 for the largest, −1 for the smallest.
    """
    locked, products = _empty(space), 0
    while True:
        found = _round(space, k, tolerance, max_steps, sign)
        products += found.products
        if len(locked.values) >= k and not _further_out(found, locked, k, tolerance, sign):
            break
        certified = (found.residuals <= tolerance).any()
        locked = _joined(locked, found, tolerance if certified else np.inf)
        if not certified or len(locked.values) == locked.vectors.shape[1]:
            break
        key, start = jax.random.split(key)
        space = Krylov(space.operator, space.objective, start, locked.vectors)
    order = np.argsort(-sign * locked.values)[:k]
    return Eigenpairs(
        locked.values[order], locked.vectors[order], locked.residuals[order], products
    )


def _empty(space: Krylov) -> Eigenpairs:
    return Eigenpairs(np.zeros(0), jnp.zeros_like(space.locked[:0]), np.zeros(0), 0)


def _further_out(
    found: Eigenpairs, locked: Eigenpairs, k: int, tolerance: float, sign: float
) -> bool:
    kth = np.sort(sign * locked.values)[-k]
    return bool(sign * found.values[0] > kth + tolerance * abs(kth))


def _joined(locked: Eigenpairs, found: Eigenpairs, tolerance: float) -> Eigenpairs:
    good = np.flatnonzero(found.residuals <= tolerance)
    return Eigenpairs(
        np.concatenate([locked.values, found.values[good]]),
        jnp.concatenate([locked.vectors, found.vectors[good]]),
        np.concatenate([locked.residuals, found.residuals[good]]),
        0,
    )


def _round(space: Krylov, k: int, tolerance: float, max_steps: int, sign: float) -> Eigenpairs:
    """The outermost pairs of one space, best first."""

    def settled(m: int) -> bool:
        values, rotation = np.linalg.eigh(sign * space.tridiagonal(m))
        residuals = space.coupling(m) * np.abs(rotation[-1, -k:])
        return m >= k and bool((residuals <= tolerance * np.abs(values[-k:])).all())

    m = space.grow(max_steps, settled)
    _, rotation = np.linalg.eigh(sign * space.tridiagonal(m))
    basis = space.basis(m)
    padded = np.zeros((min(k, m), len(basis)))
    padded[:, :m] = rotation[:, ::-1][:, :k].T
    product = space.operator(space.objective)
    vectors, values, residuals = _refined(product, space.objective.params, basis, padded)
    return Eigenpairs(
        np.asarray(values, dtype=np.float64), vectors, np.asarray(residuals), m + len(padded)
    )


@jax.jit
def _refined(
    product: Any, params: Any, basis: jax.Array, rotation: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ritz vectors, their Rayleigh quotients and ‖Hv − λv‖ / |λ|, by products of their own."""
    _, unravel = ravel_pytree(params)
    vectors = rotation.astype(basis.dtype) @ basis

    def one(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
        image = ravel_pytree(product(unravel(vector)))[0]
        value = vector @ image / (vector @ vector)
        rest = jnp.linalg.norm(image - value * vector)
        return value, jnp.where(rest == 0, 0.0, rest / jnp.abs(value))

    return vectors, *jax.lax.map(one, vectors)
