"""How an epoch's examples fall into batches, and in which order it sees them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax


class Batches(NamedTuple):
    """The batches of an epoch: as many whole ones as fit, and what is left unless it is dropped.

    Attributes:
        examples: in the data set.
        batch_size: of a whole batch.
        drop_last: leave out the smaller last batch.
    """

    examples: int
    batch_size: int
    drop_last: bool = False

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(size, how many), in order."""
        whole, rest = divmod(self.examples, self.batch_size)
        sizes = [(self.batch_size, whole)] if whole else []
        return sizes if self.drop_last or not rest else [*sizes, (rest, 1)]

    @property
    def updates(self) -> int:
        """How many an epoch makes."""
        return sum(count for _, count in self.sizes)

    @property
    def seen(self) -> int:
        """Examples that an epoch sees."""
        return sum(size * count for size, count in self.sizes)

    def stretch(self, done: int, length: int) -> tuple[int, int, int, int]:
        """At most `length` batches of one size after the `done` first of an epoch.

        Returns:
            Their size, the examples before the first batch of that size, and the numbers, counted
            from there, of the first of them and of the first that is no longer one of them.
        """
        before = 0
        for size, count in self.sizes:
            if done < count:
                return size, before, done, min(count, done + length)
            done, before = done - count, before + size * count
        raise ValueError(f"an epoch has {self.updates} updates")


@functools.partial(jax.jit, static_argnums=2)
def epoch_order(seed: int, epoch: int, size: int) -> jax.Array:
    """A permutation of `0 .. size − 1` that derives from `(seed, epoch)` alone, `[size]`."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2), epoch)
    return jax.random.permutation(key, size)
