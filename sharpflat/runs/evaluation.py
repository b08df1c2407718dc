"""A training's state on all of both splits: on the device at once, or a chunk at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from sharpflat.batch import Batch
from sharpflat.networks import Model, pooled, recalibrate
from sharpflat.networks.adapter import has_batch_norm
from sharpflat.objective import Objective
from sharpflat.runs.build import Resident
from sharpflat.training import Recipe, TrainState, evaluated, prefetched, shared

EVALUATION_CHUNK = 1000


def evaluate(
    recipe: Recipe, state: TrainState, data: Resident
) -> tuple[dict[str, float], TrainState]:
    """Loss and accuracy on all of both splits, and the state that they are of.

    Its parameters are the average where the training keeps one, and the batch-norm averages those
    parameters' own over the training set. Data in NumPy arrays come to the device chunk by chunk,
    to be shared by the devices of `recipe.mesh` that are of this process.
    """
    params = evaluated(state.opt_state, state.params)
    averages = _averages(recipe, params, state.model_state, data.train)
    values: dict[str, float] = {}
    for name, split in (("full_train", data.train), ("test", data.test)):
        loss, accuracy = 0.0, 0.0
        for batch in _parts(split, recipe.mesh):
            chunk = min(EVALUATION_CHUNK, batch.size)
            made = Objective(params, averages, batch, recipe.loss, recipe.model, "running", chunk)
            means = jax.device_get(made.loss_and_accuracy(params))
            share = [float(mean) * batch.size for mean in means]
            loss, accuracy = loss + share[0], accuracy + share[1]
        values |= {f"{name}_loss": loss / split.size, f"{name}_accuracy": accuracy / split.size}
    return values, state._replace(params=params, model_state=averages)


def _averages(recipe: Recipe, params: Any, model_state: Any, train: Batch) -> Any:
    if not has_batch_norm(model_state):
        return model_state
    found, sizes = [], []
    for batch in _parts(train, recipe.mesh):
        state = _recalibrated(recipe.model, EVALUATION_CHUNK, params, model_state, batch)
        found.append(jax.block_until_ready(state))  # or parts pile up on the device
        sizes.append(batch.size)
    return pooled(found, sizes)


def _parts(split: Batch, mesh: Mesh | None) -> Iterator[Batch]:
    """The split as it is on the device; from the host in chunks."""
    if isinstance(split.inputs, jax.Array):
        return iter([split])

    def put(first: int) -> Batch:
        chunk = jax.tree.map(lambda array: array[first : first + EVALUATION_CHUNK], split)
        return shared(mesh, chunk)

    return prefetched(put, range(0, split.size, EVALUATION_CHUNK))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _recalibrated(model: Model, chunk: int, params: Any, model_state: Any, data: Batch) -> Any:
    return recalibrate(model, params, model_state, data, chunk)
