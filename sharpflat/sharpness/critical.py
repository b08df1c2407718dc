"""Critical and directional sharpness (2601.16979): curvature along the step that training takes."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import trees
from sharpflat.objective import Objective
from sharpflat.registry import Count, Positive, metric
from sharpflat.sharpness.base import Estimate
from sharpflat.sharpness.crossing import Crossing, first_crossing
from sharpflat.sharpness.sam import loss_and_gradient

START = 0.1
ROUNDINGS = 8


@metric(cost=lambda examples, arguments: 1 + min(arguments["evaluations"], 12) / 3)
def critical_sharpness(
    objective: Objective,
    key: jax.Array,
    *,
    tolerance: Positive = 1 / 16,
    evaluations: Count = 60,
) -> Estimate:
    """2 / η_c, with η_c the learning rate at which a gradient step stops lowering the loss.

    λ_c = 2 / η_c, η_c = min { η > 0 : L(w − η g) > L(w) }, g = ∇L(w), by forward passes only; in
    units of loss per squared parameter. On a quadratic it is gᵀHg / gᵀg, the curvature along g.
    From η = 0.1 the step is doubled or halved until the loss turns, then bisected; doubling can
    jump over the first crossing, so that η_c is then too large and λ_c too small. The source takes
    the direction of an optimizer's update; this one is gradient descent's.

    Args:
        objective: L, at its parameters w.
        key: not used.
        tolerance: relative width of the bracket of η_c at the end; the value is at most half of
            it from either end.
        evaluations: of the loss, at most.

    Returns:
        `standard_error` is 0. `converged` if the bracket is within `tolerance` and the loss's
        rounding cannot have moved it: `tolerance` · gᵀg η_c is above 8 units of rounding of L(w).
        False where the gradient is exactly zero (the value is then NaN), and where the loss never
        rises again, or rises at once, over the scales tried (the value is then that of the last).
        Details: `low` and `high` of η_c, `evaluations`, `gradient_norm`.

    Raises:
        InputError: never for itself.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 1.5 * jnp.sum(w**2), jnp.ones(3), (jnp.ones((1, 1)), jnp.ones(1)))
        >>> round(sf.measure(bowl, "critical_sharpness", tolerance=1e-4).value, 3)
        3.0

    Source: arXiv 2601.16979, λ_c = 2 / η_c, with its bisection to 1/16.
    """
    loss, gradient = objective.shared(loss_and_gradient, key)
    found, norm = _critical_step(objective, loss, gradient, tolerance, evaluations)
    low, high, norm, scale = (float(part) for part in (found.low, found.high, norm, found.scale))
    value = 2 / scale if norm > 0 else math.nan
    rounding = ROUNDINGS * float(jnp.finfo(loss.dtype).eps) * abs(float(loss))
    seen = tolerance * norm**2 * scale > rounding
    converged = bool(norm > 0 and found.within(tolerance) and seen)
    details = {"low": low, "high": high, "gradient_norm": norm}
    counted = {"evaluations": np.asarray(found.evaluations)}
    return Estimate(value, 0.0, converged, {**_arrays(details), **counted})


@metric(cost=lambda examples, arguments: 3)
def directional_sharpness(objective: Objective, key: jax.Array) -> Estimate:
    """The curvature of the loss along its gradient.

    gᵀHg / gᵀg, g = ∇L(w), H = ∇²L(w): the source's ΔᵀHΔ / Δᵀg for Δ = g, in units of loss per
    squared parameter. A gradient step of 2 over it leaves a quadratic's loss as it is.

    Args:
        objective: L, at its parameters w.
        key: not used.

    Returns:
        `standard_error` is 0. `converged` if the value is finite; where the gradient is exactly
        zero it is NaN. Details: `gradient_norm`, `loss`.

    Raises:
        InputError: never for itself.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 1.5 * jnp.sum(w**2), jnp.ones(3), (jnp.ones((1, 1)), jnp.ones(1)))
        >>> round(sf.measure(bowl, "directional_sharpness").value, 4)
        3.0

    Source: arXiv 2601.16979, directional sharpness.
    """
    loss, gradient = objective.shared(loss_and_gradient, key)
    curvature, norm = (float(part) for part in _along(objective, gradient))
    details = _arrays({"gradient_norm": norm, "loss": float(loss)})
    return Estimate(curvature, 0.0, math.isfinite(curvature), details)


@jax.jit
def _critical_step(
    objective: Objective, loss: jax.Array, gradient: Any, tolerance: float, limit: int
) -> tuple[Crossing, jax.Array]:
    """The bracket of η_c, and ‖g‖."""

    def passed(rate: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        there = objective.loss(trees.add_scale(objective.params, -rate, gradient))
        return ~(there <= loss), state

    start = jnp.full_like(loss, START)
    norm = trees.norm(gradient)
    # Along a gradient of zero there is nothing to look for.
    return first_crossing(passed, start, tolerance, jnp.where(norm > 0, limit, 0)), norm


@jax.jit
def _along(objective: Objective, gradient: Any) -> tuple[jax.Array, jax.Array]:
    """gᵀHg / gᵀg through the unit vector, whose square does not underflow; and ‖g‖."""
    norm = trees.norm(gradient)
    unit = trees.scale(1 / norm, gradient)
    return trees.vdot(unit, objective.hvp(objective.params, unit)), norm


def _arrays(numbers: dict[str, float]) -> dict[str, Any]:
    return {name: np.float64(number) for name, number in numbers.items()}
