"""Critical and directional sharpness (2601.16979): curvature along the step that training takes."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import trees
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate, above_rounding
from sharpflat.sharpness.crossing import Crossing, first_crossing
from sharpflat.sharpness.gradient_norms import scaled
from sharpflat.sharpness.sam import loss_and_gradient
from sharpflat.validation import Count, Positive

START = 0.1
Direction = Literal["gradient", "sign"]


class Descent(NamedTuple):
    """A direction Δ = `size` · `step`, down which to go, beside the gradient `largest` · u.

    `step` and u have a largest magnitude of 1, so that squares stay in range; zero for g = 0.
    """

    step: Any
    size: jax.Array
    largest: jax.Array
    slope: jax.Array
    """`step` · u."""
    gradient_norm: jax.Array

    def total_slope(self) -> float:
        """Δᵀg, in double precision."""
        return float(self.size) * float(self.largest) * float(self.slope)


@metric(cost=lambda examples, arguments: 1 + min(arguments["evaluations"], 12) / 3)
def critical_sharpness(
    objective: Objective,
    key: jax.Array,
    *,
    direction: Direction = "gradient",
    tolerance: Positive = 1 / 16,
    evaluations: Count = 60,
) -> Estimate:
    """2 / η_c, with η_c the learning rate at which a step stops lowering the loss.

    λ_c = 2 / η_c, η_c = min { η > 0 : L(w − η Δ) > L(w) }, by forward passes only, with Δ = g, the
    gradient ∇L(w), or its sign; in units of one over the learning rate, which for Δ = g is loss
    per squared parameter. On a quadratic it is ΔᵀHΔ / Δᵀg, for Δ = g the curvature along g. From
    η = 0.1 the step is doubled or halved until the loss turns, then bisected; doubling can jump
    over the first crossing, so that η_c is then too large and λ_c too small. The source takes the
    direction of an optimizer's update: these are gradient descent's, and that of sign descent,
    which is Adam's without its memory.

    Args:
        objective: L, at its parameters w.
        key: not used.
        direction: Δ, `gradient` or `sign`.
        tolerance: relative width of the bracket of η_c at the end; the value is at most half of
            it from either end.
        evaluations: of the loss, at most.

    Returns:
        `standard_error` is 0. `converged` if the bracket is within `tolerance` and the loss's
        rounding cannot have moved it: 8 units of rounding of L(w) are at most `tolerance` · Δᵀg
        η_c. It is of a crossing: one at a smaller η that was jumped over is not seen. False where
        the gradient is exactly zero (the value is then NaN), and where the loss never rises again,
        or rises at once, over the scales tried (the value is then that of the last). Details: `low`
        and `high` of η_c, `evaluations`, `gradient_norm`, `slope` = Δᵀg.

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
    found, descent = _critical_step(objective, loss, gradient, direction, tolerance, evaluations)
    low, high, norm, scale = (
        float(part) for part in (found.low, found.high, descent.gradient_norm, found.scale)
    )
    value = 2 / scale if norm > 0 else math.nan
    slope = descent.total_slope()
    seen = above_rounding(slope * scale, float(loss), loss.dtype, tolerance)
    converged = bool(norm > 0 and found.within(tolerance) and seen)
    details = {"low": low, "high": high, "gradient_norm": norm, "slope": slope}
    counted = {"evaluations": np.asarray(found.evaluations)}
    return Estimate(value, 0.0, converged, {**_arrays(details), **counted})


@metric(cost=lambda examples, arguments: 3)
def directional_sharpness(
    objective: Objective, key: jax.Array, *, direction: Direction = "gradient"
) -> Estimate:
    """The curvature of the loss along its gradient, or along the gradient's sign.

    ΔᵀHΔ / Δᵀg, g = ∇L(w), H = ∇²L(w), with Δ = g or its sign; in units of one over a learning
    rate, which for Δ = g is loss per squared parameter. A step of 2 over it along −Δ leaves a
    quadratic's loss as it is.

    Args:
        objective: L, at its parameters w.
        key: not used.
        direction: Δ, `gradient` or `sign`.

    Returns:
        `standard_error` is 0. `converged` if the value is finite; where the gradient is exactly
        zero it is NaN. Details: `gradient_norm`, `loss`, `slope` = Δᵀg.

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
    curvature, descent = _along(objective, gradient, direction)
    details = _arrays(
        {
            "gradient_norm": float(descent.gradient_norm),
            "loss": float(loss),
            "slope": descent.total_slope(),
        }
    )
    return Estimate(float(curvature), 0.0, math.isfinite(curvature), details)


def _descent(gradient: Any, direction: Direction) -> Descent:
    unit, largest = scaled(gradient)
    signs = direction == "sign"
    step = jax.tree.map(jnp.sign, unit) if signs else unit
    size = jnp.ones_like(largest) if signs else largest
    return Descent(step, size, largest, trees.vdot(step, unit), largest * trees.norm(unit))


@functools.partial(jax.jit, static_argnames="direction")
def _critical_step(
    objective: Objective,
    loss: jax.Array,
    gradient: Any,
    direction: Direction,
    tolerance: float,
    limit: int,
) -> tuple[Crossing, Descent]:
    """The bracket of η_c, and Δ."""
    descent = _descent(gradient, direction)

    def passed(rate: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        moved = trees.add_scale(objective.params, -rate * descent.size, descent.step)
        return ~(objective.loss(moved) <= loss), state

    start = jnp.full_like(loss, START)
    # Along a gradient of zero there is nothing to look for.
    allowed = jnp.where(descent.largest > 0, limit, 0)
    return first_crossing(passed, start, tolerance, allowed), descent


@functools.partial(jax.jit, static_argnames="direction")
def _along(objective: Objective, gradient: Any, direction: Direction) -> tuple[jax.Array, Descent]:
    """ΔᵀHΔ / Δᵀg, and Δ."""
    descent = _descent(gradient, direction)
    product = trees.vdot(descent.step, objective.hvp(objective.params, descent.step))
    return product / descent.slope * (descent.size / descent.largest), descent


def _arrays(numbers: dict[str, float]) -> dict[str, Any]:
    return {name: np.float64(number) for name, number in numbers.items()}
