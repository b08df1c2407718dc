"""The compiled programs behind `Objective`: each jitted once, the objective an argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from sharpflat import trees
from sharpflat.batch import Batch, map_over_chunks, mean_over_chunks
from sharpflat.networks.adapter import has_batch_norm
from sharpflat.networks.batch_norm import recalibrate
from sharpflat.objective.losses import hit_rate

if TYPE_CHECKING:
    from sharpflat.objective.objective import Objective

GRADIENT_NUMBERS = 2**25
"""Numbers in the examples' gradients that are held at a time by `map_gradients` (128 MiB)."""


def _apply(objective: Objective, params: Any, state: Any, inputs: jax.Array) -> jax.Array:
    model = objective.model
    assert model is not None
    statistics = objective.batch_norm == "batch" and has_batch_norm(state)
    whole = objective.whole(params)
    return model.apply(whole, state, inputs, batch_statistics=statistics, dropout=False)[0]


def _chunk_loss(objective: Objective, params: Any, state: Any, batch: Batch) -> jax.Array:
    if objective.model is None:
        return objective.function(objective.whole(params), batch)
    outputs = _apply(objective, params, state, batch.inputs)
    return jnp.mean(objective.function(outputs, batch.labels))


def _mean(objective: Objective, function: Callable[[Batch], Any]) -> Any:
    return mean_over_chunks(function, objective.data, objective.chunk)


def state_at(objective: Objective, params: Any) -> Any:
    """The model state that holds at `params`; constant as far as derivatives go."""
    if objective.model is None or objective.batch_norm != "recalibrated":
        return objective.model_state
    params = jax.lax.stop_gradient(objective.whole(params))
    state = objective.model_state
    return recalibrate(objective.model, params, state, objective.data, objective.chunk)


@jax.jit
def loss(objective: Objective, params: Any) -> jax.Array:
    """See `Objective.loss`."""
    state = state_at(objective, params)
    return _mean(objective, lambda batch: _chunk_loss(objective, params, state, batch))


@jax.jit
def value_and_grad(objective: Objective, params: Any) -> tuple[jax.Array, Any]:
    """See `Objective.value_and_grad`."""
    state = state_at(objective, params)

    def chunk(batch: Batch) -> tuple[jax.Array, Any]:
        return jax.value_and_grad(lambda w: _chunk_loss(objective, w, state, batch))(params)

    return _mean(objective, chunk)


@jax.jit
def hvp(objective: Objective, params: Any, vector: Any) -> Any:
    """See `Objective.hvp`."""
    state = state_at(objective, params)

    def chunk(batch: Batch) -> Any:
        gradient = jax.grad(lambda w: _chunk_loss(objective, w, state, batch))
        return jax.jvp(gradient, (params,), (vector,))[1]

    return _mean(objective, chunk)


@jax.jit
def linearized_gradient(objective: Objective, params: Any) -> Callable[[Any], Any]:
    """`vector -> H vector` over all examples at once."""
    state = state_at(objective, params)
    gradient = jax.grad(lambda w: _chunk_loss(objective, w, state, objective.data))
    return jax.linearize(gradient, params)[1]


@jax.jit
def ggn_vp(objective: Objective, params: Any, vector: Any) -> Any:
    """See `Objective.ggn_vp`."""
    state = state_at(objective, params)
    return _mean(objective, lambda batch: _linearized_ggn(objective, params, state, batch)(vector))


@jax.jit
def linearized_ggn(objective: Objective, params: Any) -> Callable[[Any], Any]:
    """`vector -> GGN vector` over all examples at once."""
    return _linearized_ggn(objective, params, state_at(objective, params), objective.data)


def _linearized_ggn(
    objective: Objective, params: Any, state: Any, batch: Batch
) -> Callable[[Any], Any]:
    def outputs(w: Any) -> jax.Array:
        return _apply(objective, w, state, batch.inputs)

    def mean_loss(values: jax.Array) -> jax.Array:
        return jnp.mean(objective.function(values, batch.labels))

    values, push = jax.linearize(outputs, params)
    curve = jax.linearize(jax.grad(mean_loss), values)[1]
    return jax.tree_util.Partial(_push_curve_pull, push, curve, jax.vjp(outputs, params)[1])


def _push_curve_pull(push: Any, curve: Any, pull: Any, vector: Any) -> Any:
    return pull(curve(push(vector)))[0]


@jax.jit
def outputs(objective: Objective, params: Any) -> jax.Array:
    """See `Objective.outputs`."""
    state = state_at(objective, params)
    return map_over_chunks(
        lambda batch: _apply(objective, params, state, batch.inputs),
        objective.data,
        objective.chunk,
    )


@jax.jit
def losses(objective: Objective, params: Any) -> jax.Array:
    """See `Objective.losses`."""
    return objective.function(outputs(objective, params), objective.data.labels)


@jax.jit
def loss_and_accuracy(objective: Objective, params: Any) -> tuple[jax.Array, jax.Array]:
    """See `Objective.loss_and_accuracy`."""
    state = state_at(objective, params)

    def chunk(batch: Batch) -> tuple[jax.Array, jax.Array]:
        outputs = _apply(objective, params, state, batch.inputs)
        loss = jnp.mean(objective.function(outputs, batch.labels))
        return loss, hit_rate(outputs, batch.labels)

    return _mean(objective, chunk)


@functools.partial(jax.jit, static_argnums=1)
def map_gradients(
    objective: Objective, function: Callable[..., Any], params: Any, args: Any
) -> Any:
    """See `Objective.map_gradients`."""
    state = state_at(objective, params)

    def one(example: Batch) -> Any:
        single = jax.tree.map(lambda leaf: leaf[None], example)
        gradient = jax.grad(lambda w: _chunk_loss(objective, w, state, single))(params)
        return function(gradient, *args)

    at_a_time = max(1, min(objective.chunk, GRADIENT_NUMBERS // trees.size(params)))
    return map_over_chunks(jax.vmap(one), objective.data, at_a_time)
