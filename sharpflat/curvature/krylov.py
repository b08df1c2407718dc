"""A Krylov space of a symmetric operator on parameters, grown as far as somebody asks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from sharpflat import trees
from sharpflat.objective import Objective

Operator = Callable[[Objective], Callable[[Any], Any]]
"""`operator(objective)` gives `vector -> product`, a pytree; it lives at module level."""

FIRST_CAPACITY = 16


def hessian(objective: Objective) -> Callable[[Any], Any]:
    """The Hessian of the loss at the objective's parameters."""
    return objective.linearize_hvp(objective.params)


def gauss_newton(objective: Objective) -> Callable[[Any], Any]:
    """The generalised Gauss–Newton matrix at the objective's parameters."""
    return objective.linearize_ggn_vp(objective.params)


def shared_space(
    operator: Operator, objective: Objective, key: jax.Array, parameters: str
) -> Krylov:
    """The Krylov space of some of the parameters that all metrics of a `measure` call share."""
    part = objective.shared(_restricted, key, parameters)
    return part.shared(_space, key, operator)


def _restricted(objective: Objective, key: jax.Array, parameters: str) -> Objective:
    return objective.restrict(parameters)


def _space(objective: Objective, key: jax.Array, operator: Operator) -> Krylov:
    return Krylov(operator, objective, key)


