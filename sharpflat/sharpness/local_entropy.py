"""Local entropy (Chaudhari et al. 2017): the free energy of the loss around the parameters."""

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
from sharpflat.sharpness.base import Estimate
from sharpflat.sharpness.langevin import (
    POWER_STEPS,
    Posterior,
    Trace,
    chain,
    drifts,
    largest_curvature,
    passes,
    recorded,
    too_noisy,
    too_wide,
)
from sharpflat.sharpness.subsets import exact_gradient, whole_chunks
from sharpflat.validation import Count, NaturalNumber, Positive

OF_STABLE = 2.0
"""ε k, k the largest curvature; the step is stable below 4."""

OUTER = np.array([0.9604912687080202, 0.7745966692414834, 0.4342437493468026])
NODES = (np.concatenate([-OUTER, [0.0], OUTER[::-1]]) + 1) / 2
HALF = np.array([0.1046562260264673, 0.2684880898683334, 0.4013974147759622])
KRONROD = np.concatenate([HALF, [0.4509165386584741], HALF[::-1]]) / 2
GAUSS = np.array([0, 5, 0, 8, 0, 5, 0]) / 18
"""Gauss and Kronrod weights on [0, 1], three and seven points: exact to degree 5 and 11."""

CLOSE, FORGET = 0.1, 2


def _cost(examples: int, arguments: Mapping[str, Any]) -> float:
    steps = arguments["chains"] * len(NODES) * (arguments["burn_in"] + arguments["steps"])
    batch_size = arguments["batch_size"]
    power = min(batch_size / examples, 1) * 2 * POWER_STEPS
    return steps * passes(batch_size, examples) + power + 1 / 3


