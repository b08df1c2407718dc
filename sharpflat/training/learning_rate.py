"""Schedules: by which factor the learning rate is multiplied as training goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import pydantic

from sharpflat.registry import schedule, schedules
from sharpflat.validation import Fraction, Positive

Factor = Callable[[jax.Array], jax.Array]


@schedule
def constant(progress: jax.Array) -> jax.Array:
    """1 throughout."""
    return jnp.ones_like(progress)


@schedule
def cosine(progress: jax.Array, *, final: Fraction = 0.0) -> jax.Array:
    """From 1 to `final` along half a cosine: f + (1 − f) (1 + cos πs) / 2 (Loshchilov, 2017).

    The last update's rate is `final` times the learning rate: at 0 that update changes nothing, but
    under `lars`, whose momentum comes after the rate.
    """
    return final + (1 - final) * (1 + jnp.cos(jnp.pi * progress)) / 2


@schedule
def step(
    progress: jax.Array,
    *,
    at: Annotated[tuple[Fraction, ...], pydantic.Field(min_length=1)] = (0.5, 0.75),
    factor: Positive = 0.1,
) -> jax.Array:
    """Times `factor` at each of the fractions `at` of the training."""
    passed = sum((progress >= fraction).astype(jnp.float32) for fraction in at)
    return jnp.asarray(factor, jnp.float32) ** passed


def factor_of(name: str, arguments: dict[str, Any], warmup: float, total: float) -> Factor:
    """The factor of the update number t = 0, 1, ...: a linear warm-up, then the schedule.

    Args:
        name: of the schedule.
        arguments: its own.
        warmup: updates in which the factor rises from 0: (t + 1) / warmup, or 1 where that is more.
        total: updates of the whole training; the schedule sees s from 0, where the warm-up ends,
            to 1 at its last update.
    """
    shape = functools.partial(schedules[name].function, **schedules[name].arguments(arguments))

    def factor(count: jax.Array) -> jax.Array:
        left = max(total - warmup - 1, 1)
        progress = jnp.clip((count - warmup) / left, 0, 1)
        rising = jnp.minimum((count + 1) / max(warmup, 1), 1)
        return jnp.where(count < warmup, rising, shape(progress))

    return factor
