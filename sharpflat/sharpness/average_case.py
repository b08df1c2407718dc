"""Average-case sharpness of Andriushchenko et al. (2023): the mean rise under random noise."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import trees
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate
from sharpflat.sharpness.subsets import (
    outputs_if_normalized,
    scales,
    subset_rows,
    whole_chunks,
    with_normalized_logits,
)
from sharpflat.validation import Count, Positive

Noise = Literal["gaussian", "uniform"]


def _cost(examples: int, arguments: Mapping[str, Any]) -> float:
    size = min(arguments["batch_size"] or examples, examples)
    used = size if arguments["batch_size"] is None else min(arguments["subsets"] * size, examples)
    losses = arguments["draws"] * (1 + arguments["antithetic"]) + 1
    return losses / 3 * used / examples


@metric(cost=_cost, checks=(whole_chunks, outputs_if_normalized))
def average_case_sharpness(
    objective: Objective,
    key: jax.Array,
    *,
    rho: Positive = 0.1,
    noise: Noise = "gaussian",
    adaptive: bool = True,
    draws: Count = 20,
    subsets: Count = 8,
    batch_size: Count | None = 128,
    antithetic: bool = False,
    normalize_logits: bool = False,
) -> Estimate:
    """The mean rise of the loss under random noise in proportion to the weights.

    (1/k) Σ_B E[L_B(w + δ)] − L_B(w), δ_i = ρ c_i u_i with u_i independent, standard normal or
    uniform on [−1, 1], and c = |w| (adaptive) or 1; over k disjoint subsets B of m examples, in
    units of the loss. ρ is a standard deviation (of `gaussian`) or a half-width (of `uniform`),
    not a variance. On a quadratic it is ½ ρ² Σ c_i² H_ii, and a third of that for `uniform`.

    Args:
        objective: L, at its parameters w.
        key: PRNG key of the noise; draws are independent, across subsets too.
        rho: ρ. The source's grids for residual networks are 0.05 to 0.4 (gaussian) and 0.1 to
            0.8 (uniform).
        noise: `gaussian` or `uniform`, the l2 and l∞ average cases of the source.
        adaptive: c = |w| element by element, rather than 1.
        draws: of δ a subset.
        subsets: k; as many as fit where there are fewer examples. Not used without `batch_size`.
        batch_size: m; the first k · m examples are taken, in order, and fewer than m make one
            subset. None for all examples together.
        antithetic: each draw is the mean over δ and −δ, for twice the work: terms of odd order,
            the gradient's first of all, leave the error, so that it pays where they rule it.
        normalize_logits: each example's outputs are centred and divided by their norm first.

    Returns:
        `standard_error` is that of the mean over draws at these subsets: √(Σ_B s_B² / draws) / k;
        None for one draw or where a draw is not finite. `converged` if every draw was. Details:
        `rises` `[k, draws]` and `losses` = L_B(w).

    Raises:
        InputError: `normalize_logits` without a network; under batch norm by the chunk's
            statistics, a chunk that does not divide `batch_size`.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> data = (jnp.ones((1, 1)), jnp.ones(1))
        >>> bowl = sf.Objective.from_function(lambda w, batch: 50 * w**2, jnp.array(1.0), data)
        >>> estimate = sf.measure(bowl, "average_case_sharpness", draws=4000, antithetic=True)
        >>> bool(abs(estimate.value - 0.5) < 0.05)  # ½ ρ² w² H, H = 100
        True

    Source: Andriushchenko et al. (2023), adaptive average-case sharpness; their code (20 draws).
    """
    part, rows = with_normalized_logits(objective, normalize_logits), None
    if batch_size is not None:
        rows = subset_rows(objective.data.size, subsets, batch_size)
    keys = jax.random.split(key, (1 if rows is None else len(rows), draws))
    found = _rises(part, keys, rows, rho, noise, adaptive, antithetic)
    rises, losses = (np.asarray(column, np.float64) for column in found)
    details = {"rises": rises, "losses": losses}
    error, finite = None, bool(np.isfinite(rises).all())
    if draws > 1 and finite:
        error = float(np.sqrt(rises.var(axis=1, ddof=1).sum() / draws) / len(rises))
    return Estimate(float(rises.mean()), error, finite, details)


@functools.partial(jax.jit, static_argnames=("noise", "adaptive", "antithetic"))
def _rises(
    objective: Objective,
    keys: jax.Array,
    rows: jax.Array | None,
    rho: float,
    noise: Noise,
    adaptive: bool,
    antithetic: bool,
) -> tuple[jax.Array, jax.Array]:
    """The rise for each subset and draw, and each subset's loss."""
    radius = trees.scale(rho, scales(objective.params, adaptive))

    def subset(parts: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        keys, row = parts
        part = objective if row is None else objective.subset(row)
        loss = part.loss(part.params)

        def draw(key: jax.Array) -> jax.Array:
            step = _noise(key, radius, noise)
            there = part.loss(trees.add(part.params, step))
            if antithetic:
                there = (there + part.loss(trees.sub(part.params, step))) / 2
            return there - loss

        return jax.lax.map(draw, keys), loss

    return jax.lax.map(subset, (keys, rows))


def _noise(key: jax.Array, radius: Any, noise: Noise) -> Any:
    """δ, of size `radius` element by element."""
    sampler = {"gaussian": jax.random.normal, "uniform": _uniform}[noise]
    return jax.tree.map(jnp.multiply, radius, trees.random_like(key, radius, sampler=sampler))


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -1, 1)
