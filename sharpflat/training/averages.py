"""Averages of the parameters along the training, and which parameters are evaluated."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ScheduleFreeState, schedule_free_eval_params

from sharpflat import trees
from sharpflat.training.entropy import EntropyState


class ExponentialAverage(NamedTuple):
    """The optimizer's own state, (1 − d) Σ_k d^{t−k} θ_k and 1 − d^t."""

    inner: Any
    sum: Any
    weight: jax.Array


class StochasticAverage(NamedTuple):
    """The optimizer's own state, updates so far, how many points are in the mean, and the mean."""

    inner: Any
    updates: jax.Array
    points: jax.Array
    mean: Any


def ema(rule: optax.GradientTransformation, decay: float) -> optax.GradientTransformationExtraArgs:
    """`rule`, with the exponential moving average of what each of its updates leaves.

    θ̄_t = Σ_k d^{t−k} θ_k / Σ_k d^{t−k}: the start is not in it (Polyak and Juditsky, 1992).
    """
    own = optax.with_extra_args_support(rule)

    def init(params: Any) -> ExponentialAverage:
        return ExponentialAverage(own.init(params), trees.zeros_like(params), jnp.zeros(()))

    def update(
        grads: Any, state: ExponentialAverage, params: Any = None, **extra: Any
    ) -> tuple[Any, ExponentialAverage]:
        updates, inner = own.update(grads, state.inner, params, **extra)
        point = evaluated(inner, optax.apply_updates(params, updates))
        total = trees.interpolate(point, state.sum, decay)
        return updates, ExponentialAverage(inner, total, decay * state.weight + 1 - decay)

    return optax.GradientTransformationExtraArgs(init, update)


def swa(
    rule: optax.GradientTransformation, first: int, every: int
) -> optax.GradientTransformationExtraArgs:
    """`rule`, with the plain mean of what updates `first`, `first + every`, ... leave.

    Stochastic weight averaging (Izmailov et al., 2018).
    """
    own = optax.with_extra_args_support(rule)

    def init(params: Any) -> StochasticAverage:
        count = jnp.zeros((), jnp.int32)
        return StochasticAverage(own.init(params), count, count, params)

    def update(
        grads: Any, state: StochasticAverage, params: Any = None, **extra: Any
    ) -> tuple[Any, StochasticAverage]:
        updates, inner = own.update(grads, state.inner, params, **extra)
        number = state.updates + 1
        taken = (number >= first) & ((number - first) % every == 0)
        points = state.points + taken
        share = jnp.where(taken, 1 / jnp.maximum(points, 1), 0.0)
        point = evaluated(inner, optax.apply_updates(params, updates))
        mean = trees.interpolate(state.mean, point, share)
        return updates, StochasticAverage(inner, number, points, mean)

    return optax.GradientTransformationExtraArgs(init, update)


def evaluated(opt_state: Any, params: Any) -> Any:
    """The parameters that a training stands for: its average where it keeps one.

    Of `schedule_free` that is x, of `entropy_sgd` the centre, which the parameters move about; an
    average over one of these is that of its x or centre.
    """
    match opt_state:
        case ExponentialAverage():
            started = opt_state.weight > 0
            weight = jnp.where(started, opt_state.weight, 1.0)
            mean = optax.tree.cast_like(trees.scale(1 / weight, opt_state.sum), params)
            return optax.tree.where(started, mean, params)
        case StochasticAverage():
            inner = evaluated(opt_state.inner, params)
            return optax.tree.where(opt_state.points > 0, opt_state.mean, inner)
        case ScheduleFreeState():
            return schedule_free_eval_params(opt_state, params)
        case EntropyState():
            return opt_state.centre
    return params
