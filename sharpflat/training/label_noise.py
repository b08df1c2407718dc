"""Label noise: some labels replaced by another class, drawn uniformly."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def noisy_labels(labels: jax.Array, classes: int, fraction: float, draw: int) -> jax.Array:
    """Labels `[n]` of which round(fraction · n), drawn by `draw`, are of another class."""
    of_places, of_classes = jax.random.split(jax.random.fold_in(jax.random.key(draw), 3))
    count = round(fraction * len(labels))
    places = jax.random.permutation(of_places, len(labels))[:count]
    others = _another(of_classes, labels[places], classes)
    return labels.at[places].set(others)


def resampled(labels: jax.Array, classes: int, fraction: float, key: jax.Array) -> jax.Array:
    """Labels `[n]`, each of another class with probability `fraction`."""
    of_places, of_classes = jax.random.split(key)
    replaced = jax.random.bernoulli(of_places, fraction, labels.shape)
    return jnp.where(replaced, _another(of_classes, labels, classes), labels)


def _another(key: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    return (labels + jax.random.randint(key, labels.shape, 1, classes, labels.dtype)) % classes
