"""Re-estimation of batch-norm averages over a whole data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sharpflat.batch import Batch, mean_over_chunks
from sharpflat.networks.adapter import Model, has_batch_norm


def recalibrate(model: Model, params: Any, model_state: Any, data: Batch, chunk: int) -> Any:
    """The model state whose averages are means of the batch statistics over all of `data`.

    Each average a of a layer with momentum m is updated by a chunk as a' = m a + (1 − m) s, with
    s the chunk's statistic. Two updates, from a = 0 and from a = 1, give m and s whatever the
    layer calls them; s is then averaged over chunks, the smaller last one by its weight. A
    variance is thus the mean variance within chunks, as in Izmailov et al. (2018), section 3.2.

    Args:
        model: the network.
        params: its parameters.
        model_state: its state; only floating-point leaves are re-estimated.
        data: the examples.
        chunk: examples a forward pass.
    """
    if not has_batch_norm(model_state):
        return model_state

    leaves, structure = jax.tree.flatten(model_state)
    averages = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def state_with(values: Iterable[jax.Array]) -> Any:
        replaced = dict(zip(averages, values, strict=True))
        return jax.tree.unflatten(
            structure, [replaced.get(i, leaf) for i, leaf in enumerate(leaves)]
        )

    def updated(start: float, inputs: jax.Array) -> list[jax.Array]:
        state = state_with(jnp.full_like(leaves[i], start) for i in averages)
        after = model.apply(params, state, inputs, batch_statistics=True, dropout=False)[1]
        return [jax.tree.leaves(after)[i] for i in averages]

    # The momentum is a constant of the layer: two examples are enough to read it.
    few = data.inputs[:2]
    momenta = [one - zero for one, zero in zip(updated(1.0, few), updated(0.0, few), strict=True)]
    means = mean_over_chunks(lambda batch: updated(0.0, batch.inputs), data, chunk)
    return state_with(mean / (1 - m) for mean, m in zip(means, momenta, strict=True))
