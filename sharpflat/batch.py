"""Batch: inputs and labels that share their leading axis, and exact means over its chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Batch(NamedTuple):
    """Examples along the leading axis.

    Attributes:
        inputs: `[n, ...]`.
        labels: `[n]` integers for classes, `[n, ...]` floats for regression.
    """

    inputs: jax.Array
    labels: jax.Array

    @property
    def size(self) -> int:
        """Number of examples."""
        return int(self.inputs.shape[0])

    def take(self, indices: jax.Array) -> Batch:
        """The examples at `indices`, in that order."""
        return Batch(self.inputs[indices], self.labels[indices])

    def first(self, count: int) -> Batch:
        """The first `count` examples."""
        return Batch(self.inputs[:count], self.labels[:count])


def mean_over_chunks(function: Callable[[Batch], Any], data: Batch, chunk: int) -> Any:
    """(1/n) Σ_c n_c function(chunk c): the mean over all examples of a function of mean type.

    Args:
        function: maps a `Batch` to a tree of means over its examples, all floating-point.
        data: `n` examples.
        chunk: examples handed over at a time; a smaller last chunk is weighted exactly.
    """
    n, chunk = data.size, min(chunk, data.size)
    if n == chunk:
        return function(data)

    def body(total: Any, number: jax.Array) -> tuple[Any, None]:
        part = _chunk(data, number, chunk)
        return jax.tree.map(lambda t, v: t + v * chunk, total, function(part)), None

    shapes = jax.eval_shape(function, data.first(chunk))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, jnp.arange(n // chunk))
    if (last := _rest(data, chunk)).size:
        total = jax.tree.map(lambda t, v: t + v * last.size, total, function(last))
    return jax.tree.map(lambda t: t / n, total)


def map_over_chunks(function: Callable[[Batch], Any], data: Batch, chunk: int) -> Any:
    """The rows `function` gives for each chunk, put one after another: `[n, ...]`."""
    chunk = min(chunk, data.size)
    numbers = jnp.arange(data.size // chunk)
    parts = jax.lax.map(lambda number: function(_chunk(data, number, chunk)), numbers)
    rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), parts)
    if (last := _rest(data, chunk)).size:
        rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), rows, function(last))
    return rows


def _chunk(data: Batch, number: jax.Array, chunk: int) -> Batch:
    """One whole chunk, sliced where it is needed: the data are not copied in chunks."""
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, number * chunk, chunk), data
    )


def _rest(data: Batch, chunk: int) -> Batch:
    """What the whole chunks leave over."""
    return jax.tree.map(lambda leaf: leaf[data.size // chunk * chunk :], data)
