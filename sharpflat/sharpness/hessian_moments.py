"""Trace and Frobenius norm of the Hessian and of its Gauss–Newton part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sharpflat.curvature.krylov import Krylov, Operator, gauss_newton, hessian, shared_space
from sharpflat.curvature.moments import Moments, moments
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate, needs_outputs, selects_parameters
from sharpflat.validation import Count, NaturalNumber


def _cost(examples: int, arguments: Mapping[str, Any]) -> float:
    return 2 * (arguments["steps"] + arguments["probes"])


@metric(cost=_cost, checks=(selects_parameters,))
def hessian_trace(
    objective: Objective,
    key: jax.Array,
    *,
    probes: Count = 30,
    steps: NaturalNumber = 20,
    parameters: str = "*",
) -> Estimate:
    """The trace of H = ∇²L: the sum of all its eigenvalues.

    tr H = tr(QᵀHQ) + E[vᵀPHPv], Q a Krylov basis of `steps` vectors in which the outliers of the
    spectrum lie, P = I − QQᵀ, v a vector of independent signs: Hutch++ with Lanczos for its sketch,
    which the other measures of H share. Units: loss per squared parameter.

    Args:
        objective: where to measure.
        key: PRNG key of Q's start and of the probes.
        probes: v's.
        steps: dimension of Q; 0 is Hutchinson's estimator.
        parameters: pattern of the parameters' names: the trace of their block.

    Returns:
        `standard_error` over probes (0 where Q is the whole space). `converged` unless there is
        but one probe. Details: `known` (the part from Q), `samples` (vᵀPHPv), `products`.

    Raises:
        InputError: a pattern that fits no parameter.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> h, data = jnp.array([3.0, 2.0, -1.0]), (jnp.ones((1, 1)), jnp.ones(1))
        >>> saddle = sf.Objective.from_function(
        ...     lambda w, batch: 0.5 * jnp.sum(h * w**2), jnp.zeros(3), data)
        >>> round(sf.measure(saddle, "hessian_trace").value, 4)
        4.0

    Source: Meyer, Musco, Musco and Woodruff (2021), algorithm 1; Chen and Hallman (2022).
    """
    return _trace(hessian, objective, key, steps, probes, parameters)


@metric(cost=_cost, checks=(needs_outputs, selects_parameters))
def ggn_trace(
    objective: Objective,
    key: jax.Array,
    *,
    probes: Count = 30,
    steps: NaturalNumber = 20,
    parameters: str = "*",
) -> Estimate:
    """The trace of the Gauss–Newton matrix G = (1/n) Σ J_iᵀ ∇²ℓ_i J_i.

    For cross-entropy it equals the trace of the true Fisher information, and that of H where the
    network fits every example. Method as `hessian_trace`. Units: loss per squared parameter.

    Args:
        objective: where to measure.
        key: PRNG key.
        probes: v's.
        steps: dimension of Q.
        parameters: pattern of the parameters' names: the trace of their block.

    Returns:
        As `hessian_trace`.

    Raises:
        InputError: an objective without outputs, a pattern that fits no parameter.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> line = sf.Model.from_functions(lambda key, x: jnp.zeros((2, 1)), lambda w, x: x @ w)
        >>> data = jnp.array([[3.0, 0.0], [0.0, 1.0]]), jnp.zeros((2, 1))
        >>> fit = sf.Objective.from_model(line, jnp.zeros((2, 1)), {}, data, loss="squared_error")
        >>> round(sf.measure(fit, "ggn_trace").value, 4)  # of XᵀX / n
        5.0

    Source: Schraudolph (2002); Martens (2020), section 8; the estimator as in `hessian_trace`.
    """
    return _trace(gauss_newton, objective, key, steps, probes, parameters)


@metric(cost=_cost, checks=(selects_parameters,))
def hessian_frobenius_norm(
    objective: Objective,
    key: jax.Array,
    *,
    probes: Count = 30,
    steps: NaturalNumber = 20,
    parameters: str = "*",
) -> Estimate:
    """The Frobenius norm of H = ∇²L: the root of the sum of its squared eigenvalues.

    ‖H‖_F² = ‖T‖_F² + 2β² + E‖PHPv‖², with Q, T = QᵀHQ, P and v as in `hessian_trace`, whose
    products it shares, and β what Q leaks into the next Lanczos vector. Units: loss per squared
    parameter.

    Args:
        objective: where to measure.
        key: PRNG key.
        probes: v's.
        steps: dimension of Q.
        parameters: pattern of the parameters' names: the norm of their block.

    Returns:
        `standard_error` over probes, that of the square divided by twice the root (0 where Q is
        the whole space). `converged` unless there is but one probe. Details: `known` (the part of
        the square from Q), `samples` (‖PHPv‖²), `products`.

    Raises:
        InputError: a pattern that fits no parameter.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> h, data = jnp.array([2.0, 1.0, -2.0]), (jnp.ones((1, 1)), jnp.ones(1))
        >>> saddle = sf.Objective.from_function(
        ...     lambda w, batch: 0.5 * jnp.sum(h * w**2), jnp.zeros(3), data)
        >>> round(sf.measure(saddle, "hessian_frobenius_norm").value, 4)
        3.0

    Source: Hutchinson (1990) for E‖Hv‖²; Chen and Hallman (2022) for Q. As a sharpness: Wu, Wang
    and Su (2022).
    """
    found = moments_of(hessian, objective, key, steps, probes, parameters)
    square = Estimate.from_samples(found.squares + found.square)
    value = float(np.sqrt(square.value))
    error = square.standard_error
    details = {"known": found.square, "samples": found.squares, "products": found.products}
    error = error / (2 * value) if error else error
    details = {name: np.asarray(part) for name, part in details.items()}
    return Estimate(value, error, error is not None, details)


def moments_of(
    operator: Operator,
    objective: Objective,
    key: jax.Array,
    steps: int,
    probes: int,
    parameters: str,
) -> Moments:
    """The moments of `operator` on some of the parameters, once for all who ask."""
    of_start, of_probes = key, jax.random.fold_in(key, 1)
    space = shared_space(operator, objective, of_start, parameters)
    return space.objective.shared(_moments, of_probes, space, steps, probes)


def _moments(
    objective: Objective, key: jax.Array, space: Krylov, steps: int, probes: int
) -> Moments:
    return moments(space, key, steps, probes)


def _trace(
    operator: Operator,
    objective: Objective,
    key: jax.Array,
    steps: int,
    probes: int,
    parameters: str,
) -> Estimate:
    found = moments_of(operator, objective, key, steps, probes, parameters)
    known = found.trace.sum()
    estimate = Estimate.from_samples(known + found.traces.sum(axis=1))
    details = {"known": known, "samples": found.traces.sum(axis=1), "products": found.products}
    return estimate._replace(
        converged=estimate.standard_error is not None,
        details={name: np.asarray(part) for name, part in details.items()},
    )
