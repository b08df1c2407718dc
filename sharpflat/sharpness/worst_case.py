"""Worst-case sharpness of Andriushchenko et al. (2023): the largest rise in a ball, by Auto-PGD."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sharpflat import trees
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.auto_pgd import Ball, Norm, ascend
from sharpflat.sharpness.base import Estimate, above_rounding
from sharpflat.sharpness.subsets import (
    exact_gradient,
    outputs_if_normalized,
    scales,
    subset_rows,
    whole_chunks,
    with_normalized_logits,
)
from sharpflat.validation import Count, Positive

TOLERANCE = 0.01


def _cost(examples: int, arguments: Mapping[str, Any]) -> float:
    size = min(arguments["batch_size"], examples)
    return min(arguments["subsets"] * size, examples) / examples * (arguments["steps"] + 2)


@metric(cost=_cost, checks=(whole_chunks, outputs_if_normalized))
def worst_case_sharpness(
    objective: Objective,
    key: jax.Array,
    *,
    rho: Positive = 0.002,
    norm: Norm = "linf",
    adaptive: bool = True,
    subsets: Count = 8,
    batch_size: Count = 128,
    steps: Count = 20,
    normalize_logits: bool = False,
) -> Estimate:
    """The mean over subsets of examples of the largest rise of the loss in a ball.

    (1/k) Σ_B max { L_B(w + δ) − L_B(w) : ‖δ ⊘ c‖_p ≤ ρ }, c = |w| (adaptive) or 1, over k disjoint
    subsets B of m examples; in units of the loss. The maximum is sought by Auto-PGD in
    z = δ ⊘ (ρ c), where the ball is that of radius 1: steps along the gradient's sign (l∞) or
    along the normalised gradient (l2) of length 2, halved at checkpoints that saw too few rises,
    with momentum 0.75. It starts at w; where an element of the gradient there (l∞), or all of it
    (l2), is exactly zero, the first step goes by the gradient at a random point of the ball, so
    that an exact minimum is not taken for flat. A weight of zero stays where it is under
    `adaptive`. The rise is the largest seen, a lower bound of the maximum. Differs from the
    authors' code in this: their l2 steps under `adaptive` are normalised, and projected, in δ and
    not in z; and their momentum term has its sign reversed, against the formula that they and
    Auto-PGD state, which is the one used here. Further (recalled), they count improvements on the
    best loss where Auto-PGD and this count rises from step to step, do not go back to the best
    point at a halving, count checkpoints from zero, and apply momentum from the first step on.

    Args:
        objective: L, at its parameters w.
        key: PRNG key; it matters only where a gradient is exactly zero.
        rho: ρ. The source's grids for residual networks are 0.001 to 0.008 (l∞, adaptive),
            0.0005 to 0.004 (l∞) and 0.25 to 2 (l2, either).
        norm: p of the ball.
        adaptive: c = |w| element by element, rather than 1.
        subsets: k; as many as fit where there are fewer examples.
        batch_size: m; the first k · m examples are taken, in order. Fewer than m examples make one
            subset.
        steps: of Auto-PGD.
        normalize_logits: each example's outputs are centred and divided by their norm first.

    Returns:
        `standard_error` is None: the maximisation's error has one sign and is not random.
        `converged` is a local certificate: on every subset the loss rose, by more than its
        rounding can have moved by 1 %, and at the best point no move within the ball promises, to
        first order, more than 1 % of the rise. Never under
        `recalibrated` batch norm, whose gradients hold the statistics fixed. Details, a row a
        subset: `rises`, `first_order_gap`, `losses` = L_B(w). Where the loss is not finite at a
        point that was tried, the value is NaN.

    Raises:
        InputError: `normalize_logits` without a network; under batch norm by the chunk's
            statistics, a chunk that does not divide `batch_size`.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 50 * jnp.sum(w**2), jnp.zeros(2), (jnp.ones((1, 1)), jnp.ones(1)))
        >>> spec = {"worst_case_sharpness": {"rho": 0.1, "adaptive": False}}
        >>> round(sf.measure(bowl, spec).value, 3)  # 50 · 2 · 0.1²
        1.0

    Source: Andriushchenko et al. (2023); Auto-PGD: Croce & Hein (2020), algorithm 1.
    """
    rows = subset_rows(objective.data.size, subsets, batch_size)
    part = with_normalized_logits(objective, normalize_logits)
    found = _largest_rises(part, key, rows, rho, norm, adaptive, steps)
    rises, gaps, losses, finite = (np.asarray(column, np.float64) for column in found)
    seen = above_rounding(rises, losses, found[0].dtype, TOLERANCE)
    rose = bool(((rises > 0) & (gaps <= TOLERANCE * rises) & seen).all())
    value = float(rises.mean()) if finite.all() else float("nan")
    details = {"rises": rises, "first_order_gap": gaps, "losses": losses}
    converged = exact_gradient(objective) and rose and math.isfinite(value)
    return Estimate(value, None, converged, details)


@functools.partial(jax.jit, static_argnames=("norm", "adaptive", "steps"))
def _largest_rises(
    objective: Objective,
    key: jax.Array,
    rows: jax.Array,
    rho: float,
    norm: Norm,
    adaptive: bool,
    steps: int,
) -> tuple[jax.Array, ...]:
    """For each subset the rise, the first-order gap, L_B(w), and whether all was finite."""
    radius = trees.scale(rho, scales(objective.params, adaptive))

    def subset(row: jax.Array) -> tuple[jax.Array, ...]:
        ball = Ball(objective.subset(row), radius, norm)
        best, loss, finite = ascend(ball, key, steps)
        return best.loss - loss, ball.gap(best), loss, finite

    return jax.lax.map(subset, rows)
