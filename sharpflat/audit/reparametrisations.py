"""Changes of a network's parameters that keep its function, and the rescaling of its logits.

Which layers follow one another is read off the forward pass, and believed only where the outputs
on the data confirm that the function stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sharpflat.audit.layers import Edits, Pair, average, edited, kernels, pairs
from sharpflat.objective import Objective
from sharpflat.registry import InputError, closest

TOLERANCE = 1e-4
"""Of the outputs' relative change: rounding is below it, a wrong guess at the layers above."""

EPSILON_TOLERANCE = 1e-2
"""The same for `batch_norm_scale`, where batch norm's ε cannot always be made up for."""

OF_UNITS = ("kernel", "scale", "bias")


@dataclass(frozen=True)
class Change:
    """An objective whose parameters were changed, and what that did to its outputs.

    Attributes:
        name: of the kind of change.
        layers: the modules that were changed.
        objective: the changed one, on the same data.
        deviation: ‖f' − f‖ / ‖f‖, f the outputs on all examples before and f' after.
        preserves: whether the function is meant to stay (all kinds but `logit_rescaling`).
    """

    name: str
    layers: tuple[str, ...]
    objective: Objective
    deviation: float
    preserves: bool = True


def relu_rescaling(objective: Objective, *, alpha: float = 4.0, layer: str | None = None) -> Change:
    """A layer's kernel and bias times α, the next layer's kernel divided by α.

    Where a normalisation follows the layer, its scale and bias are multiplied instead of the
    layer's. The function stays where what lies between is positively homogeneous, as ReLU and
    pooling are; to the last bit where α is a power of two.

    Args:
        objective: of a network whose parameters are named as Flax's, `Dense_0/kernel`.
        alpha: α, positive and not 1.
        layer: the first of the two layers, as `Dense_0`; None for the first that will do.

    Raises:
        InputError: no network, or no layers where the outputs on the data stay (to 1e-4).

    Source: Dinh et al. (2017), section 3.
    """
    check_alpha(alpha)

    def change(pair: Pair) -> Objective:
        grown = _of_units(pair.norm or pair.first, _times(alpha))
        return edited(objective, {**grown, f"{pair.second}/kernel": _times(1 / alpha)})

    return _first_that_keeps("relu_rescaling", objective, pairs(objective), change, layer)


def batch_norm_scale(
    objective: Objective, *, alpha: float = 4.0, layer: str | None = None
) -> Change:
    """The kernel and bias before a normalisation times α, its running averages adapted.

    The mean becomes α mean and the variance α² var + (α² − 1) ε, so that √(var + ε), which divides,
    grows by just α. ε is not among the parameters: it is found as the number that leaves the
    outputs where they are. Under `batch` and `recalibrated` the statistics are the data's own and
    ε cannot be made up for: the outputs move a little, by `deviation`.

    Args:
        objective: of a network whose parameters are named as Flax's.
        alpha: α, positive and not 1.
        layer: the layer before the normalisation; None for the first that will do.

    Raises:
        InputError: no network, or no normalised layer where the outputs on the data stay (to 1e-2).
    """
    check_alpha(alpha)
    normalised = [pair for pair in pairs(objective) if pair.norm is not None]

    def change(pair: Pair) -> Objective:
        grown = edited(objective, _of_units(pair.first, _times(alpha)))
        mean, var = _averages(objective, pair)

        def adapted(epsilon: float) -> Objective:
            shift = (alpha**2 - 1) * epsilon
            return edited(grown, {}, {mean: _times(alpha), var: lambda v: alpha**2 * v + shift})

        return adapted(_epsilon(objective, adapted))

    return _first_that_keeps(
        "batch_norm_scale", objective, normalised, change, layer, EPSILON_TOLERANCE
    )


def permuted_units(objective: Objective, *, layer: str | None = None) -> Change:
    """Each unit of a hidden layer takes its neighbour's place, and the last the first's.

    With it go its column of the kernel, its bias, its normalisation and averages, and its inputs
    to the next layer.

    Args:
        objective: of a network whose parameters are named as Flax's.
        layer: which; None for the first that will do.

    Raises:
        InputError: no network, or no layer of several units where the outputs on the data stay
            (to 1e-4).
    """
    several = [pair for pair in pairs(objective) if pair.units > 1]

    def change(pair: Pair) -> Objective:
        params = {**_of_units(pair.first, _roll), **_of_units(pair.norm, _roll)}
        params[f"{pair.second}/kernel"] = lambda kernel: _roll_inputs(kernel, pair.units)
        return edited(objective, params, dict.fromkeys(_averages(objective, pair), _roll))

    return _first_that_keeps("permuted_units", objective, several, change, layer)


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
    before, after = _outputs(objective), _outputs(changed)
    if not _relative(after, alpha * before) <= TOLERANCE:
        raise InputError(f"logit_rescaling: the outputs do not grow with the last layer, {last!r}")
    return Change("logit_rescaling", (last,), changed, _relative(after, before), preserves=False)


def check_alpha(alpha: float) -> None:
    """Refuse what is no factor, and the one that changes nothing.

    Raises:
        InputError: says what was expected.
    """
    if not (math.isfinite(alpha) and alpha > 0 and alpha != 1):
        raise InputError(f"alpha: expected a positive number other than 1, got {alpha!r}")


def _first_that_keeps(
    name: str,
    objective: Objective,
    candidates: Sequence[Pair],
    change: Callable[[Pair], Objective],
    layer: str | None,
    tolerance: float = TOLERANCE,
) -> Change:
    """The change at the first pair where it leaves the outputs where they are."""
    if layer is not None:
        known = [pair.first for pair in candidates]
        if layer not in known:
            raise InputError(
                f"{name}: no layer that fits is called {layer!r}{closest(layer, known)}"
            )
        candidates = [pair for pair in candidates if pair.first == layer]
    before, deviations = _outputs(objective), []
    for pair in candidates:
        changed = change(pair)
        deviations.append(_relative(_outputs(changed), before))
        if deviations[-1] <= tolerance:
            layers = tuple(filter(None, (pair.first, pair.norm, pair.second)))
            return Change(name, layers, changed, deviations[-1])
    if not deviations:
        raise InputError(f"{name}: the network has no layers that fit")
    least = min(deviations)
    raise InputError(f"{name}: moves the outputs, by {least:.2g} of their size where it does least")


def _epsilon(objective: Objective, adapted: Callable[[float], Objective]) -> float:
    """The ε at which the outputs of `adapted(ε)` stay; 0 where they do not depend on it."""
    before = _outputs(objective)
    without = _outputs(adapted(0.0)) - before
    epsilon = 1e-3
    for _ in range(4):  # secant steps: how far the outputs move is nearly linear in ε
        gained = without - (_outputs(adapted(epsilon)) - before)
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


def _outputs(objective: Objective) -> jax.Array:
    return objective.outputs(objective.params)


def _relative(after: jax.Array, before: jax.Array) -> float:
    return float(jnp.linalg.norm((after - before).ravel()) / jnp.linalg.norm(before.ravel()))