@metric(cost=_cost, checks=(whole_chunks,))
def local_entropy(
    objective: Objective,
    key: jax.Array,
    *,
    sigma: Positive = 0.01,
    inverse_temperature: Positive = 1.0,
    chains: Count = 8,
    steps: Count = 8,
    burn_in: NaturalNumber = 4,
    batch_size: Count = 256,
) -> Estimate:
    """The free energy of the loss under Gaussian noise: −log of the mean of exp(−loss).

    F = −log E exp(−t L(w + δ)), δ ~ N(0, σ² I), in nats: with γ = 1 / σ² and t = 1 the source's
    local entropy log ∫ exp(−L(w') − ½ γ ‖w' − w‖²) dw' is −F + ½ p log(2π / γ). Large is sharp. It
    is what `low_pass_filter` becomes when low losses count more, t E L(w + δ) at most and close
    to it where t L varies little. On a quadratic at its minimum F = t L(w) + ½ Σ log(1 + t h_i σ²).
    By thermodynamic integration, which one chain alone cannot replace: F = ∫₀¹ E_β[t L] dβ over
    p_β(w') ∝ exp(−β t L(w') − ½ γ ‖w' − w‖²), at the seven Kronrod points of β, each from
    Langevin chains on mini-batches that start from N(w, σ² I); their step is exact for Gaussians.
    The batches' noise widens p_β by about 1 + ε t² S / 4, S the variance of a batch's gradient
    and ε ≤ 2 σ² the step: little unless t is large.

    Args:
        objective: L, at its parameters w.
        key: PRNG key.
        sigma: σ, the standard deviation of the noise. The default is that of `low_pass_filter`, by
            our choice: the source sets γ = 1 / σ² for its training, and lets it grow.
        inverse_temperature: t; the source has 1, with L the mean loss.
        chains: independent chains for each of the seven β.
        steps: of each chain, whose losses count.
        burn_in: steps before them, whose losses do not; it takes 1 + t h σ² steps to forget the
            start to 1/e.
        batch_size: examples a step, without replacement; all of them if there are fewer.

    Returns:
        `standard_error` is that of the mean over chains, each summed over β; None for one, or where
        a loss is not finite.
        `converged` if all is finite; `burn_in` is at least 2 (1 + t h σ²), h the largest curvature
        that ten Hessian–vector products on one batch find at w; the chains do not drift (their
        second halves differ from the first at 99 % confidence and by 1 %); they are not seen to be
        wider than p_β (`excess` above 0 at 99 % confidence and by 10 % of the rise), nor can the
        batches' noise make them so (`raised` is below 10 % of the rise at 99 % confidence); and the
        quadrature holds: its seven-point value and the three-point one within it differ by 10 % of
        F − t L(w) at most, beyond their errors. On a quadratic that holds up to t h σ² of about 25,
        where the seven-point value is 0.1 % off. Never with one chain, nor under `recalibrated`
        batch norm, whose gradients hold the statistics fixed. Details: `rise` = F − t L(w),
        `loss` = L(w), `chains` = F − t L(w) of each, `energies` = E_β[t L] − t L(w) for each β,
        `nodes` = β, `quadrature_gap`, `curvature` = h, which also sets the step, `excess`, how much
        the chains' width seems to raise F on a quadratic of curvatures between 0 and h: that of
        (w' − w) · ∇(−log p_β) over its mean under p_β, times ½ t h / (β t h + γ), integrated over
        β; and `raised`, by how much the batches' noise does at most, likewise.

    Raises:
        InputError: under batch norm by the chunk's statistics, a chunk that does not divide
            `batch_size`.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 0.5 * jnp.sum(w**2), jnp.zeros(1000),
        ...     (jnp.ones((1, 1)), jnp.ones(1)))
        >>> estimate = sf.measure(bowl, "local_entropy", sigma=1.0)
        >>> bool(abs(estimate.value / (0.5 * 1000 * jnp.log(2)) - 1) < 0.05)
        True

    Source: Chaudhari et al. (2017), local entropy; Kirkwood (1935) for the integral.
    """
    t = inverse_temperature
    found, loss, curvature = _energies(
        objective, key, sigma, t, chains, burn_in + steps, batch_size, burn_in
    )
    energies = t * recorded(found.rise, burn_in)
    trace = np.einsum("q,cqs->cs", KRONROD, energies)
    steepness = t * float(curvature) * sigma**2
    shares = 0.5 * steepness / (1 + NODES * steepness)
    excess = np.einsum("q,cqs->cs", KRONROD * shares, recorded(found.excess, burn_in))
    # ε k = 2 where it is largest, so that x_i is twice the noise at most.
    raised = np.einsum("q,cqs->cs", KRONROD * shares, 2 * recorded(found.noise, burn_in))
    rises = trace.mean(axis=1)
    estimate = Estimate.from_samples(rises)
    gaps = (energies.mean(axis=2) * (KRONROD - GAUSS)[None]).sum(axis=1)
    gap, noise = gaps.mean(), gaps.std(ddof=1) / math.sqrt(chains) if chains > 1 else math.nan
    close = abs(gap) <= CLOSE * abs(estimate.value) + 3 * noise
    details = {
        "rise": np.float64(estimate.value),
        "loss": np.float64(loss),
        "chains": rises,
        "energies": energies.mean(axis=(0, 2)),
        "nodes": NODES,
        "quadrature_gap": np.float64(gap),
        "curvature": np.asarray(curvature),
        "excess": np.float64(excess.mean()),
        "raised": np.float64(raised.mean()),
    }
    value = t * float(loss) + estimate.value
    forgotten = burn_in >= FORGET * (1 + steepness)
    narrow = not too_wide(excess, trace) and not too_noisy(raised, trace)
    settled = not drifts(trace) and narrow
    error = estimate.standard_error if estimate.converged else None
    converged = exact_gradient(objective) and settled and forgotten and bool(close)
    return Estimate(value, error, converged, details)


@functools.partial(jax.jit, static_argnames=("chains", "steps", "batch_size", "burn_in"))
def _energies(
    objective: Objective,
    key: jax.Array,
    sigma: float,
    inverse_temperature: float,
    chains: int,
    steps: int,
    batch_size: int,
    burn_in: int,
) -> tuple[Trace, jax.Array, jax.Array]:
    """What each chain leaves, `[chains, nodes, steps]`, L(w) and the curvature h."""
    of_curvature, of_chains = jax.random.split(key)
    curvature = largest_curvature(objective, of_curvature, batch_size)
    pull = 1 / sigma**2

    def one(parts: tuple[jax.Array, jax.Array]) -> Trace:
        key, beta = parts
        of_start, of_chain = jax.random.split(key)
        strength = beta * inverse_temperature
        step_size = OF_STABLE / (strength * curvature + pull)
        noise = trees.random_like(of_start, objective.params, sampler=jax.random.normal)
        start = trees.add_scale(objective.params, sigma, noise)
        posterior = Posterior(strength, pull)
        given = (posterior, step_size, start, steps, batch_size, burn_in)
        return chain(objective, of_chain, *given)

    keys = jax.random.split(of_chains, chains * len(NODES))
    betas = jnp.tile(jnp.asarray(NODES, curvature.dtype), chains)
    flat = jax.lax.map(one, (keys, betas))
    found = Trace(*(part.reshape(chains, len(NODES), steps) for part in flat))
    return found, objective.loss(objective.params), curvature
