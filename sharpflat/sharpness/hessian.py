"""Eigenvalues of the loss's Hessian."""

from __future__ import annotations

from typing import Any

import jax

from sharpflat import trees
from sharpflat.curvature.lanczos import top_eigenpairs
from sharpflat.objective import Objective
from sharpflat.registry import Count, InputError, Positive, metric
from sharpflat.sharpness.base import Estimate


@metric
def hessian_top_eigenvalues(
    objective: Objective,
    key: jax.Array,
    *,
    k: Count = 1,
    tolerance: Positive = 1e-3,
    max_steps: Count = 200,
) -> Estimate:
    """The k algebraically largest eigenvalues of H = ∇²L; the value is the largest, λmax.

    Lanczos (1950) with full reorthogonalisation on Hessian–vector products over all examples and
    all parameters, in rounds that grow until every pair satisfies ‖Hv − λv‖ / |λ| ≤ `tolerance`.
    Some eigenvalue then lies within `tolerance` × |λ| of each λ; an eigenvalue of exactly zero
    cannot be certified so, and ends unconverged. Units: loss per squared parameter.

    Args:
        objective: where to measure.
        key: PRNG key of the start vectors.
        k: how many.
        tolerance: of the relative residual.
        max_steps: Lanczos steps of a round, at most; memory is that many times the parameters'.

    Returns:
        `standard_error` is ‖Hv − λv‖ of the value, which bounds its distance to an eigenvalue.
        `converged` if every residual holds. Details: `eigenvalues`, `residuals` `[k]`, `products`
        (each costs about two gradients), `parameters`.

    Raises:
        InputError: k above the number of parameters.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> h, data = jnp.array([3.0, 2.0, 1.0]), (jnp.ones((1, 1)), jnp.ones(1))
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 0.5 * jnp.sum(h * w**2), jnp.zeros(3), data)
        >>> sf.measure(bowl, "hessian_top_eigenvalues", k=2).details["eigenvalues"].round(4)
        array([3., 2.])
    """
    size = trees.size(objective.params)
    if k > size:
        raise InputError(f"hessian_top_eigenvalues.k: {k} is above the {size} parameters")
    pairs = top_eigenpairs(_hessian, objective, key, k, tolerance=tolerance, max_steps=max_steps)
    converged = len(pairs.values) == k and bool((pairs.residuals <= tolerance).all())
    details = {
        "eigenvalues": pairs.values,
        "residuals": pairs.residuals,
        "products": pairs.products,
        "parameters": size,
    }
    bound = float(pairs.residuals[0] * abs(pairs.values[0])) if converged else None
    return Estimate(float(pairs.values[0]), bound, converged, details)


def _hessian(objective: Objective, params: Any) -> Any:
    return objective.linearize_hvp(params)
