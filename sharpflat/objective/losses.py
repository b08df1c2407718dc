"""Losses: a number an example, from outputs and labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """−log softmax(outputs)[label] in nats, `[n]`, for logits `[n, classes]`, integer labels.

    As (max − chosen) + log(1 + Σ_{others} exp(output − max)): a loss of 1e-5 and its derivatives
    keep all their digits, where log Σ exp − chosen leaves two of float32's seven.
    """
    top = jnp.argmax(outputs, axis=-1)[:, None]
    largest = jnp.take_along_axis(outputs, top, axis=-1)
    chosen = jnp.take_along_axis(outputs, labels[:, None], axis=-1)
    is_top = jnp.arange(outputs.shape[-1])[None] == top
    others = jnp.where(is_top, 0, jnp.exp(outputs - largest))
    return (largest - chosen)[:, 0] + jnp.log1p(jnp.sum(others, axis=-1))


def squared_error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """½ ‖output − label‖², `[n]`; integer labels stand for their one-hot vectors."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        labels = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
    return 0.5 * jnp.sum(
        (outputs - labels.reshape(outputs.shape)) ** 2, axis=range(1, outputs.ndim)
    )


def hit_rate(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Fraction of examples whose largest output is their label's; NaN for real-valued labels."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return jnp.full((), jnp.nan)
    return jnp.mean(jnp.argmax(outputs, axis=-1) == labels)


LOSSES = {"cross_entropy": cross_entropy, "squared_error": squared_error}
