"""Neighbouring layers of a network, and edits of their arrays by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from sharpflat.objective import Objective
from sharpflat.objective.layers import by_name, kernels, modules, name_of

Edits = Mapping[str, Callable[[jax.Array], jax.Array]]


class Pair(NamedTuple):
    """A layer, what normalises its outputs if anything does, the next layer, and its units."""

    first: str
    norm: str | None
    second: str
    units: int


def pairs(objective: Objective) -> list[Pair]:
    """Neighbouring layers whose shapes fit.

    Raises:
        InputError: as `kernels`.
    """
    used, arrays = modules(objective), by_name(objective.params)
    layers, found = kernels(objective), []
    for first, second in itertools.pairwise(layers):
        units = layers[first].shape[-1]
        between = used[used.index(first) + 1 : used.index(second)]
        norms = [name for name in between if f"{name}/scale" in arrays]
        if layers[second].shape[-2] % units == 0:
            found.append(Pair(first, norms[0] if norms else None, second, units))
    return found


def edited(objective: Objective, params: Edits, state: Edits | None = None) -> Objective:
    """The objective with the arrays of these names changed; a name that none has is left out."""
    return replace(
        objective,
        params=edited_arrays(objective.params, params),
        model_state=edited_arrays(objective.model_state, state or {}),
    )


def average(objective: Objective, norm: str, part: str) -> str:
    """The name in the state of a normalisation's `mean` or `var`; nothing where it has none."""
    # A Linen state's names begin with its collection, which the parameters' lack.
    names = [
        name for name in by_name(objective.model_state) if f"/{name}".endswith(f"/{norm}/{part}")
    ]
    return min(names, key=len, default="")


def edited_arrays(tree: Any, edits: Edits) -> Any:
    """The tree with the arrays of these names changed."""

    def leaf(path: Any, value: jax.Array) -> jax.Array:
        return edits[name_of(path)](value) if name_of(path) in edits else value

    return jax.tree.map_with_path(leaf, tree)
