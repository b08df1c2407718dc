"""Auto-PGD (Croce & Hein 2020): projected ascent with momentum whose step halves by itself."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import trees
from sharpflat.objective import Objective
from sharpflat.sharpness.gradient_norms import scaled

Norm = Literal["l2", "linf"]
MOMENTUM, ENOUGH_RISES = 0.75, 0.75


class Point(NamedTuple):
    """z in the unit ball, the loss there, and its gradient in z."""

    z: Any
    loss: jax.Array
    gradient: Any


class _State(NamedTuple):
    """Auto-PGD between two steps."""

    here: Point
    previous: Any
    best: Point
    step: jax.Array
    rises: jax.Array
    marked_step: jax.Array
    marked_loss: jax.Array
    finite: jax.Array


@dataclass(frozen=True)
class Ball:
    """L(w + r z) over ‖z‖_p ≤ 1, r the radius of each parameter."""

    objective: Objective
    radius: Any
    norm: Norm

    def at(self, z: Any) -> Point:
        """The loss and its gradient at z."""
        step = jax.tree.map(jnp.multiply, self.radius, z)
        params = trees.add(self.objective.params, step)
        loss, gradient = self.objective.value_and_grad(params)
        return Point(z, loss, jax.tree.map(jnp.multiply, self.radius, gradient))

    def steepest(self, gradient: Any) -> Any:
        """The point of the unit ball that is farthest along `gradient`; 0 where that is 0."""
        if self.norm == "linf":
            return jax.tree.map(jnp.sign, gradient)
        unit, _ = scaled(gradient)
        length = trees.norm(unit)
        return trees.scale(1 / jnp.where(length > 0, length, 1), unit)

    def project(self, z: Any) -> Any:
        """The point of the ball nearest to z."""
        if self.norm == "linf":
            return jax.tree.map(lambda leaf: jnp.clip(leaf, -1, 1), z)
        return trees.scale(1 / jnp.maximum(trees.norm(z), 1), z)

    def gap(self, point: Point) -> jax.Array:
        """How much more, to first order, another point of the ball promises."""
        return trees.vdot(point.gradient, trees.sub(self.steepest(point.gradient), point.z))

    def filled(self, gradient: Any, other: Any) -> Any:
        """`gradient` with `other` for what has no direction: a zero (linf), or all of it (l2)."""
        if self.norm == "linf":
            return jax.tree.map(lambda a, b: jnp.where(a == 0, b, a), gradient, other)
        return _choose(scaled(gradient)[1] > 0, gradient, other)


def ascend(ball: Ball, key: jax.Array, steps: int) -> tuple[Point, jax.Array, jax.Array]:
    """The best point that Auto-PGD sees from w, L(w), and whether the loss was finite everywhere.

    What has no direction in the gradient at w is taken from that at a random point of the ball, or
    from noise where that has none either.
    """
    noise = trees.random_like(key, ball.radius, sampler=jax.random.normal)
    points = jax.tree.map(lambda n: jnp.stack([jnp.zeros_like(n), n]), ball.project(noise))
    start, other = (
        jax.tree.map(operator.itemgetter(i), jax.lax.map(ball.at, points)) for i in range(2)
    )
    directed = start._replace(
        gradient=ball.filled(start.gradient, ball.filled(other.gradient, noise))
    )
    two, count = jnp.full((), 2, start.loss.dtype), jnp.zeros((), int)
    state = _State(directed, start.z, start, two, count, two, start.loss, jnp.isfinite(start.loss))
    first = jnp.arange(steps) == 0
    body = functools.partial(_step, ball)
    state, _ = jax.lax.scan(body, state, (first, jnp.asarray(_periods(steps))))
    return state.best, start.loss, state.finite


def _step(ball: Ball, state: _State, about: tuple[jax.Array, jax.Array]) -> tuple[_State, None]:
    """One step. `about` it: whether it is the first, which has no momentum, and the number of
    steps since the last checkpoint if this one ends at another, else 0.
    """
    here, step, (first, period) = state.here, state.step, about
    ahead = ball.project(trees.add_scale(here.z, step, ball.steepest(here.gradient)))
    part = jnp.where(first, 1, MOMENTUM)
    moved = jax.tree.map(
        lambda z, a, p: (z + part * (a - z) + (1 - part) * (z - p)).astype(z.dtype),
        here.z,
        ahead,
        state.previous,
    )
    there = ball.at(ball.project(moved))
    best = _choose(there.loss > state.best.loss, there, state.best)
    rises = state.rises + (there.loss > here.loss)
    stuck = (state.marked_step == step) & (state.marked_loss == best.loss)
    checkpoint = period > 0
    halve = checkpoint & ((rises < ENOUGH_RISES * period) | stuck)
    return _State(
        here=_choose(halve, best, there),
        previous=_choose(halve, best.z, here.z),
        best=best,
        step=jnp.where(halve, step / 2, step),
        rises=jnp.where(checkpoint, 0, rises),
        marked_step=jnp.where(checkpoint, step, state.marked_step),
        marked_loss=jnp.where(checkpoint, best.loss, state.marked_loss),
        finite=state.finite & jnp.isfinite(there.loss),
    ), None


def _periods(steps: int) -> np.ndarray:
    """For each step the length of the period that a checkpoint ends there, or 0."""
    percent = [0, 22]
    while percent[-1] < 100:
        percent.append(percent[-1] + max(percent[-1] - percent[-2] - 3, 6))
    ends = sorted({math.ceil(p * steps / 100) for p in percent if p <= 100})
    periods = np.zeros(steps + 1, int)
    periods[ends[1:]] = np.diff(ends)
    return periods[1:]


def _choose(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
