"""Where updates find their examples: in the whole training set on the device, or in parts of it.

Parts come from the host, one ahead: while the device works on a part, the next is put beside it.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from sharpflat.batch import Batch
from sharpflat.training.batching import Batches, epoch_order
from sharpflat.training.sharding import replicated
from sharpflat.training.threads import settings

T = TypeVar("T")
U = TypeVar("U")


class Part(NamedTuple):
    """Updates of an epoch that follow one another, with their examples.

    Attributes:
        data: the examples, on the device.
        order: in which they are seen, `[n]`; of many runs `[runs, n]`.
        begin: examples of the epoch before the first of `order`.
        end: updates of the epoch up to the last whose examples are here.
    """

    data: Batch
    order: jax.Array
    begin: int
    end: int


def each(function: Callable[[jax.Array], jax.Array], seeds: jax.Array) -> jax.Array:
    """Of one seed, or of each, stacked."""
    return jax.vmap(function)(seeds) if seeds.ndim else function(seeds)


def whole(
    data: Batch, batches: Batches, seeds: jax.Array, step: int, mesh: Mesh | None
) -> Iterator[Part]:
    """A part an epoch, without end, from that of update `step` on: all of the data."""
    data = replicated(mesh, data)
    for epoch in itertools.count(step // batches.updates + 1):
        order = each(functools.partial(epoch_order, epoch=epoch, size=data.size), seeds)
        yield Part(data, replicated(mesh, order), 0, batches.updates)


def streamed(
    data: Batch, batches: Batches, seed: jax.Array, step: int, mesh: Mesh | None, examples: int
) -> Iterator[Part]:
    """Parts of about so many examples, and no less than a batch; the next one on its way already.

    Two are in memory where the last one is let go before the next is asked for.

    Args:
        data: the training set, in NumPy arrays.
        batches: how an epoch's examples fall into batches.
        seed: of the order.
        step: the first update.
        mesh: the devices, each of which gets the part.
        examples: of a part.
    """
    updates = max(1, examples // batches.batch_size)
    size = min(updates * batches.batch_size, data.size)

    def places() -> Iterator[tuple[np.ndarray, int, int]]:
        for epoch in itertools.count(step // batches.updates + 1):
            order = np.asarray(epoch_order(seed, epoch, data.size))
            for first in range(0, batches.updates, updates):
                # The last part begins early: all are of one size, for one program.
                begin = min(first * batches.batch_size, data.size - size)
                end = min(first + updates, batches.updates)
                if (epoch - 1) * batches.updates + end > step:
                    yield order[begin : begin + size], begin, end

    def put(place: tuple[np.ndarray, int, int]) -> Part:
        indices, begin, end = place
        examples = Batch(*(leaf[indices] for leaf in data)), np.arange(size, dtype=np.int32)
        there = jax.device_put(examples) if mesh is None else replicated(mesh, examples)
        return Part(there[0], there[1], begin, end)

    return prefetched(put, places())


def prefetched(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """`function` of each item in turn, the next one computed meanwhile in a thread of its own."""
    same = settings()

    def made(item: T) -> U:
        with same():
            return function(item)

    items = iter(items)
    with ThreadPoolExecutor(1) as pool:
        ahead = deque(pool.submit(made, item) for item in itertools.islice(items, 1))
        while ahead:
            ready: Any = ahead.popleft().result()
            ahead.extend(pool.submit(made, item) for item in itertools.islice(items, 1))
            yield ready
