"""Sharpness as an adaptive optimizer sees it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from sharpflat import trees
from sharpflat.curvature.krylov import Krylov, hessian
from sharpflat.objective import Objective
from sharpflat.registry import metric, optimizers
from sharpflat.sharpness.base import Estimate, selects_parameters
from sharpflat.sharpness.hessian import outermost
from sharpflat.validation import Count, Decay, InputError, Positive


def _fits_state(objective: Objective, arguments: Mapping[str, Any]) -> None:
    if "opt_state" in arguments:
        numbers = _numbers(arguments["opt_state"], arguments["hyperparams"], arguments)
        known = functools.partial(_inverse_root, numbers=numbers)
        jax.eval_shape(known, arguments["opt_state"], objective.params)


@metric(cost=lambda n, a: 2.0 * 25, checks=(selects_parameters, _fits_state))
def preconditioned_sharpness(
    objective: Objective,
    key: jax.Array,
    *,
    opt_state: Any,
    hyperparams: Mapping[str, Any],
    b1: Decay | None = None,
    b2: Decay | None = None,
    epsilon: Positive | None = None,
    tolerance: Positive = 1e-3,
    max_steps: Count = 200,
    parameters: str = "*",
) -> Estimate:
    """The largest eigenvalue of P^{−1/2} H P^{−1/2}, P the optimizer's diagonal preconditioner.

    P, by which the optimizer divides its step, is read from the state that Optax keeps after t
    updates: the diagonal of (1 − β₁ᵗ) (√(ν / (1 − β₂ᵗ)) + ε) for Adam and its kin, the first factor
    being the bias correction of what is divided, (1 − β₁ᵗ) (√ν_max + ε) for AMSGrad, √(ν + ε) for
    RMSProp, √(ν − μ² + ε) for the centred one (with bias correction ν and μ over 1 − β₂ᵗ) and
    √(Σ g² + ε) for AdaGrad, where a parameter that never had a gradient is held fixed. This takes
    ε where these optimizers have it by default (`eps_root` and `eps_in_sqrt` that say otherwise are
    refused where they are told; a state does not show them), and leaves out what scales the step
    afterwards, as LAMB's trust ratio does. Adam with learning rate η is stable up to (2 + 2β₁) /
    ((1 − β₁) η), 38 / η at β₁ = 0.9. A bias before batch norm has no gradient in training, so that
    P is about ε there, but curvature where the averages are frozen: it rules the number under
    `running`; restrict to `*/kernel`, or measure under `batch`. Units: loss per squared parameter,
    over P's.

    β₁, β₂ and ε are, the first that there is: the argument; the optimizer's own, of `hyperparams`
    or of a state of `optax.inject_hyperparams`; Optax's default for such a state, of Adam's 0.9,
    0.999 and 1e-8, of RMSProp's 0.9 and 1e-8, of AdaGrad's 1e-7, which is a guess and said to be
    one. A study hands its optimizer's over. RAdam and NAdam keep states of Adam's type and divide
    by something else: this is not for them, nor for Adamax.

    Args:
        objective: where to measure.
        key: PRNG key of the start vector.
        opt_state: the optimizer's state at these parameters.
        hyperparams: the optimizer's arguments by name, of which `b1`, `b2` (of RMSProp `decay`,
            if there is one) and `epsilon` (or `eps`) are looked at, and, if one of Sharpflat's
            own, its `name`; nothing where `measure` is not given it.
        b1: β₁ of the bias correction.
        b2: β₂ of the bias correction, of Adam or of RMSProp with one (there its decay).
        epsilon: ε.
        tolerance: relative, of the residual and of what may lie further out, as for
            `hessian_top_eigenvalues`.
        max_steps: Lanczos steps at most.
        parameters: pattern of the parameters' names; the others are held fixed.

    Returns:
        As `hessian_top_eigenvalues` with k = 1, but never `converged` where one of β₁, β₂ and ε had
        to be guessed; of Sharpflat's own optimizers, told by `name` and all arguments, none has.
        Details beside:
        those that P takes, by Optax's names (`b1`, `b2` or `decay`, `eps`).

    Raises:
        InputError: a state that is none of these, or of other parameters; `hyperparams` that place
            ε elsewhere, or make NAdam of Adam; second moments that are
            negative or not finite; moments under Adam's name with |μ| ≤ 1.1 ν > 0 everywhere, as
            Adamax keeps them, unless `b2` or the name of one of Sharpflat's own optimizers says
            that they are Adam's; a pattern that fits no parameter.

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
    given = {"b1": b1, "b2": b2, "epsilon": epsilon}
    numbers = _numbers(opt_state, hyperparams, given)
    whole = _inverse_root(opt_state, objective.params, numbers)
    if not trees.all_finite((_second_moments(opt_state), whole)):
        raise InputError("opt_state: its second moments are negative or not finite")
    if (
        b2 is None
        and optimizers.built_in(hyperparams.get("name")) is None
        and _as_of_adamax(opt_state)
    ):
        raise InputError(
            "opt_state: its moments are as Adamax keeps them, |mu| <= 1.1 nu everywhere, and no "
            "second moments; give b2 if they are Adam's all the same"
        )
    part = objective.restrict(parameters)
    scale = jax.tree.map(
        lambda free, root: None if free is None else root,
        part.params, whole, is_leaf=lambda leaf: leaf is None,
    )  # fmt: skip

    def operator(objective: Objective) -> Partial:
        return Partial(_scaled, hessian(objective), scale)

    estimate = outermost(Krylov(operator, part, key), key, 1, tolerance, max_steps)
    details = {**estimate.details, **{name: np.float64(numbers[name]) for name in numbers}}
    if _all_told(hyperparams) or numbers == _known(opt_state, hyperparams, given):
        return estimate._replace(details=details)
    return estimate._replace(standard_error=None, converged=False, details=details)


