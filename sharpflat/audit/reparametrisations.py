"""Changes of a network's parameters that keep its function, and the rescaling of its logits.

Which layers follow one another is read off the forward pass, and believed only where the outputs
on the data confirm that the function stays. Unless a layer is named, a change is made at every
place that will do, one after another: made at one layer alone, it would let a measure of another
pass for invariant.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sharpflat.audit.changes import (
    TOLERANCE,
    Change,
    outputs_of,
    relative,
    untouched,
    wherever_it_keeps,
)
from sharpflat.audit.layers import Edits, Pair, average, edited, pairs
from sharpflat.objective import Objective
from sharpflat.objective.layers import kernels
from sharpflat.validation import InputError

EPSILON_TOLERANCE = 1e-2
"""The same for `batch_norm_scale`, where batch norm's ε cannot always be made up for."""

OF_UNITS = ("kernel", "scale", "bias")


def relu_rescaling(objective: Objective, *, alpha: float = 4.0, layer: str | None = None) -> Change:
    """A layer's kernel and bias times α, the next layer's kernel divided by α.

    Where a normalisation follows the layer, its scale and bias are multiplied instead of the
    layer's. The function stays where what lies between is positively homogeneous, as ReLU and
    pooling are; to the last bit where α is a power of two. A layer that a place has just divided
    and the next one would multiply again is divided twice: the factor there is 1/α, then α again.

    Args:
        objective: of a network whose parameters are named as Flax's, `Dense_0/kernel`.
        alpha: α, positive and not 1.
        layer: the first of the two layers, as `Dense_0`; None for every place that will do.

    Raises:
        InputError: no network, or no layers where the outputs on the data stay (to 1e-4).

    Source: Dinh et al. (2017), section 3.
    """
    check_alpha(alpha)

    def change(before: Objective, pair: Pair, inverse: bool) -> tuple[Objective, Edits]:
        factor = 1 / alpha if inverse else alpha
        grown = _of_units(pair.norm or pair.first, _times(factor))
        edits = {**grown, f"{pair.second}/kernel": _times(1 / factor)}
        return edited(before, edits), edits

    return wherever_it_keeps("relu_rescaling", objective, pairs(objective), change, layer)


def batch_norm_scale(
    objective: Objective, *, alpha: float = 4.0, layer: str | None = None
) -> Change:
    """The kernel and bias before a normalisation times α, its running averages adapted.

    The mean becomes α mean and the variance α² var + (α² − 1) ε, so that √(var + ε), which divides,
    grows by just α. ε is not among the parameters: it is found as the number that leaves the
    outputs where they are. Under `batch` and `recalibrated` the statistics are the data's own and
    ε cannot be made up for: the outputs move a little, by `deviation`. What no normalisation
    follows, as the last layer, stays as it is.

    Args:
        objective: of a network whose parameters are named as Flax's.
        alpha: α, positive and not 1.
        layer: the layer before the normalisation; None for every place that will do.

    Raises:
        InputError: no network, or no normalised layer where the outputs on the data stay (to 1e-2).
    """
    check_alpha(alpha)
    normalised = [pair for pair in pairs(objective) if pair.norm is not None]

    def change(before: Objective, pair: Pair, inverse: bool) -> tuple[Objective, Edits]:
        edits = _of_units(pair.first, _times(alpha))
        grown = edited(before, edits)
        mean, var = _averages(before, pair)

        def adapted(epsilon: float) -> Objective:
            shift = (alpha**2 - 1) * epsilon
            return edited(grown, {}, {mean: _times(alpha), var: lambda v: alpha**2 * v + shift})

        return adapted(_epsilon(before, adapted)), edits

    return wherever_it_keeps(
        "batch_norm_scale", objective, normalised, change, layer, EPSILON_TOLERANCE
    )


def permuted_units(objective: Objective, *, layer: str | None = None) -> Change:
    """Each unit of a hidden layer takes its neighbour's place, and the last the first's.

    With it go its column of the kernel, its bias, its normalisation and averages, and its inputs
    to the next layer.

    Args:
        objective: of a network whose parameters are named as Flax's.
        layer: which; None for every one that will do.

    Raises:
        InputError: no network, or no layer of several units where the outputs on the data stay
            (to 1e-4).
    """
    several = [pair for pair in pairs(objective) if pair.units > 1]

    def change(before: Objective, pair: Pair, inverse: bool) -> tuple[Objective, Edits]:
        params = {**_of_units(pair.first, _roll), **_of_units(pair.norm, _roll)}
        params[f"{pair.second}/kernel"] = lambda kernel: _roll_inputs(kernel, pair.units)
        return edited(before, params, dict.fromkeys(_averages(before, pair), _roll)), params

    return wherever_it_keeps("permuted_units", objective, several, change, layer)


def logit_rescaling(objective: Objective, *, alpha: float = 4.0) -> Change:
    """The last layer's kernel and bias times α: outputs times α, every prediction as it was.

    The function does not stay, nor does cross-entropy; `deviation` is |α − 1|.

    Args:
        objective: of a network whose parameters are named as Flax's.
        alpha: α, positive and not 1.

    Raises:
        InputError: no network, or one whose outputs do not grow with its last layer.
    """
    check_alpha(alpha)
    last = list(kernels(objective))[-1]
    changed = edited(objective, _of_units(last, _times(alpha)))
    before, after = outputs_of(objective), outputs_of(changed)
    if not relative(after, alpha * before) <= TOLERANCE:
        raise InputError(f"logit_rescaling: the outputs do not grow with the last layer, {last!r}")
    deviation, kept = relative(after, before), untouched(objective, changed)
    return Change("logit_rescaling", (last,), kept, changed, deviation, preserves=False)


def check_alpha(alpha: float) -> None:
    """Refuse what is no factor, and the one that changes nothing.

    Raises:
        InputError: says what was expected.
    """
    if not (math.isfinite(alpha) and alpha > 0 and alpha != 1):
        raise InputError(f"alpha: expected a positive number other than 1, got {alpha!r}")


def _epsilon(objective: Objective, adapted: Callable[[float], Objective]) -> float:
    """The ε at which the outputs of `adapted(ε)` stay; 0 where they do not depend on it."""
    before = outputs_of(objective)
    without = outputs_of(adapted(0.0)) - before
    epsilon = 1e-3
    for _ in range(4):  # secant steps: how far the outputs move is nearly linear in ε
        gained = without - (outputs_of(adapted(epsilon)) - before)
        squared = float(jnp.vdot(gained, gained))
        if squared == 0:
            return 0.0
        epsilon *= float(jnp.vdot(without, gained)) / squared
    return epsilon


def _averages(objective: Objective, pair: Pair) -> tuple[str, str]:
    if pair.norm is None:
        return "", ""
    return average(objective, pair.norm, "mean"), average(objective, pair.norm, "var")


def _of_units(module: str | None, edit: Callable[[jax.Array], jax.Array]) -> Edits:
    """The same edit of everything that a layer or a normalisation holds for each of its units."""
    return {} if module is None else {f"{module}/{part}": edit for part in OF_UNITS}


def _times(factor: float) -> Callable[[jax.Array], jax.Array]:
    return lambda leaf: factor * leaf


def _roll(leaf: jax.Array) -> jax.Array:
    return jnp.roll(leaf, 1, axis=-1)


def _roll_inputs(kernel: jax.Array, units: int) -> jax.Array:
    """Rolled along the inputs; of a flattened image the channels run fastest."""
    split = kernel.reshape(*kernel.shape[:-2], -1, units, kernel.shape[-1])
    return jnp.roll(split, 1, axis=-2).reshape(kernel.shape)
