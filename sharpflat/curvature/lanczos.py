"""Extreme eigenvalues of a symmetric operator on parameters, each with its certificate."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat.curvature.krylov import Krylov, applied, in_range

RISK = 0.01
"""A certificate allows that much for `missed`: 99 % confidence."""


class Eigenvalue(NamedTuple):
    """One eigenvalue.

    Attributes:
        value: λ.
        residual: ‖Hv − λv‖ / |λ|.
        missed: over random starts at most the probability that an eigenvalue lies further out than
            λ by more than the tolerance.
        steps: of the space.
        products: operator products used, those of a shared space included.
    """

    value: float
    residual: float
    missed: float
    steps: int
    products: int


class Eigenpairs(NamedTuple):
    """Eigenvalues, the wanted end first.

    Attributes:
        values: `[k]`.
        vectors: `[k, p]`, orthonormal, the parameters flattened by `ravel_pytree`.
        residuals: ‖Hv − λv‖, `[k]`.
        missed: over the last round's start at most the probability that one more eigenvalue lies
            further out than the k-th by more than the tolerance.
        products: operator products used, those of a shared space included.
    """

    values: np.ndarray
    vectors: jax.Array
    residuals: np.ndarray
    missed: float
    products: int


def outermost_eigenvalue(
    space: Krylov, *, tolerance: float, max_steps: int, sign: float = 1.0, risk: float = RISK
) -> Eigenvalue:
    """The largest eigenvalue (with `sign` −1 the smallest), to a relative `tolerance`.

    The space grows until r = ‖Hv − λv‖ = β |s_m| is at most `tolerance` |λ|; it is then computed
    anew from a product of its own, which knows what rounding the operator has. Some eigenvalue lies
    within r of λ, and within r² / δ where no other one is nearer than δ. That second bound is no
    criterion: of two eigenvalues that the space has not yet told apart it would certify a number
    between them. Nor does the residual say that λ is the outermost eigenvalue: the space grows
    until the probability that one beyond λ + `tolerance` |λ| was missed is at most `risk`, too.

    Args:
        space: a Krylov space of the operator, used as far as it has grown.
        tolerance: of the relative residual, and of what lies further out.
        max_steps: Lanczos steps at most.
        sign: +1 for the largest, −1 for the smallest.
        risk: 1 to stop at the residual alone; what was missed is told all the same.

    Source: Parlett (1998), theorems 4.5.1 and 11.7.1; for the probability see `missed`.
    """

    def enough(m: int) -> bool:
        found = _outermost(space, m, tolerance, sign)
        return found.residual <= tolerance and found.missed <= risk

    m = space.grow(max_steps, enough)
    found, pair = _outermost(space, m, tolerance, sign), _ritz_pairs(space, m, 1, sign)
    residual = float(pair.residuals[0]) / (abs(found.value) or 1.0)
    residual = float(np.maximum(found.residual, residual))  # unlike max, of NaN it is NaN
    return found._replace(residual=residual, products=m + pair.products)


def missed(space: Krylov, ritz: np.ndarray, beyond: float) -> float:
    """At most the probability that a random start hid an eigenvalue ≥ `beyond` from the space.

    q_{m+1} = p_m(H) q_1 is a unit vector, so every eigenpair (λ, v) has |p_m(λ)| |⟨v, q_1⟩| ≤ 1.
    Beyond all Ritz values |p_m| rises: an eigenvalue there needs a start with |⟨v, q_1⟩| at most
    t = 1 / |p_m(beyond)|, and of a random direction in p dimensions the probability of that is at
    most √(2p/π) t. Of a start that is half given, (r + s) / ‖r + s‖ with r random and s any unit
    vector that was chosen without r, it is at most twice that: ‖r + s‖ ≤ 2, and |⟨v, r⟩ + ⟨v, s⟩|
    is small no more often than |⟨v, r⟩|. Where a Ritz value lies beyond, this shows nothing: 1.

    Args:
        space: of a start that is random in its `size` dimensions, p, all of it or half.
        ritz: the Ritz values of its first m steps, ascending; negated with `beyond` for −H.
        beyond: from where on.

    Source: van Dorsselaer, Hochstenbach and van der Vorst (2000).
    """
    m = len(ritz)
    if beyond < ritz[-1]:
        return 1.0
    if m == space.size or space.coupling(m) == 0:
        return 0.0
    risen = log_polynomial(beyond, ritz, space.couplings(m))
    given = np.log(2.0) if space.half_given else 0.0
    return float(np.exp(min(given + 0.5 * np.log(2 * space.size / np.pi) - risen, 0.0)))


def log_polynomial(x: float, ritz: np.ndarray, couplings: np.ndarray) -> float:
    """log |p_m(x)| of the Lanczos polynomial p_m(x) = Π (x − θ_i) / Π β_i.

    Args:
        x: where.
        ritz: θ, the Ritz values of the first m steps, `[m]`.
        couplings: β, from each of them to the next, `[m]`.
    """
    with np.errstate(divide="ignore"):
        return float(np.log(np.abs(x - ritz)).sum() - np.log(couplings).sum())


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


def _outermost(space: Krylov, m: int, tolerance: float, sign: float) -> Eigenvalue:
    ritz, rotation = np.linalg.eigh(sign * space.tridiagonal(m))
    rounding = space.epsilon * np.abs(ritz).max()
    residual = space.coupling(m) * abs(rotation[-1, -1]) + rounding
    top, size = ritz[-1], abs(ritz[-1])
    escaped = missed(space, ritz, top + tolerance * size)
    return Eigenvalue(float(sign * top), float(residual / (size or 1.0)), escaped, m, m)


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
    their complement from a new start, so that eigenvalues of any multiplicity are found. Where k
    are locked a round ends with one that is further out, to be locked too, or as soon as the
    probability that it missed one is at most `RISK`; a round that comes to neither ends it all.

    Args:
        space: a Krylov space of the operator, used as far as it has grown.
        key: PRNG key of the later rounds' starts.
        k: at most the number of parameters.
        tolerance: of the relative residual, and of what lies further out than the k-th.
        max_steps: Lanczos steps of a round, at most.
        sign: +1 for the largest, −1 for the smallest.
    """
    locked, products, escaped = _empty(space), 0, 1.0
    while len(locked.values) < locked.vectors.shape[1]:
        size, beyond = _bar(sign * locked.values, k, tolerance)
        wanted = 1 if len(locked.values) >= k else k
        m = space.grow(max_steps, _settled(space, wanted, tolerance, sign, size, beyond))
        products += m
        escaped = missed(space, np.linalg.eigvalsh(sign * space.tridiagonal(m)), beyond)
        if escaped <= RISK:
            break
        found = _ritz_pairs(space, m, wanted, sign)
        products += found.products
        further = sign * found.values > beyond
        allowed = tolerance * np.maximum(np.abs(found.values), size)
        certified = further & (found.residuals <= allowed)
        locked = _joined(locked, found, certified if certified.any() else further)
        if not certified.any():
            break
        key, start = jax.random.split(key)
        space = Krylov(space.operator, space.objective, start, locked.vectors)
    else:
        escaped = 0.0
    order = np.argsort(-sign * locked.values)[:k]
    best = (locked.values[order], locked.vectors[order], locked.residuals[order])
    return Eigenpairs(*best, escaped, products)


