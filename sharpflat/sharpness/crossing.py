"""Where along a scale something is first passed: doubling or halving, then bisection."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Crossing(NamedTuple):
    """A bracket around a crossing.

    Attributes:
        low: the largest scale tried that is not past it; 0 if there was none.
        high: the smallest scale tried that is past it; infinite if there was none.
        evaluations: scales tried.
        state: what `passed` handed on last.
    """

    low: jax.Array
    high: jax.Array
    evaluations: jax.Array
    state: Any

    @property
    def scale(self) -> jax.Array:
        """The middle √(low · high) of the bracket; of half a bracket, the end that there is."""
        one_sided = jnp.where(self.low > 0, self.low, self.high)
        middle = jnp.sqrt(self.low) * jnp.sqrt(self.high)
        return jnp.where((self.low > 0) & jnp.isfinite(self.high), middle, one_sided)

    def within(self, tolerance: float | jax.Array) -> jax.Array:
        """Whether high / low ≤ 1 + tolerance."""
        return (self.low > 0) & (self.high <= self.low * (1 + tolerance))


def first_crossing(
    passed: Callable[[jax.Array, Any], tuple[jax.Array, Any]],
    start: float | jax.Array,
    tolerance: float | jax.Array,
    limit: int | jax.Array,
    *,
    largest: float | jax.Array = math.inf,
    state: Any = (),
) -> Crossing:
    """Bracket a scale t at which `passed(t)` turns true; for use inside compiled programs.

    From `start` the scale is doubled until it is past, or halved until it is not; the bracket is
    then halved, on a logarithmic scale. Doubling can jump over a crossing and back: what is found
    is a crossing, and the first one only where `passed` is monotone.

    Args:
        passed: from a scale and `state` to whether it is past, and the next state.
        start: the first scale, of the dtype in which to search.
        tolerance: end once high / low ≤ 1 + tolerance.
        limit: end after as many evaluations.
        largest: end once a scale of this size or more is not past.
        state: carried from one evaluation to the next.
    """
    start = jnp.asarray(start)

    def going_on(found: Crossing) -> jax.Array:
        more = (found.evaluations < limit) & (found.low < largest)
        return more & ~found.within(tolerance)

    def body(found: Crossing) -> Crossing:
        low, high = found.low, found.high
        outwards = jnp.where(low > 0, 2 * low, jnp.where(jnp.isinf(high), start, high / 2))
        scale = jnp.where((low > 0) & jnp.isfinite(high), found.scale, outwards)
        past, state = passed(scale, found.state)
        low, high = jnp.where(past, low, scale), jnp.where(past, scale, high)
        return Crossing(low, high, found.evaluations + 1, state)

    unknown = Crossing(
        jnp.zeros_like(start), jnp.full_like(start, jnp.inf), jnp.zeros((), int), state
    )
    return jax.lax.while_loop(going_on, body, unknown)
