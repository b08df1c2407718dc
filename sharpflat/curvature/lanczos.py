"""Extreme eigenpairs of a symmetric operator on parameters, each with its residual."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matfree import decomp

from sharpflat.objective import Objective

Operator = Callable[[Objective, Any], Callable[[Any], Any]]
"""`operator(objective, params)` gives `vector -> product`; it lives at module level."""


class Eigenpairs(NamedTuple):
    """Eigenvalues, largest first.

    Attributes:
        values: `[k]`.
        vectors: `[k, p]`, orthonormal, the parameters flattened by `ravel_pytree`.
        residuals: ‖Hv − λv‖ / |λ|, `[k]`.
        products: operator products made.
    """

    values: np.ndarray
    vectors: jax.Array
    residuals: np.ndarray
    products: int


def top_eigenpairs(
    operator: Operator,
    objective: Objective,
    key: jax.Array,
    k: int,
    *,
    tolerance: float,
    max_steps: int,
) -> Eigenpairs:
    """The `k` algebraically largest eigenpairs, by Lanczos with full reorthogonalisation.

    A Krylov space is built from a random start; the pairs among its top ones whose residual is at
    most `tolerance` are locked, and the next round works in their complement with a new start, so
    that eigenvalues of any multiplicity are found. A round that locks nothing is repeated with
    twice the steps. It ends once k pairs are locked and, for k > 1, a round shows nothing larger
    in their complement; or after a round of `max_steps`.

    Args:
        operator: the symmetric operator.
        objective: handed to it, with its own parameters.
        key: PRNG key of the starts.
        k: at most the number of parameters.
        tolerance: of the relative residual.
        max_steps: Lanczos steps of a round, at most.
    """
    size = ravel_pytree(objective.params)[0].size
    max_steps = min(max_steps, size)
    steps, products = min(max(2 * k + 10, 20), max_steps), 0
    locked = Eigenpairs(np.zeros(0), jnp.zeros((0, size)), np.zeros(0), 0)
    while True:
        key, start = jax.random.split(key)
        room = size - len(locked.values)
        found = _round(operator, objective, start, locked.vectors, min(steps, room), k)
        products += found.products
        good = found.residuals <= tolerance
        enough = len(locked.values) >= k
        if enough and not _exceeds(found, locked, k, tolerance):
            break
        locked = _joined(locked, found, good)
        exhausted = len(locked.values) >= size
        if exhausted or (k == 1 and len(locked.values) >= 1):
            break
        if not good.any():
            if steps >= max_steps:
                locked = _joined(locked, found, np.ones_like(good))
                break
            steps = min(2 * steps, max_steps)
    order = np.argsort(locked.values)[::-1][:k]
    return Eigenpairs(
        locked.values[order], locked.vectors[order], locked.residuals[order], products
    )


def _exceeds(found: Eigenpairs, locked: Eigenpairs, k: int, tolerance: float) -> bool:
    kth = np.sort(locked.values)[-k]
    return len(found.values) > 0 and found.values[0] > kth + tolerance * abs(kth)


def _joined(locked: Eigenpairs, found: Eigenpairs, chosen: np.ndarray) -> Eigenpairs:
    return Eigenpairs(
        np.concatenate([locked.values, found.values[chosen]]),
        jnp.concatenate([locked.vectors, found.vectors[np.flatnonzero(chosen)]]),
        np.concatenate([locked.residuals, found.residuals[chosen]]),
        0,
    )


def _round(
    operator: Operator, objective: Objective, key: jax.Array, locked: jax.Array, steps: int, k: int
) -> Eigenpairs:
    """The top pairs of one Krylov space in the complement of `locked`, best first."""
    basis, tridiagonal, gram = _krylov(operator, objective, key, locked, steps)
    whole = _before_breakdown(np.asarray(gram))
    values, rotation = np.linalg.eigh(np.asarray(tridiagonal, dtype=np.float64)[:whole, :whole])
    top = np.argsort(values)[::-1][:k]
    vectors = jnp.asarray(rotation[:, top].T, dtype=basis.dtype) @ basis[:whole]
    rayleigh, residuals = _residuals(operator, objective, vectors)
    return Eigenpairs(
        np.asarray(rayleigh, dtype=np.float64), vectors, np.asarray(residuals), steps + len(top)
    )


def _before_breakdown(gram: np.ndarray) -> int:
    """Steps before the Krylov space was exhausted: from there on the basis is not orthonormal."""
    off = np.abs(np.tril(gram - np.eye(len(gram)))).max(axis=1)
    broken = ~(off <= 1e-3)
    return int(np.argmax(broken)) if broken.any() else len(gram)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _krylov(
    operator: Operator, objective: Objective, key: jax.Array, locked: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Basis `[steps, p]`, its tridiagonal and its Gram matrix, `[steps, steps]` both."""
    flat, unravel = ravel_pytree(objective.params)
    product = operator(objective, objective.params)

    def complement(vector: jax.Array) -> jax.Array:
        return vector - locked.T @ (locked @ vector)

    def matvec(vector: jax.Array) -> jax.Array:
        return complement(ravel_pytree(product(unravel(complement(vector))))[0])

    start = complement(jax.random.normal(key, flat.shape, flat.dtype))
    lanczos = decomp.tridiag_sym(steps, reortho="full", custom_vjp=False)
    result = lanczos(matvec, start / jnp.linalg.norm(start))
    basis = result.Q_tall
    return basis, result.J_small, basis @ basis.T


@functools.partial(jax.jit, static_argnums=0)
def _residuals(
    operator: Operator, objective: Objective, vectors: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Rayleigh quotients and ‖Hv − λv‖ / |λ| of unit vectors `[k, p]`, by products of their own."""
    _, unravel = ravel_pytree(objective.params)
    product = operator(objective, objective.params)

    def one(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
        image = ravel_pytree(product(unravel(vector)))[0]
        value = vector @ image / (vector @ vector)
        rest = jnp.linalg.norm(image - value * vector)
        return value, jnp.where(rest == 0, 0.0, rest / jnp.abs(value))

    return jax.lax.map(one, vectors)
