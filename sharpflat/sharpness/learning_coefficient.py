"""The local learning coefficient of Lau et al. (2023): how fast the loss's basin fills up."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

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
from sharpflat.validation import Count, InputError, NaturalNumber, Positive

MIXED, FILLED = 1.1, 4.0
ABOVE = 1.1
"""The largest curvature may be so much above what ten power steps find, which is from below."""

OF_STABLE = 1.0
"""ε k for the default step, k the largest curvature; the step is stable below 4."""


def _cost(examples: int, arguments: Mapping[str, Any]) -> float:
    steps = arguments["chains"] * (arguments["burn_in"] + arguments["steps"])
    batch_size = arguments["batch_size"]
    power = min(batch_size / examples, 1) * 2 * POWER_STEPS
    return steps * passes(batch_size, examples) + power


def _two_examples(objective: Objective, arguments: Mapping[str, Any]) -> None:
    if objective.data.size < 2:
        raise InputError("data: β = 1 / log n needs two examples at least")


@metric(cost=_cost, checks=(_two_examples, whole_chunks))
def local_learning_coefficient(
    objective: Objective,
    key: jax.Array,
    *,
    chains: Count = 4,
    steps: Count = 100,
    burn_in: NaturalNumber = 100,
    batch_size: Count = 256,
    step_size: Positive | None = None,
    localization: Positive = 1000.0,
) -> Estimate:
    """λ̂ = n β (E[L(w)] − L(w*)), the effective number of parameters of a minimum, halved.

    The mean is over p(w) ∝ exp(−n β L(w) − ½ γ ‖w − w*‖²), w* the objective's parameters, n the
    number of its examples (not of a batch), β = 1 / log n; without unit. For a regular minimum of
    p parameters λ → p / 2 as γ → 0; on a quadratic λ̂ = ½ Σ n β h_i / (n β h_i + γ). Langevin
    chains start at w*: w ← w − (ε/2) [n β ∇L_B(w) + γ (w − w*)] + √ε ξ. Differs from the source in
    that ξ is the mean of two successive Gaussians, which takes away the step's bias on Gaussians,
    1 / (1 − ε (n β h_i + γ) / 4) a term; and in that each batch's loss at w* is taken off, which
    leaves the mean. The batches' noise is not corrected for but judged: along a direction in which
    a batch's gradient has variance S it widens p by about 1 + ε (n β)² S / 4. The source
    leaves γ and ε to the user. γ bounds the part of the basin that counts, so that values compare
    at equal γ only.

    The chains start with no width. Along a direction of little curvature the drift is ε γ / 2 a
    step, so that the variance after t steps is short of its end by exp(−ε γ t); along one of
    curvature h_i by exp(−ε (n β h_i + γ) t). Where `burn_in` · ε γ ≥ 4 no direction, however flat,
    is short by more than 2 % when recording begins, and neither is λ̂. With the default ε that asks
    for n β h ≤ (`burn_in` / 4 − 1) γ, 24 γ by default.

    Args:
        objective: L, at its parameters w*, which should be a minimum.
        key: PRNG key.
        chains: independent chains, one after another.
        steps: of each chain, whose losses count.
        burn_in: steps before them, whose losses do not.
        batch_size: examples a step, without replacement; all of them if there are fewer.
        step_size: ε; None for 1 / (n β h + γ), a quarter of what is stable, with h the largest
            curvature that ten Hessian–vector products on one batch find at w*. At a degenerate
            minimum, far less curved than its surroundings, that is too long: say ε there.
        localization: γ.

    Returns:
        `standard_error` is that of the mean over chains; None for one. `converged` unless a chain
        failed (its loss is not finite, its mean is negative, as around no minimum, or above the
        number of parameters, twice what theory allows) or the chains, taken together, still drift
        (their second halves differ from the first at 99 % confidence and by 1 %), have come apart
        (split R̂ above 1.1), are seen to be wider than p (`excess` is above 0 at 99 % confidence
        and by 10 % of λ̂) or may be by the batches' noise (`raised` is not below 10 % of λ̂ at 99 %
        confidence; shorter steps or larger batches mend it), or there is only one, or the burn-in
        is short for the flattest directions, `burn_in` · ε γ < 4. A drift or excess within its
        error is not seen; what these leave, up to some 10 %, `standard_error` does not hold. Never
        under `recalibrated` batch norm, whose gradients hold the statistics fixed. Where a loss is
        not finite the value is NaN. Details: `chains` = λ̂ of each, `failed` a chain, `trace` = n β
        (L_B(w_t) − L_B(w*)) `[chains, burn_in + steps]`, `raised` a chain, by how much the batches'
        noise raises λ̂ at most, about, where the loss is quadratic and no single example rules the
        noise; `excess` a chain, half of what (w − w*) · ∇(−log p) has more in the mean than p gives
        it (its own noise is large), `r_hat`, `filled` = `burn_in` · ε γ, `step_size`, `curvature` =
        h, `n_beta`, `examples` = n.

    Raises:
        InputError: fewer than two examples; under batch norm by the chunk's statistics, a chunk
            that does not divide `batch_size`.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 0.5 * jnp.sum(w**2), jnp.zeros(1000),
        ...     (jnp.ones((9, 1)), jnp.ones(9)))
        >>> spec = {"local_learning_coefficient": {"localization": 9 / jnp.log(9)}}
        >>> bool(abs(sf.measure(bowl, spec).value - 250) < 20)  # γ = n β h: ¼ a parameter
        True

    Source: Lau et al. (2023), the estimator λ̂ and its sampler (SGLD).
    """
    n = objective.data.size
    n_beta = n / math.log(n)
    found, step_size, curvature = _chains(
        objective, jax.random.split(key, chains + 1), n_beta, localization, step_size,
        burn_in + steps, batch_size, burn_in,
    )  # fmt: skip
    trace, excess = n_beta * recorded(found.rise), recorded(found.excess, burn_in) / 2
    kept = trace[:, burn_in:]
    raised = recorded(found.noise, burn_in) / 2
    if batch_size < n:  # else there is no noise
        stable = 1 - float(step_size) * (ABOVE * n_beta * float(curvature) + localization) / 4
        raised = raised / stable if stable > 0 else np.full_like(raised, np.inf)
    means = kept.mean(axis=1)
    failed = ~((means >= 0) & (means <= trees.size(objective.params)))
    r_hat = split_r_hat(kept)
    filled = burn_in * float(step_size) * localization
    narrow = not too_wide(excess, kept) and not too_noisy(raised, kept)
    settled = not drifts(kept) and r_hat <= MIXED and narrow and filled >= FILLED
    finite = bool(np.isfinite(means).all())
    error = float(means.std(ddof=1) / math.sqrt(chains)) if chains > 1 and finite else None
    details = {
        "chains": means,
        "failed": failed,
        "trace": trace,
        "excess": excess.mean(axis=1),
        "raised": raised.mean(axis=1),
        "r_hat": np.float64(r_hat),
        "filled": np.float64(filled),
        "step_size": np.asarray(step_size),
        "curvature": np.asarray(curvature),
        "n_beta": np.float64(n_beta),
        "examples": np.asarray(n),
    }
    converged = exact_gradient(objective) and settled and not failed.any()
    return Estimate(float(means.mean()), error, converged, details)


def split_r_hat(trace: np.ndarray) -> float:
    """R̂ of chains `[k, steps]`, each cut into two: √(total variance / variance within).

    1 where the chains agree; NaN for chains of fewer than four steps.

    Source: Gelman et al. (2013), Bayesian Data Analysis, section 11.4.
    """
    half = trace.shape[1] // 2
    if half < 2:
        return math.nan
    halves = np.concatenate([trace[:, :half], trace[:, half : 2 * half]])
    within = halves.var(axis=1, ddof=1).mean()
    between = halves.mean(axis=1).var(ddof=1)
    if within == 0:
        return 1.0 if between == 0 else math.inf
    return float(np.sqrt((half - 1) / half + between / within))


@functools.partial(jax.jit, static_argnames=("steps", "batch_size", "burn_in"))
def _chains(
    objective: Objective,
    keys: jax.Array,
    n_beta: float,
    localization: float,
    step_size: float | None,
    steps: int,
    batch_size: int,
    burn_in: int,
) -> tuple[Trace, ArrayLike, jax.Array]:
    """What each chain leaves, ε and h."""
    curvature = largest_curvature(objective, keys[0], batch_size)
    step = OF_STABLE / (n_beta * curvature + localization) if step_size is None else step_size
    posterior = Posterior(n_beta, localization)

    def one(key: jax.Array) -> Trace:
        start = objective.params
        return chain(objective, key, posterior, step, start, steps, batch_size, burn_in)

    return jax.lax.map(one, keys[1:]), step, curvature
