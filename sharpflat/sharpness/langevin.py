"""Langevin chains around the parameters, on mini-batches, with the loss recorded on the way."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.typing import ArrayLike

from sharpflat import trees
from sharpflat.objective import Objective

POWER_STEPS = 10
CONFIDENCE, NEGLIGIBLE, EXCESS = 0.99, 0.01, 0.1
EXPLODED = 1e100


class Posterior(NamedTuple):
    """p(w) ∝ exp(−`strength` · L(w) − ½ `pull` ‖w − w*‖²), w* the objective's parameters."""

    strength: ArrayLike
    pull: ArrayLike


def chain(
    objective: Objective,
    key: jax.Array,
    posterior: Posterior,
    step_size: ArrayLike,
    start: Any,
    steps: int,
    batch_size: int,
) -> tuple[jax.Array, jax.Array]:
    """Rises and virials at `steps` points of a chain from `start`; for use in compiled programs.

    w ← w − (ε/2) [strength ∇L_B(w) + pull (w − w*)] + √ε (ξ_t + ξ_{t+1}) / 2, a fresh batch B of
    `batch_size` examples without replacement each time. With the mean of two successive ξ rather
    than ξ_t alone, the step leaves the variance of a Gaussian as it is for every stable ε (Euler's
    step widens it by 1 / (1 − ε k/4) where the curvature is k); either is stable for ε k < 4. The
    mini-batch's noise, of variance S along a direction, widens it there by about
    1 + ε strength² S / 4.

    Returns:
        L_B(w_t) − L_B(w*): the loss of the same batch at w* is taken off, which leaves the mean
        and takes most of the batch's noise; and (w_t − w*) · ∇U_B(w_t) / p, U = −log p and p the
        number of parameters, whose mean over the distribution is 1 whatever L is.

    Source: Leimkuhler & Matthews (2013); Welling & Teh (2011) for mini-batches.
    """
    center = objective.params

    def step(state: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], Any]:
        params, noise = state
        of_batch, of_noise = jax.random.split(key)
        part = _batch(objective, of_batch, batch_size)
        value, gradient = part.value_and_grad(params)
        away, fresh = trees.sub(params, center), _gaussian(of_noise, center)
        pulled = trees.scale(posterior.pull, away)
        drift = trees.add_scale(pulled, posterior.strength, gradient)
        moved = jax.tree.map(
            lambda w, d, a, b: w - step_size / 2 * d + jnp.sqrt(step_size) / 2 * (a + b),
            params, drift, noise, fresh,
        )  # fmt: skip
        virial = trees.vdot(away, drift) / trees.size(center)
        return (moved, fresh), (value - part.loss(center), virial)

    of_start, of_steps = jax.random.split(key)
    first = (start, _gaussian(of_start, center))
    return jax.lax.scan(step, first, jax.random.split(of_steps, steps))[1]


def largest_curvature(objective: Objective, key: jax.Array, batch_size: int) -> jax.Array:
    """About the largest |eigenvalue| of ∇²L_B at the objective's parameters, from below.

    Ten power steps on one batch; for use in compiled programs.
    """
    of_batch, of_vector = jax.random.split(key)
    part = _batch(objective, of_batch, batch_size)

    def step(_: int, state: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        product = part.hvp(part.params, state[0])
        size = trees.norm(product)
        return trees.scale(1 / jnp.where(size > 0, size, 1), product), size

    vector = trees.random_direction(of_vector, part.params)
    nothing = jnp.zeros_like(trees.norm(vector))
    return jax.lax.fori_loop(0, POWER_STEPS, step, (vector, nothing))[1]


def recorded(trace: jax.Array, burn_in: int = 0) -> np.ndarray:
    """A trace `[..., steps]` in double precision from step `burn_in` on, NaN where it exploded."""
    kept = np.asarray(trace, np.float64)[..., burn_in:]
    return np.where(np.abs(kept) < EXPLODED, kept, np.nan)


def drifts(trace: np.ndarray) -> bool:
    """Whether chains `[k, steps]` still move: their second halves differ from their first.

    Over chains, at 99 % confidence and by more than 1 % of the mean. One chain cannot tell, and
    neither can one step: both count as drifting.
    """
    half = trace.shape[1] // 2
    if len(trace) < 2 or half < 1:
        return True
    change = trace[:, half:].mean(axis=1) - trace[:, :half].mean(axis=1)
    return not abs(change.mean()) <= max(_margin(change), NEGLIGIBLE * abs(trace.mean()))


def too_wide(virials: np.ndarray) -> bool:
    """Whether chains `[k, steps]` are wider than their distribution: steps too long for it.

    Their mean virial is above 1 at 99 % confidence and by more than 10 %. A virial below 1 is no
    fault: directions without curvature fill up last, and count for nothing.
    """
    excess = virials.mean(axis=1) - 1
    return not excess.mean() <= max(_margin(excess), EXCESS)


def _margin(samples: np.ndarray) -> float:
    """Half the width of the 99 % confidence interval of the mean of `samples`; 0 for one."""
    if len(samples) < 2:
        return 0.0
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(samples) - 1) * error)


def _batch(objective: Objective, key: jax.Array, batch_size: int) -> Objective:
    if batch_size >= objective.data.size:
        return objective
    rows = jax.random.choice(key, objective.data.size, (batch_size,), replace=False)
    return objective.subset(rows)


def _gaussian(key: jax.Array, tree: Any) -> Any:
    return trees.random_like(key, tree, sampler=jax.random.normal)
