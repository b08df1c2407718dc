"""Extreme eigenvalues of the loss's Hessian and of its Gauss–Newton part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sharpflat import trees
from sharpflat.curvature.krylov import Krylov, gauss_newton, hessian, shared_space
from sharpflat.curvature.lanczos import RISK, eigenpairs, outermost_eigenvalue
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate, needs_outputs, selects_parameters
from sharpflat.validation import Count, Positive


def _cost(examples: int, arguments: Mapping[str, Any]) -> float:
    """Sixteen steps for the first pair and about eight for each further one."""
    return 2 * (8 + 8 * arguments.get("k", 1))


def _bottom_cost(examples: int, arguments: Mapping[str, Any]) -> float:
    return 2 * 100


@metric(cost=_cost, checks=(selects_parameters,))
def hessian_top_eigenvalues(
    objective: Objective,
    key: jax.Array,
    *,
    k: Count = 1,
    tolerance: Positive = 1e-3,
    max_steps: Count = 200,
    parameters: str = "*",
) -> Estimate:
    """The k algebraically largest eigenvalues of H = ∇²L; the value is the largest, λmax.

    Lanczos (1950) with full reorthogonalisation on Hessian–vector products over all examples and
    all parameters, until λ has both halves of a certificate. Its residual r = ‖Hv − λv‖ is at most
    `tolerance` × |λ|, so that an eigenvalue lies within r of λ; and with a probability of at most
    1 % over starts one beyond λ + `tolerance` × |λ| was missed, which the Lanczos polynomial tells
    without further products. For k > 1 the first is asked of every pair, with r from products of
    its own, the second of the k-th in a round from another start, so that multiple eigenvalues are
    found as often as they are there. An eigenvalue of exactly zero among others cannot be certified
    so, and ends unconverged. Units: loss per squared parameter.

    Args:
        objective: where to measure.
        key: PRNG key of the start vectors.
        k: how many.
        tolerance: relative, of the residual and of what may lie further out.
        max_steps: Lanczos steps of a round, at most; memory is that many times the parameters'.
        parameters: pattern of the parameters' names, as `Dense_0/*`: H is their block, the others
            are held fixed.

    Returns:
        `converged` where the certificate holds; `standard_error` is 0 then, for the value lies
        within `tolerance` of λmax with 99 % confidence, and else None. Details: `eigenvalues`,
        `residuals` r / |λ| `[k]`, `missed` (the probability of the second half, at most),
        `products` (each costs about two gradients), `parameters` (their number).

    Raises:
        InputError: k above the number of parameters, a pattern that fits none.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> h, data = jnp.array([3.0, 2.0, 1.0]), (jnp.ones((1, 1)), jnp.ones(1))
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 0.5 * jnp.sum(h * w**2), jnp.zeros(3), data)
        >>> sf.measure(bowl, "hessian_top_eigenvalues", k=2).details["eigenvalues"].round(4)
        array([3., 2.])

    Source: Lanczos (1950); van Dorsselaer, Hochstenbach and van der Vorst (2000) for `missed`; λmax
    as a sharpness: LeCun et al. (1992), Keskar et al. (2017), section 2.2.2.
    """
    space = shared_space(hessian, objective, key, parameters)
    return outermost(space, key, k, tolerance, max_steps)


@metric(cost=_bottom_cost, checks=(selects_parameters,))
def hessian_bottom_eigenvalue(
    objective: Objective,
    key: jax.Array,
    *,
    tolerance: Positive = 1e-2,
    max_steps: Count = 200,
    parameters: str = "*",
) -> Estimate:
    """The algebraically smallest eigenvalue λmin of H = ∇²L: negative away from a minimum.

    From the same Krylov space as `hessian_top_eigenvalues`, grown until the same certificate holds
    for λmin: with 99 % confidence it is within `tolerance`. Near a minimum of a network λmin is
    small beside λmax and its neighbours are dense: hence the wider `tolerance`, and even so it may
    take more than `max_steps`, and end unconverged. Units: loss per squared parameter.

    Args:
        objective: where to measure.
        key: PRNG key of the start vector.
        tolerance: relative, of the residual and of what may lie further out.
        max_steps: Lanczos steps at most.
        parameters: pattern of the parameters' names; the others are held fixed.

    Returns:
        As `hessian_top_eigenvalues` with k = 1.

    Raises:
        InputError: a pattern that fits no parameter.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> h, data = jnp.array([3.0, 2.0, -1.0]), (jnp.ones((1, 1)), jnp.ones(1))
        >>> saddle = sf.Objective.from_function(
        ...     lambda w, batch: 0.5 * jnp.sum(h * w**2), jnp.zeros(3), data)
        >>> round(sf.measure(saddle, "hessian_bottom_eigenvalue").value, 4)
        -1.0

    Source: Lanczos (1950); Sagun et al. (2016) for its meaning.
    """
    space = shared_space(hessian, objective, key, parameters)
    return outermost(space, key, 1, tolerance, max_steps, sign=-1.0)


@metric(cost=_cost, checks=(needs_outputs, selects_parameters))
def ggn_top_eigenvalues(
    objective: Objective,
    key: jax.Array,
    *,
    k: Count = 1,
    tolerance: Positive = 1e-3,
    max_steps: Count = 200,
    parameters: str = "*",
) -> Estimate:
    """The k largest eigenvalues of the Gauss–Newton matrix G = (1/n) Σ J_iᵀ ∇²ℓ_i J_i.

    G is H without the curvature of the network itself: positive semidefinite for a convex loss,
    equal to the Fisher information for cross-entropy, and equal to H where every residual is zero.
    Same method and certificate as `hessian_top_eigenvalues`. Units: loss per squared parameter.

    Args:
        objective: where to measure.
        key: PRNG key of the start vectors.
        k: how many.
        tolerance: relative, of the residual and of what may lie further out.
        max_steps: Lanczos steps of a round, at most.
        parameters: pattern of the parameters' names; the others are held fixed.

    Returns:
        As `hessian_top_eigenvalues`.

    Raises:
        InputError: an objective without outputs, k above the number of parameters, a pattern that
            fits none.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> line = sf.Model.from_functions(lambda key, x: jnp.zeros((2, 1)), lambda w, x: x @ w)
        >>> data = jnp.array([[3.0, 0.0], [0.0, 1.0]]), jnp.zeros((2, 1))
        >>> fit = sf.Objective.from_model(line, jnp.zeros((2, 1)), {}, data, loss="squared_error")
        >>> round(sf.measure(fit, "ggn_top_eigenvalues").value, 4)  # of XᵀX / n
        4.5

    Source: Schraudolph (2002); Martens (2020), section 8.
    """
    space = shared_space(gauss_newton, objective, key, parameters)
    return outermost(space, key, k, tolerance, max_steps)


def outermost(
    space: Krylov, key: jax.Array, k: int, tolerance: float, max_steps: int, sign: float = 1.0
) -> Estimate:
    """The estimate of the outermost eigenvalue of a space's operator, k of them in its details."""
    if k == 1:
        one = outermost_eigenvalue(space, tolerance=tolerance, max_steps=max_steps, sign=sign)
        values, residuals = np.array([one.value]), np.array([one.residual])
        missed, products = one.missed, one.products
    else:
        pairs = eigenpairs(space, key, k, tolerance=tolerance, max_steps=max_steps, sign=sign)
        values, missed, products = pairs.values, pairs.missed, pairs.products
        sizes = np.where(pairs.residuals > 0, np.abs(values), 1.0)
        residuals = pairs.residuals / np.maximum(sizes, np.finfo(np.float64).tiny)
    converged = len(values) == k and bool(max(residuals) <= tolerance) and missed <= RISK
    details = {
        "eigenvalues": values, "residuals": residuals, "missed": np.float64(missed),
        "products": np.int64(products), "parameters": np.int64(trees.size(space.objective.params)),
    }  # fmt: skip
    return Estimate(float(values[0]), 0.0 if converged else None, converged, details)
