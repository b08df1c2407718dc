"""The low-pass filter measure of Bisla et al. (2022): the loss smoothed by a Gaussian kernel."""

from __future__ import annotations

import jax
import numpy as np

from sharpflat import trees
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate, map_draws
from sharpflat.validation import Count, Positive


@metric(cost=lambda examples, arguments: (arguments["draws"] + 1) / 3)
def low_pass_filter(
    objective: Objective, key: jax.Array, *, sigma: Positive = 0.01, draws: Count = 100
) -> Estimate:
    """The mean loss under Gaussian noise on the parameters, the loss smoothed at their place.

    (L ∗ K)(w) = E[L(w + δ)], δ ~ N(0, σ² I): the loss through a low-pass filter, in its units. It
    holds L(w) itself, as the source defines it; the rise alone is in the details. σ is a standard
    deviation. On a quadratic the rise is ½ σ² tr H.

    Args:
        objective: L, at its parameters w.
        key: PRNG key of the noise.
        sigma: σ, the kernel's standard deviation.
        draws: of δ, independent.

    Returns:
        `standard_error` is that of the mean over draws; None for one draw or where a draw is not
        finite. `converged` if every draw was. Details: `samples` = L(w + δ), `loss` = L(w),
        `rise` = value − L(w).

    Raises:
        InputError: never for itself.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> flat = sf.Objective.from_function(
        ...     lambda w, batch: 0 * jnp.sum(w) + 2, jnp.ones(3), (jnp.ones((1, 1)), jnp.ones(1)))
        >>> sf.measure(flat, "low_pass_filter").value
        2.0

    Source: Bisla et al. (2022), "Low-pass filtering SGD for recovering flat optima".
    """
    losses = map_draws(_smoothed, objective, key, draws, sigma)
    here = float(objective.loss(objective.params))
    with np.errstate(invalid="ignore"):  # the spread of draws that are not finite
        estimate = Estimate.from_samples(losses, loss=np.float64(here))
    estimate.details["rise"] = np.float64(estimate.value - here)
    return estimate if estimate.converged else estimate._replace(standard_error=None)


def _smoothed(objective: Objective, key: jax.Array, sigma: jax.Array) -> jax.Array:
    noise = trees.random_like(key, objective.params, sampler=jax.random.normal)
    return objective.loss(trees.add_scale(objective.params, sigma, noise))
