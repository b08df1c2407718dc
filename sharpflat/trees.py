"""The few pytree helpers that `jax.tree` and `optax.tree` lack, beside those of `optax.tree`."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax.tree import add, norm, random_like, sub, vdot, zeros_like

__all__ = [
    "add",
    "add_scale",
    "all_finite",
    "interpolate",
    "norm",
    "random_direction",
    "random_like",
    "scale",
    "size",
    "sub",
    "vdot",
    "zeros_like",
]


def random_direction(key: jax.Array, tree: Any, *, norm: float | jax.Array = 1.0) -> Any:
    """A direction uniform on the sphere of radius `norm` in the space of `tree`.

    Args:
        key: PRNG key.
        tree: any pytree of arrays; only shapes and dtypes matter.
        norm: Euclidean norm of the result, over all leaves together.
    """
    gaussian = random_like(key, tree, sampler=jax.random.normal)
    return scale(norm / jnp.sqrt(vdot(gaussian, gaussian)), gaussian)


def scale(factor: Any, tree: Any) -> Any:
    """factor · tree, each leaf in its own dtype (Optax's takes on that of the factor)."""
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), tree)


def add_scale(tree: Any, factor: Any, other: Any) -> Any:
    """tree + factor · other, each leaf in its own dtype."""
    return jax.tree.map(lambda a, b: (a + factor * b).astype(a.dtype), tree, other)


def interpolate(start: Any, end: Any, alpha: float | jax.Array) -> Any:
    """(1 − α) start + α end, leaf by leaf."""
    return jax.tree.map(lambda a, b: (1 - alpha) * a + alpha * b, start, end)


def size(tree: Any) -> int:
    """Number of scalars in all leaves."""
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether every number in every leaf is finite (a scalar array)."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.asarray(True)


def cast(tree: Any, dtype: str) -> Any:
    """Its floating-point leaves in `dtype`."""

    def one(leaf: jax.Array) -> jax.Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)
