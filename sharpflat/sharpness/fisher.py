"""The Fisher information: its trace, and the norm that it gives the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import trees
from sharpflat.batch import Batch
from sharpflat.objective import LOSSES, Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import (
    Estimate,
    map_draws,
    needs_outputs,
    needs_single_examples,
    selects_parameters,
)
from sharpflat.sharpness.gradient_noise import EXAMPLE_PASS, example_gradients, slopes_along
from sharpflat.validation import Count, InputError


def names_its_labels(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """The check of kind `true`: the loss must say how the model distributes labels."""
    if arguments["kind"] != "true":
        return
    needs_outputs(objective, arguments)
    if objective.function not in _ROOTS:
        raise InputError(
            f"kind: 'true' needs the labels' distribution, known for {' and '.join(LOSSES)} only"
        )


def _trace_cost(n: int, arguments: Mapping[str, Any]) -> float:
    empirical = arguments["kind"] == "empirical"
    return 2 + EXAMPLE_PASS if empirical else arguments["draws"] * EXAMPLE_PASS


@metric(cost=_trace_cost, checks=(needs_single_examples, names_its_labels, selects_parameters))
def fisher_trace(
    objective: Objective,
    key: jax.Array,
    *,
    kind: Literal["true", "empirical"] = "true",
    draws: Count = 2,
    parameters: str = "*",
) -> Estimate:
    """tr F, F = (1/n) Σ_i E_y[∇ log p(y|x_i) ∇ log p(y|x_i)ᵀ], the mean squared score.

    `true`: y is distributed as the model has it, by the softmax of its outputs (`cross_entropy`)
    or as N(output, I) (`squared_error`); tr F is then the trace of the generalised Gauss–Newton
    matrix. `empirical`: y is the label in the data, and tr F = (1/n) Σ_i ‖∇ℓ_i‖², exactly.
    Units: squared loss per squared parameter.

    Under `true` no labels are drawn: where the model is sure of itself nearly all of tr F comes
    from labels too rare to be met. With S = B Bᵀ the covariance of ∇_f ℓ over y, each draw gives
    each example random signs r and takes ‖J_iᵀ B r‖², whose mean is tr(J_iᵀ S J_i), the same.

    Args:
        objective: where to measure.
        key: PRNG key of the signs. Not used by `empirical`.
        kind: whose labels.
        draws: of signs for each example; each is a pass over the examples' gradients. 2 is the
            least that gives an error. Not used by `empirical`.
        parameters: pattern of the parameters' names: the trace of their block.

    Returns:
        `standard_error` from the spread of each example's draws; None for one draw, 0 for
        `empirical`. It rests on n · (draws − 1) degrees of freedom: below some thirty it is itself
        uncertain. `converged` if finite. Details: `by_draw`, the trace from each draw (`true`).

    Raises:
        InputError: batch norm under `batch`; a pattern that fits no parameter; for `true` an
            objective without a network, or a loss other than the two named.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> model = sf.Model.from_functions(lambda key, x: jnp.zeros((1, 1)), lambda w, x: x @ w)
        >>> data = (jnp.array([[1.0], [3.0]]), jnp.zeros((2, 1)))
        >>> line = sf.Objective.from_model(model, jnp.zeros((1, 1)), {}, data, loss="squared_error")
        >>> sf.measure(line, "fisher_trace").value  # (1² + 3²) / 2
        5.0

    Source: Martens (2020), sections 5 and 11 (true and empirical); Hutchinson (1990) for the signs.
    """
    part = objective.restrict(parameters)
    if kind == "empirical":
        value = float(part.shared(example_gradients, key).squares.mean())
        return Estimate(value, 0.0, bool(np.isfinite(value)))
    found = np.asarray(map_draws(_probed, part, key, draws), np.float64)
    value, n = float(found.mean()), found.shape[1]
    error = float(np.sqrt(found.var(axis=0, ddof=1).sum() / draws) / n) if draws > 1 else None
    return Estimate(value, error, bool(np.isfinite(value)), {"by_draw": found.mean(axis=1)})


def _probed(objective: Objective, key: jax.Array) -> jax.Array:
    """‖J_iᵀ B r_i‖² for each example, `[n]`, as the gradient of a loss with B r as its slope."""
    outputs = jax.eval_shape(Objective.outputs, objective, objective.params)
    signs = jax.random.rademacher(key, outputs.shape, outputs.dtype)
    data = Batch(objective.data.inputs, signs)
    probe = replace(objective, data=data, function=_ROOTS[objective.function])
    return probe.map_gradients(_square, probe.params)


def _square(gradient: Any) -> jax.Array:
    return trees.vdot(gradient, gradient)


def _softmax_root(outputs: jax.Array, signs: jax.Array) -> jax.Array:
    """⟨B r, outputs⟩, B = diag(√p) − p √pᵀ: B Bᵀ = diag(p) − p pᵀ.

    All of B r sum to 0; that of the likeliest label is made of the others, for where its p is all
    but 1, what is left of it is lost to rounding.
    """
    p = jax.nn.softmax(jax.lax.stop_gradient(outputs), axis=-1)
    pull = jnp.sqrt(p) * signs
    root = pull - p * jnp.sum(pull, axis=-1, keepdims=True)
    top = jax.nn.one_hot(jnp.argmax(p, axis=-1), p.shape[-1], dtype=bool)
    others = jnp.where(top, 0, root)
    root = jnp.where(top, -jnp.sum(others, axis=-1, keepdims=True), others)
    return jnp.sum(root * outputs, axis=-1)


def _identity_root(outputs: jax.Array, signs: jax.Array) -> jax.Array:
    """⟨r, outputs⟩: the squared error's B is the identity."""
    return jnp.sum(signs * outputs, axis=tuple(range(1, outputs.ndim)))