class Krylov:
    """span{q, Hq, H²q, ...} of a random q, by Lanczos with full reorthogonalisation.

    Steps that were made are kept, and how many are used is up to the caller: what comes of the
    first m of them does not depend on who grew the space further. Memory: the parameters' times
    the steps, rounded up to a power of two.

    Attributes:
        operator: the symmetric operator H.
        objective: handed to it.
        locked: `[l, p]`, orthonormal; the space lies in their complement.
        size: p less l: no space is larger.
        half_given: whether a `start` was given.
    """

    def __init__(
        self,
        operator: Operator,
        objective: Objective,
        key: jax.Array,
        locked: Any = None,
        start: jax.Array | None = None,
    ) -> None:
        """No product is made yet; `start` `[p]`, if not zero, is as much of q as what is random."""
        p = trees.size(objective.params)
        self.operator, self.objective = operator, objective
        self.locked = jnp.zeros((0, p)) if locked is None else locked
        self.size = p - len(self.locked)
        capacity = min(FIRST_CAPACITY, p)
        self.half_given = start is not None
        start = jnp.zeros(p) if start is None else start
        self._basis, self._last = _started(objective.params, key, self.locked, start, capacity)
        self._diagonal: list[float] = []
        self._coupling: list[float] = []

    def grow(self, most: int, enough: Callable[[int], bool] = lambda m: False) -> int:
        """Steps m until `enough(m)`, the space is invariant, or there are `most`; made if need be.

        Args:
            most: no more than this.
            enough: asked at m = 1, 2, ... in turn, with what the first m steps give.
        """
        most, product = min(most, self.size), None
        for m in range(1, most + 1):
            if m > len(self._diagonal):
                product = self.operator(self.objective) if product is None else product
                self._step(product)
            if self._invariant(m) or enough(m):
                return m
        return most

    @property
    def epsilon(self) -> float:
        """Relative rounding of the operator's numbers."""
        return float(jnp.finfo(self._basis.dtype).eps)

    def tridiagonal(self, m: int) -> np.ndarray:
        """QᵀHQ of the first m basis vectors, `[m, m]`."""
        off = self.couplings(max(m - 1, 0))
        return np.diag(self._diagonal[:m]) + np.diag(off, 1) + np.diag(off, -1)

    def coupling(self, m: int) -> float:
        """‖HQ − QT‖ of the first m: what they leak into the next vector."""
        return self._coupling[m - 1] if m else 0.0

    def couplings(self, m: int) -> np.ndarray:
        """That of the first 1, 2, ... m, `[m]`."""
        return np.array(self._coupling[:m])

    def basis(self, m: int) -> jax.Array:
        """The first m basis vectors and, up to a multiple of 8, zeros below them: `[rows, p]`."""
        return _first(self._basis, m, max(8 * -(-m // 8), 8))

    def _step(self, product: Callable[[Any], Any]) -> None:
        done = len(self._diagonal)
        if done + 1 >= len(self._basis):
            self._basis = jnp.concatenate([self._basis, jnp.zeros_like(self._basis)])
        before = self._coupling[-1] if done else 0.0
        image = applied(product, self.objective.params, self._last)
        self._basis, self._last, *numbers = _extended(
            self._basis, image, self._last, self.locked, done, before
        )
        diagonal, coupling, scale = map(float, numbers)
        diagonal, coupling = diagonal * scale, coupling * scale
        if not np.isfinite([diagonal, coupling]).all():
            raise ArithmeticError("the curvature here is not finite")
        self._diagonal.append(diagonal)
        self._coupling.append(coupling)

    def _invariant(self, m: int) -> bool:
        """Whether nothing but rounding is left outside."""
        scale = np.abs(self._diagonal[:m]).max() + np.abs(self._coupling[:m]).max()
        return self._coupling[m - 1] <= 10 * self.epsilon * scale


@functools.partial(jax.jit, static_argnums=2)
def _first(basis: jax.Array, m: Any, rows: int) -> jax.Array:
    basis = jnp.pad(basis[:rows], ((0, max(rows - len(basis), 0)), (0, 0)))
    return jnp.where((jnp.arange(rows) < m)[:, None], basis, 0)


@functools.partial(jax.jit, static_argnums=4)
def _started(
    params: Any, key: jax.Array, locked: jax.Array, start: jax.Array, capacity: int
) -> tuple[jax.Array, jax.Array]:
    """A basis of one unit vector, with room for `capacity` less one more; that vector."""
    flat, _ = ravel_pytree(params)
    locked, start = locked.astype(flat.dtype), start.astype(flat.dtype)
    random = jax.random.normal(key, flat.shape, flat.dtype)
    norm = jnp.linalg.norm(start)
    first = random + jnp.where(norm > 0, jnp.linalg.norm(random) / norm, 0) * start
    first = first - (locked @ first) @ locked
    first = first / jnp.linalg.norm(first)
    return jnp.zeros((capacity + 1, flat.size), flat.dtype).at[0].set(first), first


def in_range(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`values` over a power of two near their largest magnitude, and that power.

    No bit of what is made of them is another, but that their squares stay in range.
    """
    largest, about = jnp.max(jnp.abs(values)), jnp.finfo(values.dtype)
    usual = (largest >= about.tiny) & jnp.isfinite(largest)
    bits = jax.lax.bitcast_convert_type(largest, f"int{about.bits}")
    power = jax.lax.bitcast_convert_type((bits >> about.nmant) << about.nmant, values.dtype)
    power = jnp.where(usual, jnp.minimum(power, 2.0 ** (about.maxexp - 2)), 1)
    return values / power, power


@jax.jit
def applied(product: Callable[[Any], Any], params: Any, vector: jax.Array) -> jax.Array:
    """The product, which is costly to compile, apart from what changes with the capacity."""
    flat, unravel = ravel_pytree(params)
    return ravel_pytree(product(unravel(vector.astype(flat.dtype))))[0].astype(vector.dtype)


@functools.partial(jax.jit, donate_argnums=0)
def _extended(
    basis: jax.Array, image: jax.Array, vector: jax.Array, locked: jax.Array, done: Any, before: Any
) -> tuple[jax.Array, ...]:
    """The basis with its next vector, that vector, and over a scale, which is last, the
    tridiagonal's new diagonal and coupling.

    After the three-term recurrence one pass over all the basis is enough, unless it took much of
    the vector away (Daniel et al., 1976): then a second one follows.
    """
    image, scale = in_range(image)
    diagonal = vector @ image
    image = image - diagonal * vector - before / scale * basis[jnp.maximum(done - 1, 0)]

    def outside(image: jax.Array) -> jax.Array:
        image = image - (locked @ image) @ locked
        return image - (basis @ image) @ basis

    once = outside(image)
    little_left = jnp.linalg.norm(once) < 0.7 * jnp.linalg.norm(image)
    image = jax.lax.cond(little_left, outside, lambda image: image, once)
    coupling = jnp.linalg.norm(image)
    vector = jnp.where(coupling > 0, image / jnp.where(coupling > 0, coupling, 1), 0)
    vector = vector.astype(basis.dtype)
    return basis.at[done + 1].set(vector), vector, diagonal, coupling, scale
