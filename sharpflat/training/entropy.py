"""Entropy-SGD: descent on the local entropy, by Langevin dynamics inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sharpflat import trees
from sharpflat.registry import optimizer
from sharpflat.validation import Count, Fraction, InputError, NonNegative, Positive


class EntropyState(NamedTuple):
    """Updates so far, the point x that descends, the mean μ of the inner iterates."""

    updates: jax.Array
    centre: Any
    mean: Any


def _moves_once(updates: int, arguments: Mapping[str, Any]) -> None:
    if updates < arguments["steps"]:
        raise InputError(
            f"steps: {arguments['steps']} is above the {updates} updates of this training, which "
            f"would stay where it begins; choose fewer, or more epochs"
        )


@optimizer(checks=(_moves_once,))
def entropy_sgd(
    *,
    learning_rate: Positive = 0.1,
    outer_rate: Fraction = 1.0,
    steps: Count = 20,
    gamma: NonNegative = 0.03,
    growth: NonNegative = 0.0,
    noise: NonNegative = 1e-4,
    averaging: Fraction = 0.75,
) -> optax.GradientTransformationExtraArgs:
    """Entropy-SGD: x follows the mean μ of Langevin iterates θ around it (Chaudhari et al., 2017).

    Each update is one inner step on its own batch, θ ← θ − η (g + γ (θ − x)) + √η ε n with normal
    n, μ ← (1 − α) μ + α θ; every L-th one then moves x ← x − η' (x − μ) and puts θ and μ there.
    L is `steps`. What is evaluated, kept and measured is x: updates after the last move do not
    show, and a training of fewer than L is refused. η' is the source's outer rate times γ;
    γ grows by `growth` of itself at every move of x.
    """

    def init(params: Any) -> EntropyState:
        return EntropyState(jnp.zeros((), jnp.int32), params, params)

    def update(
        grads: Any, state: EntropyState, params: Any = None, *, key: jax.Array, **_: Any
    ) -> tuple[Any, EntropyState]:
        rate = learning_rate(state.updates) if callable(learning_rate) else learning_rate
        pull = gamma * (1 + growth) ** (state.updates // steps)
        random = trees.random_like(key, params, sampler=jax.random.normal)
        point = jax.tree.map(
            lambda w, g, x, n: w - rate * (g + pull * (w - x)) + jnp.sqrt(rate) * noise * n,
            params, grads, state.centre, random,
        )  # fmt: skip
        point = optax.tree.cast_like(point, params)
        mean = trees.interpolate(state.mean, point, averaging)
        moved = trees.interpolate(state.centre, mean, outer_rate)
        ends = (state.updates + 1) % steps == 0
        point, centre, mean = (
            optax.tree.where(ends, moved, other) for other in (point, state.centre, mean)
        )
        return trees.sub(point, params), EntropyState(state.updates + 1, centre, mean)

    return optax.GradientTransformationExtraArgs(init, update)
