"""The order in which an epoch sees the examples."""

from __future__ import annotations

import functools

import jax


@functools.partial(jax.jit, static_argnums=2)
def epoch_order(seed: int, epoch: int, size: int) -> jax.Array:
    """A permutation of `0 .. size − 1` that derives from `(seed, epoch)` alone, `[size]`."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2), epoch)
    return jax.random.permutation(key, size)
