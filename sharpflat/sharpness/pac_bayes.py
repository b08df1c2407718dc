"""PAC-Bayesian flatness (Jiang et al. 2020): the noise that training accuracy withstands."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import trees
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate, needs_outputs
from sharpflat.sharpness.crossing import Crossing, first_crossing
from sharpflat.validation import Count, Fraction, InputError, NonNegative, Positive

START, SLOPE_STEP = 0.1, 0.2


def needs_classes(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """The check of metrics of accuracy: outputs, and integer labels to compare them with."""
    needs_outputs(objective, arguments)
    if not jnp.issubdtype(objective.data.labels.dtype, jnp.integer):
        raise InputError("labels: accuracy needs integers for classes, got real numbers")


def may_be_lost(drop: float, examples: int) -> int:
    """⌊drop · examples⌋, for shares that are rounded do not tell: 1 − 45/50 may exceed 0.1."""
    return math.floor(drop * examples * (1 + 1e-12))


def lost(before: jax.Array, after: jax.Array, examples: int) -> jax.Array:
    """How many of `examples` two accuracies are apart, a whole number."""
    return jnp.round((before - after) * examples)


def _cost(examples: int, arguments: Mapping[str, Any]) -> float:
    return arguments["draws"] * (arguments["steps"] + 3) / 3


@metric(cost=_cost, checks=(needs_classes,))
def pac_bayes_flatness(
    objective: Objective,
    key: jax.Array,
    *,
    accuracy_drop: Fraction = 0.1,
    draws: Count = 10,
    steps: Count = 15,
    tolerance: Positive = 0.01,
) -> Estimate:
    """1 / σ², with σ the largest noise that costs at most a tenth of training accuracy.

    σ = max { σ : A(w) − E A(w + σ u) ≤ `accuracy_drop` }, u ~ N(0, I) over all parameters, A the
    accuracy on the objective's examples; in units of one over squared parameters, large is sharp.
    The mean is over the same draws of u at every σ, so that what is searched does not fluctuate.
    σ is doubled or halved from 0.1, then bisected; where accuracy is not monotone in σ, a crossing
    is found and not always the first. Differs from the code of Dziugaite et al. (2020), which
    passes σ² where the standard deviation belongs, draws anew at each σ, stops within 0.01 of the
    accuracy sought and looks no further than σ = 2; and which first merges batch norm's averages
    into the weights, while here the objective's policy holds and all parameters get noise.

    Args:
        objective: a network on labelled examples, at its parameters w.
        key: PRNG key of the noise.
        accuracy_drop: the fraction of examples that may be lost.
        draws: of u.
        steps: values of σ that are tried, at most.
        tolerance: relative width of σ's bracket at which the search ends.

    Returns:
        `standard_error` by the delta method: 2 / σ³ · s / √draws / |A′(σ)|, s the spread of
        accuracy over draws and A′ its slope between 0.8 σ and 1.2 σ; None for one draw, where
        there is no slope, and where no σ was found. `converged` if σ's bracket is within
        `tolerance`; where accuracy never falls by as much, or falls at any σ that was tried, the
        value is that of the last σ.
        Details: `sigma`, `low`, `high`, `evaluations` (values of σ), `accuracy` = A(w),
        `accuracies` = A(w + σ u) a draw, `slope`.

    Raises:
        InputError: an objective without outputs, or labels that are not classes.

    Example:
        >>> import jax, jax.numpy as jnp, sharpflat as sf
        >>> inputs, labels = jax.random.normal(jax.random.key(0), (50, 2)), jnp.zeros(50, int)
        >>> model = sf.Model.from_functions(
        ...     lambda key, x: jnp.zeros(2), lambda b, x: 0 * x + b[None])
        >>> objective = sf.Objective.from_model(model, jnp.array([1.0, 0.0]), {}, (inputs, labels))
        >>> estimate = sf.measure(objective, "pac_bayes_flatness", draws=4000)
        >>> # b₀ − b₁ ~ N(1, 2 σ²) is negative with probability 0.1 at σ = 0.552
        >>> bool(abs(estimate.details["sigma"] - 0.552) < 0.1)
        True

    Source: Jiang et al. (2020), sharpness-based measures; Dziugaite et al. (2020), code.
    """
    return _flatness(objective, key, accuracy_drop, draws, steps, tolerance, None)


@metric(cost=_cost, checks=(needs_classes,))
def pac_bayes_flatness_magnitude(
    objective: Objective,
    key: jax.Array,
    *,
    accuracy_drop: Fraction = 0.1,
    draws: Count = 10,
    steps: Count = 15,
    tolerance: Positive = 0.01,
    epsilon: NonNegative = 1e-3,
) -> Estimate:
    """1 / σ², with σ the largest noise in proportion to the weights that accuracy withstands.

    As `pac_bayes_flatness`, with noise of standard deviation √(σ² w_i² + ε²) on the parameter w_i:
    σ and the value have no unit. Large is sharp. ε keeps weights of zero from standing still; if
    ε alone costs more accuracy than is allowed, no σ is found.

    Args:
        objective: a network on labelled examples, at its parameters w.
        key: PRNG key of the noise.
        accuracy_drop: the fraction of examples that may be lost.
        draws: of the noise.
        steps: values of σ that are tried, at most.
        tolerance: relative width of σ's bracket at which the search ends.
        epsilon: ε, in units of the parameters.

    Returns:
        As `pac_bayes_flatness`.

    Raises:
        InputError: an objective without outputs, or labels that are not classes.

    Example:
        >>> import jax, jax.numpy as jnp, sharpflat as sf
        >>> inputs, labels = jax.random.normal(jax.random.key(0), (50, 2)), jnp.zeros(50, int)
        >>> model = sf.Model.from_functions(
        ...     lambda key, x: jnp.zeros(2), lambda b, x: 0 * x + b[None])
        >>> objective = sf.Objective.from_model(model, jnp.array([2.0, 0.0]), {}, (inputs, labels))
        >>> estimate = sf.measure(objective, "pac_bayes_flatness_magnitude", draws=4000)
        >>> # b₀ − b₁ ~ N(2, 4 σ²) is negative with probability 0.1 at σ = 0.780
        >>> bool(abs(estimate.details["sigma"] - 0.78) < 0.1)
        True

    Source: Jiang et al. (2020), sharpness-based measures; ε from Dziugaite et al. (2020), code.
    """
    return _flatness(objective, key, accuracy_drop, draws, steps, tolerance, epsilon)


def _flatness(
    objective: Objective,
    key: jax.Array,
    drop: float,
    draws: int,
    steps: int,
    tolerance: float,
    epsilon: float | None,
) -> Estimate:
    keys = jax.random.split(key, draws)
    allowed = may_be_lost(drop, draws * objective.data.size)
    found, accuracy, at, slope = _search(objective, keys, allowed, steps, tolerance, epsilon)
    sigma, slope, accuracies = float(found.scale), float(slope), np.asarray(at, np.float64)
    value, error = 1 / sigma**2, None
    if draws > 1 and slope < 0 and found.low > 0 and np.isfinite(found.high):
        spread = accuracies.std(ddof=1) / math.sqrt(draws)
        error = float(2 / sigma**3 * spread / -slope)
    details = {
        "sigma": np.float64(sigma),
        "low": np.asarray(found.low),
        "high": np.asarray(found.high),
        "evaluations": np.asarray(found.evaluations),
        "accuracy": np.asarray(accuracy),
        "accuracies": accuracies,
        "slope": np.float64(slope),
    }
    return Estimate(value, error, bool(found.within(tolerance)), details)


@jax.jit
def _search(
    objective: Objective,
    keys: jax.Array,
    allowed: int,
    steps: int,
    tolerance: float,
    epsilon: float | None,
) -> tuple[Crossing, jax.Array, jax.Array, jax.Array]:
    """The bracket of σ, A(w), A(w + σ u) a draw, and the slope of their mean.

    At σ the examples lost in all draws together are first more than `allowed`.
    """
    at = functools.partial(_accuracies, objective, keys, epsilon)
    accuracy = objective.accuracy(objective.params)

    def passed(sigma: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        return jnp.sum(lost(accuracy, at(sigma), objective.data.size)) > allowed, state

    start = jnp.asarray(START, jnp.result_type(*jax.tree.leaves(objective.params)))
    found = first_crossing(passed, start, tolerance, steps)
    sigma, h = found.scale, SLOPE_STEP
    rise = jnp.mean(at((1 + h) * sigma)) - jnp.mean(at((1 - h) * sigma))
    return found, accuracy, at(sigma), rise / (2 * h * sigma)


def _accuracies(
    objective: Objective, keys: jax.Array, epsilon: float | None, sigma: jax.Array
) -> jax.Array:
    """A at w + noise of size σ, or √(σ² w² + ε²), for each key."""

    def draw(key: jax.Array) -> jax.Array:
        noise = trees.random_like(key, objective.params, sampler=jax.random.normal)
        if epsilon is None:
            return objective.accuracy(trees.add_scale(objective.params, sigma, noise))
        spread = jax.tree.map(lambda w: jnp.sqrt((sigma * w) ** 2 + epsilon**2), objective.params)
        step = jax.tree.map(jnp.multiply, spread, noise)
        return objective.accuracy(trees.add(objective.params, step))

    return jax.lax.map(draw, keys)
