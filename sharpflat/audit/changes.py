"""Changes of a network's parameters, made wherever the outputs on the data stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sharpflat.audit.layers import Edits, Pair
from sharpflat.objective import Objective
from sharpflat.objective.layers import by_name, kernels
from sharpflat.validation import InputError, closest

TOLERANCE = 1e-4
"""Of the outputs' relative change: rounding is below it, a wrong guess at the layers above."""


@dataclass(frozen=True)
class Change:
    """An objective whose parameters were changed, and what that did to its outputs.

    Attributes:
        name: of the kind of change.
        layers: the modules at the places where it was made.
        untouched: the kernels that are as they were; a measure of these alone cannot move.
        objective: the changed one, on the same data.
        deviation: ‖f' − f‖ / ‖f‖, f the outputs on all examples before and f' after.
        preserves: whether the function is meant to stay (all kinds but `logit_rescaling`).
        edits: of the parameters, one place after another, each of them a permutation within an
            array, or a scaling of it; none is recorded where the function does not stay.
    """

    name: str
    layers: tuple[str, ...]
    untouched: tuple[str, ...]
    objective: Objective
    deviation: float
    preserves: bool = True
    edits: tuple[Edits, ...] = ()


def wherever_it_keeps(
    name: str,
    objective: Objective,
    places: Sequence[Pair],
    change: Callable[[Objective, Pair, bool], tuple[Objective, Edits]],
    layer: str | None,
    tolerance: float = TOLERANCE,
) -> Change:
    """The change at each place in turn where it leaves the outputs where they were at first.

    Args:
        name: of the kind of change.
        objective: what is changed.
        places: where it can be made.
        change: the objective after it, and the edits of its parameters, given what the changes
            before have made, the place, and whether the factor is the inverse of that before, lest
            a layer get back what it gave.
        layer: the first layer of the one place; None for all.
        tolerance: of the outputs' relative change.

    Raises:
        InputError: no place, or none where the outputs stay.
    """
    before, changed, deviations = outputs_of(objective), objective, []
    made, edits = list[Pair](), list[Edits]()
    inverse = False
    for pair in _chosen(name, places, layer):
        gave = bool(made) and made[-1].second == pair.first and pair.norm is None
        inverse = gave and not inverse
        candidate, own = change(changed, pair, inverse)
        deviations.append(relative(outputs_of(candidate), before))
        if deviations[-1] <= tolerance:
            changed, deviation = candidate, deviations[-1]
            made.append(pair)
            edits.append(own)
    if not made:
        raise InputError(
            f"{name}: moves the outputs, by {min(deviations):.2g} of their size where it does least"
        )
    modules = dict.fromkeys(part for pair in made for part in pair[:3] if part)
    kept = untouched(objective, changed)
    return Change(name, tuple(modules), kept, changed, deviation, edits=tuple(edits))


def _chosen(name: str, places: Sequence[Pair], layer: str | None) -> Sequence[Pair]:
    """All places, or that of the layer."""
    known = [pair.first for pair in places]
    if layer is not None and layer not in known:
        raise InputError(f"{name}: no layer that fits is called {layer!r}{closest(layer, known)}")
    if not places:
        raise InputError(f"{name}: the network has no layers that fit")
    return [pair for pair in places if layer in (None, pair.first)]


def untouched(before: Objective, after: Objective) -> tuple[str, ...]:
    """The kernels that a change has left alone."""
    old, new = by_name(before.params), by_name(after.params)
    names = [f"{layer}/kernel" for layer in kernels(before)]
    return tuple(name for name in names if old[name] is new[name])


def outputs_of(objective: Objective) -> jax.Array:
    """The network's outputs on all examples."""
    return objective.outputs(objective.params)


def relative(after: jax.Array, before: jax.Array) -> float:
    """‖after − before‖ / ‖before‖."""
    return float(jnp.linalg.norm((after - before).ravel()) / jnp.linalg.norm(before.ravel()))
