"""Sharpness as an adaptive optimizer sees it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpflat.curvature.krylov import Krylov, hessian
from sharpflat.objective import Objective
from sharpflat.registry import Count, Fraction, InputError, Positive, metric
from sharpflat.sharpness.base import Estimate, selects_parameters
from sharpflat.sharpness.hessian import outermost


@metric(cost=lambda n, a: 2.0 * 25, checks=(selects_parameters,))
def preconditioned_sharpness(
    objective: Objective,
    key: jax.Array,
    *,
    opt_state: Any,
    b2: Fraction = 0.999,
    epsilon: Positive = 1e-8,
    tolerance: Positive = 1e-3,
    max_steps: Count = 200,
    parameters: str = "*",
) -> Estimate:
    """The largest eigenvalue of P^{−1/2} H P^{−1/2}, P the optimizer's diagonal preconditioner.

    P = diag(√(ν / (1 − β₂ᵗ)) + ε) for Adam and its kin, √(ν + ε) for RMSProp, √(Σ g² + ε) for
    AdaGrad, from the state that Optax keeps. Adam with learning rate η is stable up to
    (2 + 2β₁) / ((1 − β₁) η), 38 / η at β₁ = 0.9. Units: loss per squared parameter, over P's.

    Args:
        objective: where to measure.
        key: PRNG key of the start vector.
        opt_state: the optimizer's state at these parameters.
        b2: β₂ of Adam, for its bias correction; as the optimizer was given it.
        epsilon: ε, likewise.
        tolerance: of the relative error.
        max_steps: Lanczos steps at most.
        parameters: pattern of the parameters' names; the others are held fixed.

    Returns:
        As `hessian_top_eigenvalues` with k = 1.

    Raises:
        InputError: a state without second moments, or of other parameters; a pattern that fits no
            parameter.

    Example:
        >>> import jax.numpy as jnp, optax, sharpflat as sf
        >>> h, data = jnp.array([3.0, 2.0]), (jnp.ones((1, 1)), jnp.ones(1))
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 0.5 * jnp.sum(h * w**2), jnp.zeros(2), data)
        >>> state = optax.ScaleByRssState(sum_of_squares=jnp.array([4.0, 1.0]))
        >>> round(sf.measure(bowl, "preconditioned_sharpness", opt_state=state).value, 3)
        2.0

    Source: Cohen et al. (2022), section 2.
    """
    whole = _inverse_root(opt_state, objective.params, b2, epsilon)
    part = objective.restrict(parameters)
    scale = jax.tree.map(
        lambda free, root: None if free is None else root,
        part.params, whole, is_leaf=lambda leaf: leaf is None,
    )  # fmt: skip

    def operator(objective: Objective) -> Partial:
        return Partial(_scaled, hessian(objective), scale)

    return outermost(Krylov(operator, part, key), key, 1, tolerance, max_steps)


def _scaled(product: Any, scale: Any, vector: Any) -> Any:
    image = product(jax.tree.map(jnp.multiply, scale, vector))
    return jax.tree.map(jnp.multiply, scale, image)


def _inverse_root(opt_state: Any, params: Any, b2: float, epsilon: float) -> Any:
    """P^{−1/2}, a tree like the parameters."""
    states = jax.tree.leaves(opt_state, is_leaf=_has_moments)
    found = next((state for state in states if _has_moments(state)), None)
    if found is None:
        raise InputError(
            "preconditioned_sharpness: opt_state holds no second moments; those of adam, adamw, "
            "rmsprop and adagrad do"
        )
    moments = found.nu if hasattr(found, "nu") else found.sum_of_squares
    if jax.tree.map(jnp.shape, moments) != jax.tree.map(jnp.shape, params):
        raise InputError("preconditioned_sharpness: opt_state is of other parameters than these")
    if hasattr(found, "mu"):
        correction = 1 - b2 ** jnp.maximum(found.count, 1)
        return jax.tree.map(lambda nu: (jnp.sqrt(nu / correction) + epsilon) ** -0.5, moments)
    return jax.tree.map(lambda nu: (nu + epsilon) ** -0.25, moments)


def _has_moments(state: Any) -> bool:
    return hasattr(state, "nu") or hasattr(state, "sum_of_squares")
