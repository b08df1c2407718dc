"""Adversarial training: beside the loss of the inputs, that of inputs moved to raise it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp


class Adversarial(NamedTuple):
    """Whose loss is (1 − a) L(x) + a L(x + δ).

    Attributes:
        epsilon: the largest ‖δ‖ of an example, in the inputs' units.
        share: a.
        norm: the norm: `linf` or `l2`.
        steps: of ascent from δ = 0; one is the fast gradient (sign) method of Goodfellow et al.
            (2015), more are projected and 2.5 ε / steps long (Madry et al., 2018).
    """

    epsilon: float = 0.1
    share: float = 0.5
    norm: Literal["linf", "l2"] = "linf"
    steps: int = 1


def attacked(
    how: Adversarial, loss: Callable[[jax.Array], jax.Array], inputs: jax.Array
) -> jax.Array:
    """x + δ, with no gradient through δ; `loss` is of inputs `[n, ...]`."""
    length = how.epsilon if how.steps == 1 else 2.5 * how.epsilon / how.steps
    change = jnp.zeros_like(inputs)
    for _ in range(how.steps):
        gradient = jax.grad(loss)(jax.lax.stop_gradient(inputs + change))
        change = _projected(how, change + length * _direction(how, gradient))
    return inputs + jax.lax.stop_gradient(change)


def _direction(how: Adversarial, gradient: jax.Array) -> jax.Array:
    return jnp.sign(gradient) if how.norm == "linf" else gradient * _inverse(_length(gradient))


def _projected(how: Adversarial, change: jax.Array) -> jax.Array:
    if how.norm == "linf":
        return jnp.clip(change, -how.epsilon, how.epsilon)
    return change * jnp.minimum(1.0, how.epsilon * _inverse(_length(change)))


def _length(vectors: jax.Array) -> jax.Array:
    """Of each example's vector, `[n, 1, ...]`."""
    return jnp.sqrt(jnp.sum(vectors**2, axis=tuple(range(1, vectors.ndim)), keepdims=True))


def _inverse(length: jax.Array) -> jax.Array:
    """1 / length; 0 of nothing, which has no direction."""
    return jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