def _scaled(product: Any, scale: Any, vector: Any) -> Any:
    image = product(jax.tree.map(jnp.multiply, scale, vector))
    return jax.tree.map(jnp.multiply, scale, image)


def _inverse_root(opt_state: Any, params: Any, numbers: Mapping[str, Any]) -> Any:
    """P^{−1/2}, a tree like the parameters; zero where P is infinite, NaN where it is none."""
    found = _second_moments(opt_state)
    root = PRECONDITIONERS[type(found).__name__].inverse_root(found, **numbers)
    if jax.tree.map(jnp.shape, root) != jax.tree.map(jnp.shape, params):
        raise InputError("opt_state: is of other parameters than these")
    return root


def _numbers(opt_state: Any, hyperparams: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """By Optax's names those that the state's P takes, of Optax's defaults what is not known."""
    known = _known(opt_state, hyperparams, given)
    return {**_defaults(opt_state), **known}


def _known(opt_state: Any, hyperparams: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Each from the first source that has it."""
    if not isinstance(hyperparams, Mapping):
        raise InputError(f"hyperparams: expected numbers by name, got {hyperparams!r}")
    injected = [getattr(state, "hyperparams", {}) for state in _states(opt_state)]
    for name, usual in _preconditioner(opt_state).usual.items():
        told = next((own[name] for own in (hyperparams, *injected) if name in own), usual)
        if told != usual:
            raise InputError(f"hyperparams: {name}={told!r} makes another preconditioner than this")
    sources = [
        {"eps": source.get("epsilon"), "decay": source.get("b2"), **source}
        for source in (given, hyperparams, *injected)
    ]
    found = {
        name: next((own[name] for own in sources if own.get(name) is not None), None)
        for name in _defaults(opt_state)
    }
    return {name: number for name, number in found.items() if number is not None}


def _defaults(opt_state: Any) -> dict[str, float]:
    return _preconditioner(opt_state).defaults


def _preconditioner(opt_state: Any) -> Preconditioner:
    return PRECONDITIONERS[type(_second_moments(opt_state)).__name__]


def _all_told(hyperparams: Mapping[str, Any]) -> bool:
    """Whether all arguments of one of ours are there: what it does not take is Optax's default."""
    entry = optimizers.built_in(hyperparams.get("name"))
    return entry is not None and {*entry.schema.model_fields} <= {*hyperparams}


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


def _as_of_adamax(opt_state: Any) -> bool:
    """Whether its state, of Adam's type, holds what Adamax's does: ν the largest |g|, decayed.

    There |μ| is at most 1.1 ν for β₂ ≥ 0.99, and ν nowhere 0. Adam's ν is an average of g², and so
    0 or below |μ| somewhere, unless the gradient of every parameter is of the order of 1 or above.
    """
    state = _second_moments(opt_state)
    if type(state).__name__ != "ScaleByAdamState":
        return False
    alike = jax.tree.map(
        lambda mu, nu: jnp.all((nu > 0) & (jnp.abs(mu) <= 1.1 * nu)), state.mu, state.nu
    )
    return all(jax.tree.leaves(alike))


def _adam(state: Any, b1: Any, b2: Any, eps: Any) -> Any:
    return _of_corrected(_corrected(state.nu, state, b2), state, b1, eps)


def _amsgrad(state: Any, b1: Any, eps: Any) -> Any:
    return _of_corrected(state.nu_max, state, b1, eps)


def _of_corrected(nu: Any, state: Any, b1: Any, eps: Any) -> Any:
    """The correction of μ is a part of P, which then divides μ itself."""
    correction = _bias(state, b1)
    return jax.tree.map(lambda nu: (correction * (jnp.sqrt(nu) + eps)) ** -0.5, nu)


def _rms(state: Any, decay: Any, eps: Any) -> Any:
    return _of_sums(_corrected(state.nu, state, decay), eps)


def _centred(state: Any, decay: Any, eps: Any) -> Any:
    nu, mu = (_corrected(moments, state, decay) for moments in (state.nu, state.mu))
    return jax.tree.map(lambda nu, mu: (nu - mu**2 + eps) ** -0.25, nu, mu)


def _adagrad(state: Any, eps: Any) -> Any:
    held = jax.tree.map(lambda total: total == 0, state.sum_of_squares)
    roots = _of_sums(state.sum_of_squares, eps)
    return jax.tree.map(lambda held, root: jnp.where(held, 0, root), held, roots)


def _of_sums(squares: Any, eps: Any) -> Any:
    return jax.tree.map(
        lambda square: jnp.where(square < 0, jnp.nan, (square + eps) ** -0.25), squares
    )


def _corrected(moments: Any, state: Any, decay: Any) -> Any:
    """Moments over 1 − βᵗ, where the state counts its steps t."""
    if "count" not in state._fields:  # every tuple has a method of that name
        return moments
    correction = _bias(state, decay)
    return jax.tree.map(lambda moment: moment / correction, moments)


def _bias(state: Any, decay: Any) -> Any:
    """1 − βᵗ, at t = 1 before the first update."""
    return 1 - decay ** jnp.maximum(state.count, 1)


class Preconditioner(NamedTuple):
    """How P^{−1/2} comes of a state, and the numbers that it takes, as Optax has them.

    Attributes:
        inverse_root: from a state and the numbers to P^{−1/2}.
        defaults: of the numbers, by Optax's names.
        usual: Optax's arguments that make another P, by the values at which they do not.
    """

    inverse_root: Callable[..., Any]
    defaults: dict[str, float]
    usual: dict[str, Any] = {}  # noqa: RUF012 — never written to


OF_ADAM = {"eps_root": 0.0, "nesterov": False}
OF_RMS = {"eps_in_sqrt": True}
ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
RMS = {"decay": 0.9, "eps": 1e-8}

# By name: Optax does not export all of these types.
PRECONDITIONERS = {
    "ScaleByAdamState": Preconditioner(_adam, ADAM, OF_ADAM),
    "ScaleByAmsgradState": Preconditioner(_amsgrad, {"b1": 0.9, "eps": 1e-8}, OF_ADAM),
    "ScaleByRmsState": Preconditioner(_rms, RMS, OF_RMS),
    "ScaleByRmsWithCountState": Preconditioner(_rms, RMS, OF_RMS),
    "ScaleByRStdDevState": Preconditioner(_centred, RMS, OF_RMS),
    "ScaleByRStdDevWithCountState": Preconditioner(_centred, RMS, OF_RMS),
    "ScaleByRssState": Preconditioner(_adagrad, {"eps": 1e-7}),
}
