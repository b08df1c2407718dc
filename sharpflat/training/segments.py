"""Epochs of updates, compiled in segments of a few seconds."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sharpflat.batch import Batch
from sharpflat.training.batching import Batches, epoch_order
from sharpflat.training.update import Recipe, TrainState, update

SEGMENT_SECONDS = 4.0

Sums = tuple[jax.Array, jax.Array]


class Moment(NamedTuple):
    """Where a training is between two segments: all that is needed to go on from there.

    Attributes:
        step: updates so far.
        sums: of loss and hits over the examples of the epoch under way, or just ended.
        state: the next segment reuses its memory.
        seconds: wall-clock time of the segment just made.
    """

    step: int
    sums: Sums
    state: TrainState
    seconds: float = 0.0


@dataclass
class Members:
    """Runs that are trained as one program; states and sums have a leading axis, one a run.

    Attributes:
        seeds: a seed each.
        numbers: the optimizer's arguments in which they differ, a value each.
        optimizer_of: the optimizer of such numbers; equal groups need the same function.
        active: whether each still trains; where it does not, nothing of it changes any more.
        labels: of each, `[members, n]`, where they are not those of the data.
    """

    seeds: Sequence[int]
    numbers: Mapping[str, Sequence[float]]
    optimizer_of: Callable[[Any], optax.GradientTransformation]
    active: np.ndarray
    labels: jax.Array | None = None

    @property
    def given(self) -> tuple[Any, Any, Any]:
        """Numbers, activity and labels, as arrays."""
        numbers = {name: jnp.asarray(values) for name, values in self.numbers.items()}
        return numbers, jnp.asarray(self.active), self.labels


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


def beginning(state: TrainState, members: int | None = None) -> Moment:
    """The moment before the first update; of so many runs, if they are many."""
    zeros = jnp.zeros(() if members is None else members)
    return Moment(0, (zeros, zeros), state)


def advance(
    recipe: Recipe,
    moment: Moment,
    data: Batch,
    *,
    batch_size: int,
    seed: int | Members,
    drop_last: bool = False,
) -> Iterator[Moment]:
    """Train on from `moment` without end; every example once an epoch, in a new order each.

    The order derives from `(seed, epoch)` alone, dropout from `(seed, step)`: what comes next
    depends on the moment, not on what was run before in this process. No segment crosses the end
    of an epoch.

    Args:
        recipe: model, loss and optimizer.
        moment: where to go on.
        data: the training set, on the device.
        batch_size: examples an update; the last update of an epoch takes what is left.
        seed: seed of order and dropout; or of many runs at once, see `Members`.
        drop_last: leave out the smaller last batch.
    """
    batches = Batches(data.size, batch_size, drop_last)
    members = seed if isinstance(seed, Members) else None
    seeds = jnp.asarray(members.seeds if members else seed)
    keys = _each(lambda seed: jax.random.fold_in(jax.random.key(seed), 1), seeds)
    # Donation frees the old state in place, and must not take the caller's own arrays.
    state, sums = jax.tree.map(jnp.copy, (moment.state, moment.sums))
    step, length, order = moment.step, 1, None
    del moment  # or a second state stays in memory
    while True:
        tic, (epoch, done) = time.perf_counter(), divmod(step, batches.updates)
        if order is None or done == 0:
            order = _each(functools.partial(epoch_order, epoch=epoch + 1, size=data.size), seeds)
        if done == 0:
            sums = jax.tree.map(jnp.zeros_like, sums)
        size, offset, first, last = batches.stretch(done, length)
        state, sums = _segment(
            recipe, size, members and members.optimizer_of, state, sums, data,
            Drawn(order, keys, *(members.given if members else ())), offset, step, first, last,
        )  # fmt: skip
        jax.block_until_ready(sums)
        step, seconds = step + last - first, time.perf_counter() - tic
        length = _next_length(length, last - first, seconds)
        yield Moment(step, sums, state, seconds)


def _each(function: Callable[[jax.Array], jax.Array], seeds: jax.Array) -> jax.Array:
    """Of one seed, or of each, stacked."""
    return jax.vmap(function)(seeds) if seeds.ndim else function(seeds)


def epochs(
    recipe: Recipe,
    state: TrainState,
    data: Batch,
    *,
    batch_size: int,
    seed: int,
    first: int = 1,
    drop_last: bool = False,
) -> Iterator[Epoch]:
    """`advance` from `state` on, an epoch at a time; `first` is the number of the first one."""
    batches, seconds = Batches(data.size, batch_size, drop_last), 0.0
    begin = beginning(state)._replace(step=(first - 1) * batches.updates)
    moments = advance(recipe, begin, data, batch_size=batch_size, seed=seed, drop_last=drop_last)
    del state, begin
    for moment in moments:
        seconds += moment.seconds
        if moment.step % batches.updates == 0:
            yield epoch_of(batches, moment, seconds)
            seconds = 0.0


def epoch_of(batches: Batches, moment: Moment, seconds: float) -> Epoch:
    """The epoch that ended at `moment` and took so many seconds."""
    loss, accuracy = (float(total) / batches.seen for total in moment.sums)
    number = moment.step // batches.updates
    return Epoch(number, moment.step, loss, accuracy, seconds, moment.state)


def _next_length(length: int, ran: int, seconds: float) -> int:
    """Updates of the next segment: at most twice as many, and about `SEGMENT_SECONDS` long."""
    fitting = math.floor(SEGMENT_SECONDS * ran / max(seconds, 1e-9))
    return max(1, min(2 * length, fitting))


class Drawn(NamedTuple):
    """What a run draws on in an epoch; of many runs each part has a leading axis.

    Attributes:
        order: of the examples, `[n]`.
        key: of dropout and the like.
        numbers: arguments of its optimizer, where they are not those of all.
        active: whether it still trains.
        labels: its own, `[n]`.
    """

    order: jax.Array
    key: jax.Array
    numbers: Any = None
    active: Any = None
    labels: Any = None


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _segment(
    recipe: Recipe,
    size: int,
    optimizer_of: Callable[[Any], optax.GradientTransformation] | None,
    state: TrainState,
    sums: Sums,
    data: Batch,
    drawn: Drawn,
    offset: int,
    step: int,
    first: int,
    last: int,
) -> tuple[TrainState, Sums]:
    """Updates `first` to `last` of an epoch's batches of `size`; of many runs with `optimizer_of`.

    The bounds are traced: one program serves every length, so that how an epoch is cut into
    segments never changes a bit of the result.
    """

    def one(i: jax.Array, recipe: Recipe, carry: Any, drawn: Drawn) -> Any:
        state, (loss_sum, correct) = carry
        indices = jax.lax.dynamic_slice(drawn.order, (offset + i * size,), (size,))
        step_key = jax.random.fold_in(drawn.key, step + i - first)
        own = data if drawn.labels is None else data._replace(labels=drawn.labels)
        state, loss, accuracy = update(recipe, state, own.take(indices), step_key)
        return state, (loss_sum + loss * size, correct + accuracy * size)

    def member(i: jax.Array, carry: Any, drawn: Drawn) -> Any:
        assert optimizer_of is not None
        own = replace(recipe, optimizer=optimizer_of(drawn.numbers))
        after = one(i, own, carry, drawn)
        return jax.tree.map(lambda new, old: jnp.where(drawn.active, new, old), after, carry)

    def body(i: jax.Array, carry: Any) -> Any:
        if optimizer_of is None:
            return one(i, recipe, carry, drawn)
        return jax.vmap(functools.partial(member, i))(carry, drawn)

    return jax.lax.fori_loop(first, last, body, (state, sums))
