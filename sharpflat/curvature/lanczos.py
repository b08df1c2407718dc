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
        products: operator products used, those of a shared space included.
    """

    value: float
    residual: float
    products: int


class Eigenpairs(NamedTuple):
    """Eigenvalues, the wanted end first.

    Attributes:
        values: `[k]`.
        vectors: `[k, p]`, orthonormal, the parameters flattened by `ravel_pytree`.
        residuals: ‖Hv − λv‖, `[k]`.
        products: operator products used, those of a shared space included.
        complete: whether a round of its own showed that no other one is further out.
    """

    values: np.ndarray
    vectors: jax.Array
    residuals: np.ndarray
    products: int
    complete: bool = False


def outermost_eigenvalue(
    space: Krylov, *, tolerance: float, max_steps: int, sign: float = 1.0
) -> Eigenvalue:
    """The largest eigenvalue (with `sign` −1 the smallest), to a residual of `tolerance`.

    The space grows until r = ‖Hv − λv‖ = β |s_m| is at most `tolerance` |λ|. Some eigenvalue lies
    within r of λ, and within r² / δ where no other one is nearer than δ. That second bound is no
    criterion: of two eigenvalues that the space has not yet told apart it would certify a number
    between them.

    Args:
        space: a Krylov space of the operator, used as far as it has grown.
        tolerance: of the relative residual.
        max_steps: Lanczos steps at most.
        sign: +1 for the largest, −1 for the smallest.

    Source: Parlett (1998), theorems 4.5.1 and 11.7.1.
    """
    m = space.grow(max_steps, lambda m: _outermost(space, m, sign).residual <= tolerance)
    return _outermost(space, m, sign)


def leading(space: Krylov, m: int, k: int = 3) -> jax.Array:
    """The sum of the k uppermost Ritz vectors of the first m steps, `[p]`: to start the next from.

    For an operator that has moved a little. Of several, an eigenvalue that overtakes the largest is
    found: a start from one eigenvector alone would certify that one again.
    """
    _, rotation = np.linalg.eigh(space.tridiagonal(m))
    basis = space.basis(m)
    weights = np.zeros(len(basis))
    weights[:m] = rotation[:, ::-1][:, :k].sum(axis=1)
    return jnp.asarray(weights, basis.dtype) @ basis


def _outermost(space: Krylov, m: int, sign: float) -> Eigenvalue:
    values, rotation = np.linalg.eigh(sign * space.tridiagonal(m))
    rounding = space.epsilon * np.abs(values).max()
    residual = space.coupling(m) * abs(rotation[-1, -1]) + rounding
    size = abs(values[-1]) if values[-1] else 1.0
    return Eigenvalue(sign * values[-1], residual / size, m)


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
    locked, products, complete = _empty(space), 0, False
    while not complete:
        enough = len(locked.values) >= k
        kth = np.sort(sign * locked.values)[-k] if enough else 0.0
        found = _round(space, 1 if enough else k, tolerance, max_steps, sign, abs(kth))
        products += found.products
        certified = found.residuals <= tolerance * np.maximum(np.abs(found.values), abs(kth))
        if enough and certified[0] and sign * found.values[0] <= kth + tolerance * abs(kth):
            complete = True
        else:
            locked = _joined(locked, found, certified if certified.any() else ~certified)
            complete = len(locked.values) == locked.vectors.shape[1]
        if not certified.any():
            break
        key, start = jax.random.split(key)
        space = Krylov(space.operator, space.objective, start, locked.vectors)
    order = np.argsort(-sign * locked.values)[:k]
    best = (locked.values[order], locked.vectors[order], locked.residuals[order])
    return Eigenpairs(*best, products, complete)


def _empty(space: Krylov) -> Eigenpairs:
    return Eigenpairs(np.zeros(0), jnp.zeros_like(space.locked[:0]), np.zeros(0), 0)


def _joined(locked: Eigenpairs, found: Eigenpairs, chosen: np.ndarray) -> Eigenpairs:
    good = np.flatnonzero(chosen)
    return Eigenpairs(
        np.concatenate([locked.values, found.values[good]]),
        jnp.concatenate([locked.vectors, found.vectors[good]]),
        np.concatenate([locked.residuals, found.residuals[good]]),
        0,
    )


def _round(
    space: Krylov, k: int, tolerance: float, max_steps: int, sign: float, size: float
) -> Eigenpairs:
    """The outermost pairs of one space, best first; of those below `size` it is the measure."""

    def settled(m: int) -> bool:
        values, rotation = np.linalg.eigh(sign * space.tridiagonal(m))
        residuals = space.coupling(m) * np.abs(rotation[-1, -k:])
        allowed = tolerance * np.maximum(np.abs(values[-k:]), size)
        return m >= k and bool((residuals <= allowed).all())

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
    """Ritz vectors, their Rayleigh quotients and ‖Hv − λv‖, by products of their own."""
    flat, unravel = ravel_pytree(params)
    vectors = rotation.astype(basis.dtype) @ basis

    def one(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
        image = ravel_pytree(product(unravel(vector.astype(flat.dtype))))[0].astype(vector.dtype)
        value = vector @ image / (vector @ vector)
        return value, jnp.linalg.norm(image - value * vector)

    return vectors, *jax.lax.map(one, vectors)
