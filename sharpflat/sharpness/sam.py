"""One-step sharpness: the rise that sharpness-aware minimisation sees (SAM, and adaptive ASAM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import trees
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate, above_rounding
from sharpflat.sharpness.gradient_norms import scaled
from sharpflat.sharpness.subsets import needs_whole_chunks, subset_rows
from sharpflat.validation import Count, InputError, NonNegative, Positive


def loss_and_gradient(objective: Objective, key: jax.Array) -> tuple[jax.Array, Any]:
    """L(w) and its gradient at the objective's parameters; for `objective.shared`."""
    return objective.value_and_grad(objective.params)


def _subsets_fit(objective: Objective, arguments: Mapping[str, Any]) -> None:
    m = arguments["m"]
    if m is not None and m > objective.data.size:
        raise InputError(f"m: {m} is above the {objective.data.size} examples")
    if m is not None:
        needs_whole_chunks(objective, "m", m)


@metric(cost=lambda examples, arguments: 4 / 3, checks=(_subsets_fit,))
def sam_sharpness(
    objective: Objective, key: jax.Array, *, rho: Positive = 0.05, m: Count | None = None
) -> Estimate:
    """The rise of the loss one step of length ρ along its gradient: SAM's view of sharpness.

    L(w + ρ g / ‖g‖) − L(w), g = ∇L(w), in units of the loss; a first-order stand-in for the
    largest rise within distance ρ. With `m` it is m-sharpness: the mean over disjoint subsets B of
    m examples of the same with L_B.

    Args:
        objective: L, at its parameters w.
        key: not used.
        rho: ρ, the length of the step.
        m: examples a subset, as many whole ones as there are, in order; None for all examples
            together.

    Returns:
        `standard_error` is 0. `converged` is False where a gradient is exactly zero, so that no
        step was made and the rise is 0, where the loss's rounding may have moved a rise by more
        than 1 %, or the value is not finite: an exact minimum looks flat to this measure, and only
        `converged` says so. Details: `gradient_norm` and `losses` = L_B(w)
        a subset, `rises`.

    Raises:
        InputError: m above the number of examples; under batch norm by the chunk's statistics, a
            chunk that does not divide m.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 2 * jnp.sum(w**2), jnp.ones(1), (jnp.ones((1, 1)), jnp.ones(1)))
        >>> round(sf.measure(bowl, "sam_sharpness", rho=0.5).value, 4)  # 2 · 1.5² − 2
        2.5

    Source: Foret et al. (2021), equation (2), and m-sharpness in section 4.
    """
    return _estimate(_rises(objective, key, rho, None, m))


@metric(cost=lambda examples, arguments: 4 / 3, checks=(_subsets_fit,))
def asam_sharpness(
    objective: Objective,
    key: jax.Array,
    *,
    rho: Positive = 0.5,
    eta: NonNegative = 0.01,
    m: Count | None = None,
) -> Estimate:
    """The rise of the loss one step along its gradient, scaled by the weights: ASAM's view.

    L(w + ρ T² g / ‖T g‖) − L(w), g = ∇L(w), T = |w| + η element by element, in units of the loss:
    the first-order stand-in for the largest rise within ‖T⁻¹ δ‖ ≤ ρ, which does not change with a
    rescaling of weights where η is negligible. T scales every parameter, as in the paper; the
    authors' code leaves biases unscaled.

    Args:
        objective: L, at its parameters w.
        key: not used.
        rho: ρ, in units of the weights' own size; 0.5 for CIFAR-10 and 1 for CIFAR-100 there.
        eta: η, which keeps weights of zero from standing still.
        m: examples a subset, as many whole ones as there are, in order; None for all examples
            together.

    Returns:
        `standard_error` is 0. `converged` is False where T g is exactly zero, so that no step was
        made and the rise is 0, where the loss's rounding may have moved a rise by more than 1 %, or
        the value is not finite. Details: `gradient_norm` = ‖T g‖ and
        `losses` = L_B(w) a subset, `rises`.

    Raises:
        InputError: m above the number of examples; under batch norm by the chunk's statistics, a
            chunk that does not divide m.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 2 * jnp.sum(w**2), jnp.ones(1), (jnp.ones((1, 1)), jnp.ones(1)))
        >>> round(sf.measure(bowl, "asam_sharpness", eta=0).value, 4)  # 2 · 1.5² − 2
        2.5

    Source: Kwon et al. (2021), adaptive sharpness and its first-order step.
    """
    return _estimate(_rises(objective, key, rho, eta, m))


def _rises(
    objective: Objective, key: jax.Array, rho: float, eta: float | None, m: int | None
) -> tuple[jax.Array, ...]:
    """Rises, norms of (T) g and losses, a subset each."""
    if m is not None:
        count = objective.data.size // m
        return _subset_rises(objective, rho, eta, subset_rows(objective.data.size, count, m))
    loss, gradient = objective.shared(loss_and_gradient, key)
    return _one_rise(objective, rho, eta, loss, gradient)


@jax.jit
def _subset_rises(
    objective: Objective, rho: float, eta: float | None, rows: jax.Array
) -> tuple[jax.Array, ...]:
    def subset(row: jax.Array) -> tuple[jax.Array, ...]:
        part = objective.subset(row)
        return _one_rise(part, rho, eta, *part.value_and_grad(part.params))

    return jax.lax.map(subset, rows)


@jax.jit
def _one_rise(
    objective: Objective, rho: float, eta: float | None, loss: jax.Array, gradient: Any
) -> tuple[jax.Array, ...]:
    """L(w + ρ T² g / ‖T g‖) − L(w), ‖T g‖ and L(w); T = 1 without η."""
    params, toward, size = objective.params, gradient, None
    if eta is not None:
        size = jax.tree.map(lambda w: jnp.abs(w) + eta, params)
        toward = jax.tree.map(jnp.multiply, size, gradient)
    unit, largest = scaled(toward)
    length = trees.norm(unit)
    step = unit if size is None else jax.tree.map(jnp.multiply, size, unit)
    there = trees.add_scale(params, rho / jnp.where(length > 0, length, 1), step)
    return objective.loss(there) - loss, largest * length, loss


def _estimate(found: tuple[jax.Array, ...]) -> Estimate:
    rises, norms, losses = (np.atleast_1d(np.asarray(part, np.float64)) for part in found)
    seen = above_rounding(rises, losses, found[0].dtype).all()
    converged = bool((norms > 0).all() and seen and np.isfinite(rises).all())
    details = {"rises": rises, "gradient_norm": norms, "losses": losses}
    return Estimate(float(rises.mean()), 0.0, converged, details)
