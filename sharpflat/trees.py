"""The few pytree helpers that `jax.tree` and `optax.tree` lack, beside those of `optax.tree`."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optax.tree import add, add_scale, norm, random_like, scale, sub, vdot, zeros_like

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
