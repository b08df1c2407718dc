"""Epochs of updates, compiled in segments of a few seconds."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from sharpflat import trees
from sharpflat.batch import Batch
from sharpflat.training.batching import Batches
from sharpflat.training.feeding import Part, each, streamed, whole
from sharpflat.training.sharding import agreed, alike, replicated
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
    streamed_by: int | None = None,
    stops_at: Sequence[int] = (),
) -> Generator[Moment, None, None]:
    """Train on from `moment` without end; every example once an epoch, in a new order each.

    The order derives from `(seed, epoch)` alone, dropout from `(seed, step)`: what comes next
    depends on the moment, not on what was run before in this process. No segment crosses the end
    of an epoch.

    On the devices of several processes all of these train in step. The first one's moment, lengths
    of segments and members still active are those of all; where it lets go, the others end.

    Args:
        recipe: model, loss, optimizer and devices.
        moment: where to go on.
        data: the training set, on the device; or in NumPy arrays, where it is streamed or goes to
            several devices.
        batch_size: examples an update; the last update of an epoch takes what is left.
        seed: seed of order and dropout; or of many runs at once, see `Members`.
        drop_last: leave out the smaller last batch.
        streamed_by: the data stay on the host but for about so many examples, and as many that come
            next; of one run only.
        stops_at: segments end at the multiples of these numbers of updates.
    """
    batches, mesh = Batches(data.size, batch_size, drop_last), recipe.mesh
    members = seed if isinstance(seed, Members) else None
    seeds = jnp.asarray(members.seeds if members else seed)
    keys = each(lambda seed: jax.random.fold_in(jax.random.key(seed), 1), seeds)
    step, begin = int(agreed(mesh, np.int32(moment.step))), agreed(mesh, moment[1:3])
    # Donation frees the old state in place, and must not take the caller's own arrays.
    sums, state = jax.tree.map(jnp.copy, replicated(mesh, begin))
    del moment, begin  # or a second state stays in memory
    given, keys = (data, batches, seeds, step, mesh), replicated(mesh, keys)
    parts = streamed(*given, streamed_by) if streamed_by else whole(*given)
    length, part = _agree(mesh, 1, members), cast(Part | None, None)
    while length:
        tic, done = time.perf_counter(), step % batches.updates
        if part is None or done in (0, part.end):
            part = None  # let go before the next is taken
            part = next(parts)
        if done == 0:
            sums = _nothing(sums)
        left = min([part.end - done, *(stop - step % stop for stop in stops_at)])
        size, offset, first, last = batches.stretch(done, min(length, left))
        state, sums = _segment(
            recipe, size, members and members.optimizer_of, state, sums, part.data,
            Drawn(part.order, keys, *replicated(mesh, members.given if members else ())),
            offset - part.begin, step, first, last,
        )  # fmt: skip
        jax.block_until_ready(sums)
        step, seconds = step + last - first, time.perf_counter() - tic
        length = _next_length(length, last - first, seconds)
        try:
            yield Moment(step, sums, state, seconds)
        except GeneratorExit:
            if mesh is not None:
                _agree(mesh, 0, members)
            raise
        length = _agree(mesh, length, members)


def _agree(mesh: Mesh | None, length: int, members: Members | None) -> int:
    """The first process's length of the next segment, 0 for none, and who is active in it."""
    active = members.active if members else np.zeros(0)
    length, active = agreed(mesh, (np.int32(length), active))
    if members:
        members.active = active
    return int(length)


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
    loss, accuracy = (float(total) / batches.seen for total in jax.device_get(moment.sums))
    number = moment.step // batches.updates
    return Epoch(number, moment.step, loss, accuracy, seconds, moment.state)


def _next_length(length: int, ran: int, seconds: float) -> int:
    """Updates of the next segment: at most twice as many, and about `SEGMENT_SECONDS` long."""
    fitting = math.floor(SEGMENT_SECONDS * ran / max(seconds, 1e-9))
    return max(1, min(2 * length, fitting))


@functools.partial(jax.jit, donate_argnums=0)
def _nothing(sums: Sums) -> Sums:
    return jax.tree.map(jnp.zeros_like, sums)


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
        # Python's numbers, of a run alone, take the parameters' precision, and what is made of
        # them first, as 1 - b2, Python's own.
        lowest = optax.tree.dtype(carry[0].params, "lowest")
        precision = str(jnp.promote_types(lowest, jnp.float32))
        own = replace(recipe, optimizer=optimizer_of(trees.cast(drawn.numbers, precision)))
        after = one(i, own, carry, drawn)
        # A number may be of more precision than what it is multiplied with.
        return jax.tree.map(
            lambda new, old: jnp.where(drawn.active, new.astype(old.dtype), old), after, carry
        )

    def body(i: jax.Array, carry: Any) -> Any:
        if optimizer_of is None:
            return one(i, recipe, carry, drawn)
        return jax.vmap(functools.partial(member, i))(carry, drawn)

    return alike(recipe.mesh, jax.lax.fori_loop(first, last, body, (state, sums)))
