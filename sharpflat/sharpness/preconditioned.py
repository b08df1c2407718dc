"""Sharpness as an adaptive optimizer sees it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpflat.curvature.krylov import Krylov, hessian
from sharpflat.objective import Objective
from sharpflat.registry import Count, Fraction, InputError, Positive, metric
from sharpflat.sharpness.base import Estimate, selects_parameters
from sharpflat.sharpness.hessian import outermost


def _fits_state(objective: Objective, arguments: Mapping[str, Any]) -> None:
    if "opt_state" in arguments:
        _second_moments(arguments["opt_state"])
        known = functools.partial(_inverse_root, b2=arguments["b2"], epsilon=arguments["epsilon"])
        jax.eval_shape(known, arguments["opt_state"], objective.params)


@metric(cost=lambda n, a: 2.0 * 25, checks=(selects_parameters, _fits_state))
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

    P, by which the optimizer divides its step, is read from the state that Optax keeps: the
    diagonal of √(ν / (1 − β₂ᵗ)) + ε for Adam and its kin, √ν_max + ε for AMSGrad, √(ν + ε) for
    RMSProp, √(ν − μ² + ε) for the centred one (with bias correction ν and μ over 1 − β₂ᵗ) and
    √(Σ g² + ε) for AdaGrad, where a parameter that never had a gradient is held fixed. This takes
    ε where these optimizers have it by default. Adamax keeps its state as Adam does, and cannot be
    told from it: its number here is without meaning. Adam with learning rate η is stable up to
    (2 + 2β₁) / ((1 − β₁) η), 38 / η at β₁ = 0.9. A bias before batch norm has no gradient in
    training, so that P is about ε there, but curvature where the averages are frozen: it rules the
    number under `running`; restrict to `*/kernel`, or measure under `batch`. Units: loss per
    squared parameter, over P's.

    Args:
        objective: where to measure.
        key: PRNG key of the start vector.
        opt_state: the optimizer's state at these parameters.
        b2: β₂ for the bias correction, of Adam or of RMSProp with one (there its decay); it must
            be the optimizer's.
        epsilon: ε; it must be the optimizer's. Adam and RMSProp have 1e-8 in Optax, AdaGrad 1e-7.
        tolerance: of the relative residual, as for `hessian_top_eigenvalues`.
        max_steps: Lanczos steps at most.
        parameters: pattern of the parameters' names; the others are held fixed.

    Returns:
        As `hessian_top_eigenvalues` with k = 1.

    Raises:
        InputError: a state that is none of these, or of other parameters; a pattern that fits no
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
    """P^{−1/2}, a tree like the parameters; zero where P is infinite."""
    found = _second_moments(opt_state)
    diagonal = PRECONDITIONERS[type(found).__name__](found, b2, epsilon)
    if jax.tree.map(jnp.shape, diagonal) != jax.tree.map(jnp.shape, params):
        raise InputError("opt_state: is of other parameters than these")
    return jax.tree.map(lambda p: p**-0.5, diagonal)


def _second_moments(opt_state: Any) -> Any:
    """The one of an optimizer's states that holds them."""
    states = list(_states(opt_state))
    found = next((state for state in states if type(state).__name__ in PRECONDITIONERS), None)
    if found is None:
        names = ", ".join(dict.fromkeys(type(state).__name__ for state in states)) or "nothing"
        raise InputError(
            f"opt_state: holds no second moments known here, but {names}; expected one of "
            f"{', '.join(PRECONDITIONERS)}"
        )
    return found


def _states(state: Any) -> Iterator[Any]:
    """The named states of an optimizer, with those inside them."""
    if hasattr(state, "_fields"):
        yield state
    parts = tuple(state.values()) if isinstance(state, Mapping) else state
    for part in parts if isinstance(parts, tuple | list) else ():
        yield from _states(part)


def _adam(state: Any, b2: float, epsilon: float) -> Any:
    return jax.tree.map(lambda nu: jnp.sqrt(nu) + epsilon, _corrected(state.nu, state, b2))


def _amsgrad(state: Any, b2: float, epsilon: float) -> Any:
    return jax.tree.map(lambda nu: jnp.sqrt(nu) + epsilon, state.nu_max)


def _rms(state: Any, b2: float, epsilon: float) -> Any:
    return jax.tree.map(lambda nu: jnp.sqrt(nu + epsilon), _corrected(state.nu, state, b2))


def _centred(state: Any, b2: float, epsilon: float) -> Any:
    nu, mu = (_corrected(moments, state, b2) for moments in (state.nu, state.mu))
    return jax.tree.map(lambda nu, mu: jnp.sqrt(nu - mu**2 + epsilon), nu, mu)


def _adagrad(state: Any, b2: float, epsilon: float) -> Any:
    return jax.tree.map(
        lambda total: jnp.where(total > 0, jnp.sqrt(total + epsilon), jnp.inf),
        state.sum_of_squares,
    )


def _corrected(moments: Any, state: Any, b2: float) -> Any:
    """Moments over 1 − β₂ᵗ, where the state counts its steps t."""
    if "count" not in state._fields:  # every tuple has a method of that name
        return moments
    correction = 1 - b2 ** jnp.maximum(state.count, 1)
    return jax.tree.map(lambda moment: moment / correction, moments)


# By name: Optax does not export all of these types.
PRECONDITIONERS = {
    "ScaleByAdamState": _adam,
    "ScaleByAmsgradState": _amsgrad,
    "ScaleByRmsState": _rms,
    "ScaleByRmsWithCountState": _rms,
    "ScaleByRStdDevState": _centred,
    "ScaleByRStdDevWithCountState": _centred,
    "ScaleByRssState": _adagrad,
}
