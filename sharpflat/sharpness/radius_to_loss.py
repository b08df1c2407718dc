"""How far one can go along filter-normalised directions (Li et al. 2018) before the loss rises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import trees
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate, map_draws
from sharpflat.sharpness.crossing import Crossing, first_crossing
from sharpflat.validation import Count, InputError, Positive

START, EVALUATIONS = 0.1, 60
LOG_2 = math.log(2)


def filter_normalized_direction(key: jax.Array, params: Any) -> Any:
    """A Gaussian direction d with ‖d_f‖ = ‖w_f‖ for every filter f, and 0 outside filters.

    A filter is what leads to one output of a kernel: everything but the last axis, which is the
    output's in Flax. Arrays of fewer than two axes (biases, batch norm's scale and shift) are no
    kernels.

    Args:
        key: PRNG key.
        params: any pytree of arrays.

    Source: Li et al. (2018), section 4; biases and batch norm as in the authors' code.
    """
    noise = trees.random_like(key, params, sampler=jax.random.normal)
    return jax.tree.map(_normalized, noise, params)


def _normalized(direction: jax.Array, weights: jax.Array) -> jax.Array:
    if weights.ndim < 2:
        return jnp.zeros_like(weights)
    axes = tuple(range(weights.ndim - 1))
    wanted, length = (
        jnp.sqrt(jnp.sum(leaf**2, axis=axes, keepdims=True)) for leaf in (weights, direction)
    )
    return direction * (wanted / length)


def _has_kernels(objective: Objective, arguments: Mapping[str, Any]) -> None:
    if all(leaf.ndim < 2 for leaf in jax.tree.leaves(objective.params)):
        raise InputError("params: no array has two axes, so there is no filter to normalise by")


@metric(cost=lambda examples, arguments: 4 * arguments["directions"], checks=(_has_kernels,))
def radius_to_loss(
    objective: Objective,
    key: jax.Array,
    *,
    rise: Positive = LOG_2,
    directions: Count = 10,
    tolerance: Positive = 1 / 64,
    largest: Positive = 64.0,
) -> Estimate:
    """The mean distance along random filter-normalised directions at which the loss has risen.

    E_d min { t > 0 : L(w + t d) > L(w) + `rise` }, d Gaussian with ‖d_f‖ = ‖w_f‖ for every filter
    f (a kernel's last axis) and zero on biases and batch norm's parameters. t has no unit: at
    t = 1 every filter has moved by its own norm, so that a rescaling of weights that leaves the
    network's function alone leaves t alone. A rise of log 2 nats of cross-entropy, the default,
    halves the geometric mean of the labels' probabilities. Large is flat. The search doubles t
    from 0.1, or halves it, then bisects; doubling can jump over a first crossing, which
    `converged` does not see.

    Args:
        objective: L, at its parameters w.
        key: PRNG key of the directions.
        rise: in units of the loss.
        directions: independent draws of d.
        tolerance: relative width of t's bracket at the end.
        largest: where the search for t ends.

    Returns:
        `standard_error` is that of the mean over directions; None for one. `converged` if every
        search ended within `tolerance`; where the loss has not risen up to `largest`, or rises at
        once, the end of that search counts as its radius. Details: `samples` = t, `low` and
        `high`, `evaluations` a direction, and `direction_norm` = ‖d‖, the same for all.

    Raises:
        InputError: no array among the parameters has two axes.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 2 * jnp.sum((w - 1) ** 2), jnp.ones((2, 2)),
        ...     (jnp.ones((1, 1)), jnp.ones(1)))
        >>> spec = {"radius_to_loss": {"rise": 8.0, "tolerance": 1e-4}}
        >>> round(sf.measure(bowl, spec).value, 3)  # 2 t² ‖w‖² = 8
        1.0

    Source: directions after Li et al. (2018), section 4; the radius is this library's reading.
    """
    found, norms = map_draws(_radius, objective, key, directions, rise, tolerance, largest)
    estimate = Estimate.from_samples(
        found.scale,
        low=np.asarray(found.low),
        high=np.asarray(found.high),
        evaluations=np.asarray(found.evaluations),
        direction_norm=np.asarray(norms[0]),
    )
    return estimate._replace(converged=bool(found.within(tolerance).all()))


def _radius(
    objective: Objective, key: jax.Array, rise: jax.Array, tolerance: jax.Array, largest: jax.Array
) -> tuple[Crossing, jax.Array]:
    """The bracket of t along one direction d, and ‖d‖."""
    direction = filter_normalized_direction(key, objective.params)
    threshold = objective.loss(objective.params) + rise

    def passed(distance: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        there = trees.add_scale(objective.params, distance, direction)
        return ~(objective.loss(there) <= threshold), state

    start = jnp.full_like(threshold, START)
    found = first_crossing(passed, start, tolerance, EVALUATIONS, largest=largest)
    return found, trees.norm(direction)
