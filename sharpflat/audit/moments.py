"""An optimizer's state after a change of the parameters."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sharpflat.audit.changes import Change
from sharpflat.audit.layers import edited_arrays
from sharpflat.registry import optimizers
from sharpflat.validation import InputError

SUMS = "sum_of_squares"
POWERS = {"trace": 1, "mu": 1, "nu": 2, "nu_max": 2, SUMS: 2}
"""Optax's names for averages, maxima and sums of gradients, with the power of the gradient."""


def followed(opt_state: Any, change: Change, hyperparams: Mapping[str, Any]) -> Any:
    """The state that the same examples would have left, each gradient taken after the change.

    Where a change puts d w_i in w_j's place, it puts g_i / d there of the gradient, and of its
    k-th power's moment m_i / dᵏ. Adagrad's sums begin above zero: that no gradient left, and it
    stays. All else of the state stays, too, and all of it where the function changed as well:
    gradients then follow no such rule.

    Args:
        opt_state: as Optax has it, at the parameters before.
        change: of these.
        hyperparams: the optimizer's, of which `initial_accumulator_value` is looked at, and a
            `name` that is one of Sharpflat's own: that begins with Optax's default, 0.1. A state of
            `optax.inject_hyperparams` tells by itself.

    Raises:
        InputError: Adagrad's sums, and nobody says what they began with, or they are below it.
    """
    if not change.edits:
        return opt_state
    hyperparams = {**getattr(opt_state, "hyperparams", {}), **hyperparams}
    again = functools.partial(followed, change=change, hyperparams=hyperparams)
    if hasattr(opt_state, "_fields"):
        first = {SUMS: _first_sum(opt_state, hyperparams)} if SUMS in opt_state._fields else {}
        parts = {
            name: _moved(part, change, POWERS[name], first.get(name, 0.0))
            if name in POWERS
            else again(part)
            for name, part in opt_state._asdict().items()
        }
        return type(opt_state)(**parts)
    if isinstance(opt_state, Mapping):
        return {name: again(part) for name, part in opt_state.items()}
    if isinstance(opt_state, tuple | list):
        return type(opt_state)(map(again, opt_state))
    return opt_state


def _first_sum(state: Any, hyperparams: Mapping[str, Any]) -> float:
    usual = 0.1 if optimizers.built_in(hyperparams.get("name")) else None
    first = hyperparams.get("initial_accumulator_value", usual)
    told = "hyperparams={'initial_accumulator_value': ...}"
    if first is None:
        raise InputError(f"opt_state: holds Adagrad's sums; say what they began with, by {told}")
    if any((leaf < first).any() for leaf in jax.tree.leaves(getattr(state, SUMS))):
        raise InputError(
            f"opt_state: Adagrad's sums are below the {float(first):g} that they are said to have "
            f"begun with; give {told}"
        )
    return float(first)


def _moved(moments: Any, change: Change, power: int, first: float) -> Any:
    """With the edits, which have multiplied by d, undone once, and `power` times more."""
    edited = functools.partial(functools.reduce, edited_arrays, change.edits)
    scale = edited(jax.tree.map(jnp.ones_like, moments))
    gathered = edited(jax.tree.map(lambda moment: moment - first, moments))
    return jax.tree.map(lambda moment, d: first + moment / d ** (power + 1), gathered, scale)