def _empty(space: Krylov) -> Eigenpairs:
    return Eigenpairs(np.zeros(0), jnp.zeros_like(space.locked[:0]), np.zeros(0), 1.0, 0)


def _joined(locked: Eigenpairs, found: Eigenpairs, chosen: np.ndarray) -> Eigenpairs:
    good = np.flatnonzero(chosen)
    return locked._replace(
        values=np.concatenate([locked.values, found.values[good]]),
        vectors=jnp.concatenate([locked.vectors, found.vectors[good]]),
        residuals=np.concatenate([locked.residuals, found.residuals[good]]),
    )


def _bar(values: np.ndarray, k: int, tolerance: float) -> tuple[float, float]:
    """|λ_k| of the k uppermost, and what one further out must exceed; 0 and −∞ for fewer than k."""
    if len(values) < k:
        return 0.0, -np.inf
    kth = float(np.sort(values)[-k])
    return abs(kth), kth + tolerance * abs(kth)


def _settled(
    space: Krylov, k: int, tolerance: float, sign: float, size: float, beyond: float
) -> Callable[[int], bool]:
    """Whether nothing was missed from `beyond` on, or k pairs of which the first lies there hold.

    Of values below `size` that is the measure.
    """

    def settled(m: int) -> bool:
        ritz, rotation = np.linalg.eigh(sign * space.tridiagonal(m))
        residuals = space.coupling(m) * np.abs(rotation[-1, -k:])
        allowed = tolerance * np.maximum(np.abs(ritz[-k:]), size)
        held = m >= k and bool((residuals <= allowed).all())
        return (held and ritz[-1] > beyond) or missed(space, ritz, beyond) <= RISK

    return settled


def _ritz_pairs(space: Krylov, m: int, k: int, sign: float) -> Eigenpairs:
    """The outermost k of the first m steps, best first, at the cost of a product each."""
    _, rotation = np.linalg.eigh(sign * space.tridiagonal(m))
    basis = space.basis(m)
    padded = np.zeros((min(k, m), len(basis)))
    padded[:, :m] = rotation[:, ::-1][:, :k].T
    product, params = space.operator(space.objective), space.objective.params
    vectors = _rotated(basis, padded)
    found = [_rayleigh(vector, applied(product, params, vector)) for vector in vectors]
    quotients, norms, scales = np.array(found, np.float64).T
    return Eigenpairs(quotients * scales, vectors, norms * scales, 1.0, len(padded))


@jax.jit
def _rotated(basis: jax.Array, rotation: jax.Array) -> jax.Array:
    return rotation.astype(basis.dtype) @ basis


@jax.jit
def _rayleigh(vector: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """λ = vᵀHv / ‖v‖² and ‖Hv − λv‖, over a scale, which is last."""
    image, scale = in_range(image)
    value = vector @ image / (vector @ vector)
    return value, jnp.linalg.norm(image - value * vector), scale