_ROOTS = {LOSSES["cross_entropy"]: _softmax_root, LOSSES["squared_error"]: _identity_root}


def _norm_cost(n: int, arguments: Mapping[str, Any]) -> float:
    return 2 / 3 if arguments["kind"] == "empirical" else 2.0


@metric(cost=_norm_cost, checks=(needs_single_examples, names_its_labels, selects_parameters))
def fisher_rao_norm(
    objective: Objective,
    key: jax.Array,
    *,
    kind: Literal["empirical", "true"] = "empirical",
    parameters: str = "*",
) -> Estimate:
    """‖θ‖²_fr = θᵀ F θ = (1/n) Σ_i E_y[(θ·∇ℓ_i)²], the SQUARED Fisher–Rao norm of the parameters.

    The square is what the paper defines and plots; its root is among the details. For a network
    of rectifiers without biases and L hidden layers it is (L + 1)² (1/n) Σ_i ⟨∂ℓ_i/∂f, f(x_i)⟩²,
    which rescaling weights between layers leaves as it is. Units: squared loss.

    Args:
        objective: where to measure; θ are its parameters.
        key: not used.
        kind: `empirical` takes the labels in the data, as the paper does, by one derivative of the
            losses along θ; `true` those of the model's own distribution, θᵀ (Gauss–Newton) θ.
        parameters: pattern of the parameters' names: θ are these alone.

    Returns:
        `standard_error` is 0; `converged` if finite. Details: `norm`, the root.

    Raises:
        InputError: batch norm under `batch`; a pattern that fits no parameter; for `true` an
            objective without a network, or a loss other than `cross_entropy` and `squared_error`.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> data = (jnp.array([1.0, 3.0]), jnp.zeros(2))
        >>> line = sf.Objective.from_function(
        ...     lambda w, batch: jnp.mean(w * batch.inputs), jnp.array(2.0), data)
        >>> sf.measure(line, "fisher_rao_norm").value  # 2² · (1² + 3²) / 2
        20.0

    Source: Liang et al. (2019), definition 2 and theorem 3.1; the two kinds are its equations (5.2)
    and (5.3).
    """
    part = objective.restrict(parameters)
    if kind == "empirical":
        slopes = np.asarray(slopes_along(part, part.params), np.float64)
        value = float(np.mean(slopes**2))
    else:
        value = float(_gauss_newton(part))
    norm = np.sqrt(max(value, 0.0))
    return Estimate(value, 0.0, bool(np.isfinite(value)), {"norm": norm})


@jax.jit
def _gauss_newton(objective: Objective) -> jax.Array:
    params = objective.params
    return trees.vdot(params, objective.ggn_vp(params, params))
