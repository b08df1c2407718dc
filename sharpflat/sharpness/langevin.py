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
from sharpflat.sharpness.gradient_norms import scaled

POWER_STEPS = 10
NOISE_EVERY = 8
"""Steps between two looks at the batches' noise, which cost a second batch's gradient."""

CONFIDENCE, NEGLIGIBLE, EXCESS = 0.99, 0.01, 0.1
EXPLODED = 1e100


class Posterior(NamedTuple):
    """p(w) ∝ exp(−`strength` · L(w) − ½ `pull` ‖w − w*‖²), w* the objective's parameters."""

    strength: ArrayLike
    pull: ArrayLike


class Trace(NamedTuple):
    """What a chain leaves of each of its steps, `[steps]`; see `chain`."""

    rise: jax.Array
    excess: jax.Array
    noise: jax.Array


def chain(
    objective: Objective,
    key: jax.Array,
    posterior: Posterior,
    step_size: ArrayLike,
    start: Any,
    steps: int,
    batch_size: int,
    recorded_from: int = 0,
) -> Trace:
    """What is seen at `steps` points of a chain from `start`; for use in compiled programs.

    w ← w − (ε/2) [strength ∇L_B(w) + pull (w − w*)] + √ε (ξ_t + ξ_{t+1}) / 2, a fresh batch B of
    `batch_size` examples without replacement each time. With the mean of two successive ξ rather
    than ξ_t alone, the step leaves the variance of a Gaussian as it is for every stable ε (Euler's
    step widens it by 1 / (1 − ε k/4) where the curvature is k); either is stable for ε k < 4. The
    mini-batch's noise, of variance S_i along direction i, widens it there: on a quadratic the
    chain's variance is (1 + x_i) / k_i, k_i = strength h_i + pull, with
    x_i = ε strength² S_i / (4 − ε k_i), which raises `strength` times the mean loss by
    ½ Σ (strength h_i / k_i) x_i, by ½ Σ x_i at most.

    Returns:
        `rise`: L_B(w_t) − L_B(w*); the loss of the same batch at w* is taken off, which leaves the
        mean and takes most of the batch's noise. `excess`: that of the virial
        (w_t − w*) · ∇U_B(w_t), U = −log p, whose mean over p is the number of parameters whatever L
        is, and Σ x_i more for such a chain. Instead of that number the virial of a second chain is
        taken off, which has the same start and the same ξ and feels the pull alone, so that what
        the loss leaves free counts for nothing, sample by sample. It sees steps that are too long,
        too, but as a difference of two chains it is noisy. `noise`: ¼ ε strength² ½ ‖g_B − g_B'‖²
        of two batches at the same point, at step `recorded_from`, every eighth before and after it,
        and kept between; the mean is Σ x_i (1 − ε k_i / 4).

    Source: Leimkuhler & Matthews (2013); Welling & Teh (2011) for mini-batches.
    """
    center = objective.params

    def noise_power(key: jax.Array, params: Any, gradient: Any) -> jax.Array:
        _, other = _batch(objective, key, batch_size).value_and_grad(params)
        difference = trees.norm(trees.sub(gradient, other))
        return step_size * posterior.strength**2 * difference**2 / 8

    def step(
        state: tuple[Any, ...], at: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[Any, ...], Trace]:
        params, free, noise, power = state
        number, key = at
        of_batch, of_noise = jax.random.split(key)
        part = _batch(objective, of_batch, batch_size)
        value, gradient = part.value_and_grad(params)
        away, fresh = trees.sub(params, center), _gaussian(of_noise, center)
        pushed = trees.scale(posterior.strength, gradient)

        def moved(point: Any, drift: Any) -> Any:
            return jax.tree.map(
                lambda w, d, a, b: (
                    w - step_size / 2 * d + jnp.sqrt(step_size) / 2 * (a + b)
                ).astype(w.dtype),
                point, drift, noise, fresh,
            )  # fmt: skip

        def pulled(point: Any) -> Any:
            return trees.scale(posterior.pull, point)

        farther = trees.vdot(trees.sub(away, free), trees.add(away, free))
        excess = trees.vdot(away, pushed) + posterior.pull * farther
        if batch_size < objective.data.size:
            looks = (number == 0) | ((number - recorded_from) % NOISE_EVERY == 0)
            power = jax.lax.cond(
                looks, noise_power, lambda *_: power,
                jax.random.fold_in(of_batch, 1), params, gradient,
            )  # fmt: skip
        pushed_on = moved(params, trees.add(pulled(away), pushed))
        ahead = pushed_on, moved(free, pulled(free)), fresh, power
        return ahead, Trace(value - part.loss(center), excess, power)

    of_start, of_steps = jax.random.split(key)
    nothing = jnp.zeros_like(trees.norm(center))
    first = (start, trees.sub(start, center), _gaussian(of_start, center), nothing)
    numbered = jnp.arange(steps), jax.random.split(of_steps, steps)
    return jax.lax.scan(step, first, numbered)[1]


def passes(batch_size: int, examples: int) -> float:
    """What a step costs, in gradients over all examples; the loss at w* is a third of a batch's."""
    if batch_size >= examples:
        return 4 / 3
    return (4 / 3 + 1 / NOISE_EVERY) * batch_size / examples


def largest_curvature(objective: Objective, key: jax.Array, batch_size: int) -> jax.Array:
    """About the largest |eigenvalue| of ∇²L_B at the objective's parameters, from below.

    Ten power steps on one batch; for use in compiled programs.
    """
    of_batch, of_vector = jax.random.split(key)
    part = _batch(objective, of_batch, batch_size)

    def step(_: int, state: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        unit, largest = scaled(part.hvp(part.params, state[0]))
        size = trees.norm(unit)
        return trees.scale(1 / jnp.where(size > 0, size, 1), unit), largest * size

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


def too_wide(excess: np.ndarray, trace: np.ndarray) -> bool:
    """Whether chains `[k, steps]` are seen to be wider than their distribution.

    Args:
        excess: by how much that may raise `trace`, from the excesses of `chain`.
        trace: what is averaged.

    Returns:
        Whether the mean excess is above 0 at 99 % confidence and by more than 10 % of the mean of
        `trace`. An excess below 0 is no fault of the width, and one within its error is not seen.
    """
    means = excess.mean(axis=1)
    return not means.mean() <= max(_margin(means), EXCESS * abs(trace.mean()))


def too_noisy(raised: np.ndarray, trace: np.ndarray) -> bool:
    """Whether the batches' noise may make chains `[k, steps]` wider than their distribution.

    Args:
        raised: by how much, at most, that raises `trace`, from the noise of `chain`.
        trace: what is averaged.

    Returns:
        False only where, at 99 % confidence, that is at most 10 % of the mean of `trace`.
    """
    means = raised.mean(axis=1)
    return not means.mean() + _margin(means) <= EXCESS * abs(trace.mean())


def _margin(samples: np.ndarray) -> float:
    """Half the width of the 99 % confidence interval of the mean of `samples`; 0 for one."""
    if len(samples) < 2:
        return 0.0
    with np.errstate(invalid="ignore"):
        error = samples.std(ddof=1) / np.sqrt(len(samples))
    return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(samples) - 1) * error)


def _batch(objective: Objective, key: jax.Array, batch_size: int) -> Objective:
    if batch_size >= objective.data.size:
        return objective
    rows = jax.random.choice(key, objective.data.size, (batch_size,), replace=False)
    return objective.subset(rows)


def _gaussian(key: jax.Array, tree: Any) -> Any:
    return trees.random_like(key, tree, sampler=jax.random.normal)
