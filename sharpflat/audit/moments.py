"""An optimizer's state after a change of the parameters."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sharpflat.audit.changes import Change
from sharpflat.audit.layers import edited_arrays

POWERS = {"trace": 1, "mu": 1, "nu": 2, "nu_max": 2, "sum_of_squares": 2}
"""Optax's names for averages, maxima and sums of gradients, with the power of the gradient."""


def followed(opt_state: Any, change: Change) -> Any:
    """The state that the same examples would have left, each gradient taken after the change.

    Where a change puts d w_i in w_j's place, it puts g_i / d there of the gradient, and of its
    k-th power's moment m_i / dᵏ. All else of the state stays, and all of it where the function
    changed too: gradients then follow no such rule.

    Args:
        opt_state: as Optax has it, at the parameters before.
        change: of these.
    """
    if hasattr(opt_state, "_fields"):
        parts = {
            name: _moved(part, change, POWERS[name]) if name in POWERS else followed(part, change)
            for name, part in opt_state._asdict().items()
        }
        return type(opt_state)(**parts)
    if isinstance(opt_state, Mapping):
        return {name: followed(part, change) for name, part in opt_state.items()}
    if isinstance(opt_state, tuple | list):
        return type(opt_state)(followed(part, change) for part in opt_state)
    return opt_state


def _moved(moments: Any, change: Change, power: int) -> Any:
    """With the edits, which have multiplied by d, undone once, and `power` times more."""
    edited = functools.partial(functools.reduce, edited_arrays, change.edits)
    scale = edited(jax.tree.map(jnp.ones_like, moments))
    return jax.tree.map(lambda moment, d: moment / d ** (power + 1), edited(moments), scale)
