"""Re-estimation of batch-norm averages over a whole data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sharpflat.batch import Batch, map_over_chunks
from sharpflat.networks.adapter import Model, has_batch_norm


def recalibrate(model: Model, params: Any, model_state: Any, data: Batch, chunk: int) -> Any:
    """The model state whose averages are the statistics of all of `data`.

    Each average a of a layer with momentum m is updated by a chunk as a' = m a + (1 − m) s, with
    s the chunk's statistic. From a = 0 and a = 1 follow m and s, whatever the layer calls them.
    Means are averaged over chunks by size; variances are the mean variance within chunks plus the
    variance of the chunks' means. That is exact for the first such layer; deeper layers see inputs
    that each chunk normalised by its own statistics, which differs by O(1 / chunk).

    Args:
        model: the network.
        params: its parameters.
        model_state: its state; only floating-point leaves are re-estimated.
        data: the examples.
        chunk: examples a forward pass.

    Source: after Izmailov et al. (2018), section 3.2.
    """
    if not has_batch_norm(model_state):
        return model_state
    paths, structure = jax.tree.flatten_with_path(model_state)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    leaves = [leaf for _, leaf in paths]
    averages = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def state_with(values: Iterable[jax.Array]) -> Any:
        replaced = dict(zip(averages, values, strict=True))
        return jax.tree.unflatten(
            structure, [replaced.get(i, leaf) for i, leaf in enumerate(leaves)]
        )

    def updated(start: float, inputs: jax.Array) -> dict[str, jax.Array]:
        state = state_with(jnp.full_like(leaves[i], start) for i in averages)
        after = model.apply(params, state, inputs, batch_statistics=True, dropout=False)[1]
        found = jax.tree.leaves(after)
        return {names[i]: found[i] for i in averages}

    # The momentum is a constant of the layer; inputs of zero leave no rounding in it.
    few = jnp.zeros_like(data.inputs[:2])
    one, zero = updated(1.0, few), updated(0.0, few)

    def statistics(batch: Batch) -> dict[str, jax.Array]:
        after = updated(0.0, batch.inputs)
        return {name: (after[name] / (1 - (one[name] - zero[name])))[None] for name in after}

    by_chunk = map_over_chunks(statistics, data, chunk)
    count = math.ceil(data.size / min(chunk, data.size))
    sizes = jnp.minimum(chunk, data.size - chunk * jnp.arange(count))
    return state_with(_pooled(by_chunk, names[i], sizes / data.size) for i in averages)


def pooled(states: Sequence[Any], sizes: Sequence[int]) -> Any:
    """The model state over all examples, from those that `recalibrate` gives for parts of them.

    It is that of all at once where each part but the last is a number of whole chunks.

    Args:
        states: one a part.
        sizes: examples of each.
    """
    if len(states) == 1:
        return states[0]
    paths, structure = jax.tree.flatten_with_path(states[0])
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    stacked = [jnp.stack(leaves) for leaves in zip(*map(jax.tree.leaves, states), strict=True)]
    rows, shares = dict(zip(names, stacked, strict=True)), jnp.asarray(sizes) / sum(sizes)
    averages = [
        _pooled(rows, name, shares) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        for name, (_, leaf) in zip(names, paths, strict=True)
    ]
    return jax.tree.unflatten(structure, averages)


def _pooled(by_part: dict[str, jax.Array], name: str, shares: jax.Array) -> jax.Array:
    """One average over all examples from its values `[parts, ...]` and their shares `[parts]`."""
    rows = by_part[name]
    weights = shares.astype(rows.dtype).reshape(-1, *[1] * (rows.ndim - 1))
    average = jnp.sum(weights * rows, axis=0)
    means = by_part.get(_sibling_mean(name))
    if means is None:
        return average
    center = jnp.sum(weights * means, axis=0)
    return average + jnp.sum(weights * (means - center[None]) ** 2, axis=0)


def _sibling_mean(name: str) -> str:
    """The name of the mean beside a variance; no name at all for what is no variance."""
    parts = name.split("/")
    return "/".join("mean" if part == "var" else part for part in parts) if "var" in parts else ""
