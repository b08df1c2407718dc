"""Worst-case flatness (Jiang et al. 2020): the adversary that training accuracy withstands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sharpflat import trees
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate
from sharpflat.sharpness.crossing import Crossing, first_crossing
from sharpflat.sharpness.pac_bayes import lost, may_be_lost, needs_classes
from sharpflat.sharpness.sam import loss_and_gradient
from sharpflat.sharpness.subsets import scales
from sharpflat.validation import Count, Fraction, Positive

START, START_RELATIVE = 1e-3, 1e-2


def _cost(examples: int, arguments: Mapping[str, Any]) -> float:
    ascent = arguments["ascent"]
    attack, stronger = (steps + (steps + 1) / 3 for steps in (ascent, 2 * ascent))
    return 1 + arguments["steps"] * attack + 2 * stronger


@metric(cost=_cost, checks=(needs_classes,))
def worst_case_radius(
    objective: Objective,
    key: jax.Array,
    *,
    accuracy_drop: Fraction = 0.1,
    steps: Count = 12,
    ascent: Count = 3,
    tolerance: Positive = 1 / 16,
) -> Estimate:
    """α, how far each parameter may move before an adversary costs a tenth of training accuracy.

    α = sup { α : A(w) − A(w + δ) ≤ `accuracy_drop` for every ‖δ‖_∞ ≤ α that was tried }, A the
    accuracy on the objective's examples; in units of the parameters, large is flat. The source
    reports 1 / α². At each α the adversary takes `ascent` steps of length α along the sign of the
    loss's gradient, kept in the box, from a vertex: that of the gradient's sign at w (at random
    where the gradient is zero), or the direction that last cost enough at another α. A better
    adversary would succeed at a smaller α, so that the value is an upper bound of the true radius.
    α is doubled or halved from 0.001, then bisected. Differs from the source in this (recalled):
    there the adversary takes many small gradient steps on mini-batches from a random start, clipped
    to the box, and the search ends where the accuracy is within a hundredth of its aim.

    Args:
        objective: a network on labelled examples, at its parameters w.
        key: PRNG key; it matters to the value only where the gradient is exactly zero.
        accuracy_drop: the fraction of examples that may be lost.
        steps: values of α that are tried, at most.
        ascent: the adversary's steps at each, a gradient each.
        tolerance: relative width of α's bracket at which the search ends.

    Returns:
        `standard_error` is None: the error of a maximisation has one sign and is not random.
        `converged` if α's bracket is within `tolerance` and its lower end withstands a second
        adversary, which takes twice the steps, once from the direction that succeeded last and once
        from a random vertex: a test of the ascent, and no proof that there is no better adversary.
        Where no α that was tried costs as much, or every one does, the value is that of the last.
        Details: `low`, `high`, `evaluations` (values of α), `withstood`, whether the second
        adversary failed, `accuracy` = A(w), `inverse_square` = 1 / α².

    Raises:
        InputError: an objective without outputs, or labels that are not classes.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> model = sf.Model.from_functions(
        ...     lambda key, x: jnp.zeros(2), lambda b, x: 0 * x + b[None])
        >>> data = (jnp.zeros((10, 2)), jnp.zeros(10, int))
        >>> objective = sf.Objective.from_model(model, jnp.array([1.0, 0.0]), {}, data)
        >>> spec = {"worst_case_radius": {"tolerance": 1e-3, "steps": 30}}
        >>> round(sf.measure(objective, spec).value, 2)  # 1 − α = α
        0.5

    Source: Jiang et al. (2020), sharpness-based measures.
    """
    found = _search(objective, key, accuracy_drop, steps, ascent, tolerance, False)
    return _estimate(*found, tolerance)


@metric(cost=_cost, checks=(needs_classes,))
def worst_case_radius_magnitude(
    objective: Objective,
    key: jax.Array,
    *,
    accuracy_drop: Fraction = 0.1,
    steps: Count = 12,
    ascent: Count = 3,
    tolerance: Positive = 1 / 16,
) -> Estimate:
    """α, the fraction of itself that each parameter may move before an adversary costs accuracy.

    As `worst_case_radius`, with |δ_i| ≤ α |w_i|: α has no unit, and a weight of zero stays where
    it is. Large is flat. α is doubled or halved from 0.01, then bisected.

    Args:
        objective: a network on labelled examples, at its parameters w.
        key: PRNG key; it matters to the value only where the gradient is exactly zero.
        accuracy_drop: the fraction of examples that may be lost.
        steps: values of α that are tried, at most.
        ascent: the adversary's steps at each, a gradient each.
        tolerance: relative width of α's bracket at which the search ends.

    Returns:
        As `worst_case_radius`.

    Raises:
        InputError: an objective without outputs, or labels that are not classes.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> model = sf.Model.from_functions(
        ...     lambda key, x: jnp.zeros(2), lambda b, x: 0 * x + b[None])
        >>> data = (jnp.zeros((10, 2)), jnp.zeros(10, int))
        >>> objective = sf.Objective.from_model(model, jnp.array([3.0, 1.0]), {}, data)
        >>> spec = {"worst_case_radius_magnitude": {"tolerance": 1e-3, "steps": 30}}
        >>> round(sf.measure(objective, spec).value, 2)  # 3 (1 − α) = 1 + α
        0.5

    Source: Jiang et al. (2020), sharpness-based measures.
    """
    found = _search(objective, key, accuracy_drop, steps, ascent, tolerance, True)
    return _estimate(*found, tolerance)


def _estimate(
    found: Crossing, withstood: jax.Array, accuracy: jax.Array, tolerance: float
) -> Estimate:
    alpha = float(found.scale)
    details = {
        "low": np.asarray(found.low),
        "high": np.asarray(found.high),
        "evaluations": np.asarray(found.evaluations),
        "withstood": np.asarray(withstood),
        "accuracy": np.asarray(accuracy),
        "inverse_square": np.float64(1 / alpha**2),
    }
    return Estimate(alpha, None, bool(found.within(tolerance) & withstood), details)


def _search(
    objective: Objective,
    key: jax.Array,
    drop: float,
    steps: int,
    ascent: int,
    tolerance: float,
    magnitude: bool,
) -> tuple[Crossing, jax.Array, jax.Array]:
    _, gradient = objective.shared(loss_and_gradient, key)
    size = scales(objective.params, magnitude)
    start = START_RELATIVE if magnitude else START
    allowed = may_be_lost(drop, objective.data.size)
    return _bracket(objective, key, gradient, size, start, allowed, steps, ascent, tolerance)


@jax.jit
def _bracket(
    objective: Objective,
    key: jax.Array,
    gradient: Any,
    size: Any,
    start: float,
    allowed: int,
    steps: int,
    ascent: int,
    tolerance: float,
) -> tuple[Crossing, jax.Array, jax.Array]:
    """The bracket of α for |δ_i| ≤ α `size`_i, where `allowed` examples may be lost; whether its
    lower end withstands the second adversary; and A(w).
    """
    accuracy = objective.accuracy(objective.params)
    noise = trees.random_like(key, gradient, sampler=jax.random.normal)
    vertex = jax.tree.map(lambda g, n: jnp.sign(jnp.where(g == 0, n, g)), gradient, noise)

    def passed(alpha: jax.Array, vertex: Any, steps: ArrayLike = ascent) -> tuple[jax.Array, Any]:
        radius = trees.scale(alpha, size)
        worst, there = _attack(objective, radius, vertex, steps)
        success = lost(accuracy, worst, objective.data.size) > allowed
        return success, jax.tree.map(lambda a, b: jnp.where(success, a, b), there, vertex)

    first = jnp.asarray(start, jnp.result_type(*jax.tree.leaves(objective.params)))
    found = first_crossing(passed, first, tolerance, steps, state=vertex)
    starts = jax.tree.map(lambda z, n: jnp.stack([z, jnp.sign(n)]), found.state, noise)
    beaten = jax.lax.map(lambda start: passed(found.low, start, 2 * ascent)[0], starts)
    return found._replace(state=()), ~beaten.any(), accuracy


def _attack(
    objective: Objective, radius: Any, vertex: Any, ascent: ArrayLike
) -> tuple[jax.Array, Any]:
    """The lowest accuracy at w + z · `radius` along sign ascent in |z| ≤ 1, and its z."""

    def params(z: Any) -> Any:
        return trees.add(objective.params, jax.tree.map(jnp.multiply, radius, z))

    def step(count: int, state: tuple[Any, jax.Array, Any]) -> tuple[Any, jax.Array, Any]:
        z, worst, at_worst = state
        _, gradient = objective.value_and_grad(params(z))
        z = jax.tree.map(lambda z, g: jnp.clip(z + jnp.sign(g), -1, 1), z, gradient)
        found = objective.accuracy(params(z))
        lower = found < worst
        at_worst = jax.tree.map(lambda a, b: jnp.where(lower, a, b), z, at_worst)
        return z, jnp.minimum(worst, found), at_worst

    start = (vertex, objective.accuracy(params(vertex)), vertex)
    return jax.lax.fori_loop(0, ascent, step, start)[1:]
