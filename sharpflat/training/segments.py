"""Epochs of updates, compiled in segments of a few seconds."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpflat.batch import Batch
from sharpflat.training.batching import epoch_order
from sharpflat.training.update import Recipe, TrainState, update

SEGMENT_SECONDS = 4.0


class Epoch(NamedTuple):
    """An epoch just trained.

    Attributes:
        number: 1 for the first.
        step: updates so far.
        train_loss: mean over the epoch's updates, each at the parameters of its time.
        train_accuracy: likewise.
        seconds: wall-clock time of the epoch's updates.
        state: the state after it; the next epoch reuses its memory.
    """

    number: int
    step: int
    train_loss: float
    train_accuracy: float
    seconds: float
    state: TrainState


def start(recipe: Recipe, data: Batch, seed: int) -> TrainState:
    """The state before the first update: it depends on the seed, not on the batch size."""
    key = jax.random.fold_in(jax.random.key(seed), 0)
    params, model_state = recipe.model.init(key, data.inputs)
    return TrainState(params, model_state, recipe.optimizer.init(params))


def epochs(
    recipe: Recipe,
    state: TrainState,
    data: Batch,
    *,
    batch_size: int,
    seed: int,
    first: int = 1,
    drop_last: bool = False,
    on_segment: Callable[[float], None] = lambda done: None,
) -> Iterator[Epoch]:
    """Train without end, an epoch at a time; every example once an epoch, in a new order each.

    The order derives from `(seed, epoch)` alone, dropout from `(seed, step)`: an epoch's result
    depends on the state it starts from, not on what was run before in this process.

    Args:
        recipe: model, loss and optimizer.
        state: where to start; its memory is given up.
        data: the training set, on the device.
        batch_size: examples an update; the last update of an epoch takes what is left.
        seed: seed of order and dropout.
        first: number of the first epoch to train.
        drop_last: leave out the smaller last batch.
        on_segment: called after each compiled segment with the epochs done, a fraction of one
            included.
    """
    sizes = _batch_sizes(data.size, batch_size, drop_last)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    length, updates = 1, sum(count for _, count in sizes)
    # Donation frees the old state in place, and must not take the caller's own arrays.
    state = jax.tree.map(jnp.copy, state)
    for number in itertools.count(first):
        began, order = time.perf_counter(), epoch_order(seed, number, data.size)
        totals, done, step = (jnp.zeros(()), jnp.zeros(())), 0, (number - 1) * updates
        offset = 0
        for size, count in sizes:
            program = functools.partial(_segment, recipe, size)
            at = 0
            while at < count:
                tic, end = time.perf_counter(), min(count, at + length)
                state, totals = program(
                    state, totals, data, order, key, offset, step + done, at, end
                )
                if end < count or length < count:
                    jax.block_until_ready(totals)
                    length = _next_length(length, end - at, time.perf_counter() - tic)
                    on_segment(number - 1 + (done + end - at) / updates)
                done, at = done + end - at, end
            offset += size * count
        loss, accuracy = (float(total) / offset for total in totals)
        seconds = time.perf_counter() - began
        yield Epoch(number, number * updates, loss, accuracy, seconds, state)


def updates_per_epoch(n: int, batch_size: int, drop_last: bool) -> int:
    """How many updates an epoch of `n` examples makes."""
    return sum(count for _, count in _batch_sizes(n, batch_size, drop_last))


def _batch_sizes(n: int, batch_size: int, drop_last: bool) -> list[tuple[int, int]]:
    """(size, how many) of an epoch's batches, in order."""
    whole, rest = divmod(n, batch_size)
    sizes = [(batch_size, whole)] if whole else []
    return sizes if drop_last or not rest else [*sizes, (rest, 1)]


def _next_length(length: int, ran: int, seconds: float) -> int:
    """Updates of the next segment: at most twice as many, and about `SEGMENT_SECONDS` long."""
    fitting = math.floor(SEGMENT_SECONDS * ran / max(seconds, 1e-9))
    return max(1, min(2 * length, fitting))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _segment(
    recipe: Recipe,
    size: int,
    state: TrainState,
    totals: tuple[jax.Array, jax.Array],
    data: Batch,
    order: jax.Array,
    key: jax.Array,
    offset: int,
    step: int,
    first: int,
    last: int,
) -> tuple[TrainState, tuple[jax.Array, jax.Array]]:
    """Updates `first` to `last` of an epoch's batches of `size`.

    The bounds are traced: one program serves every length, so that how an epoch is cut into
    segments never changes a bit of the result.
    """

    def body(i: jax.Array, carry: Any) -> Any:
        state, (loss_sum, correct) = carry
        indices = jax.lax.dynamic_slice(order, (offset + i * size,), (size,))
        step_key = jax.random.fold_in(key, step + i - first)
        state, loss, accuracy = update(recipe, state, data.take(indices), step_key)
        return state, (loss_sum + loss * size, correct + accuracy * size)

    return jax.lax.fori_loop(first, last, body, (state, totals))
