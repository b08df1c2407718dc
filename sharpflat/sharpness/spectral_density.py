"""The spectral density of the Hessian."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sharpflat.curvature.krylov import Krylov, hessian, shared_space
from sharpflat.curvature.quadrature import Quadrature, joined, quadrature, smoothed
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate, selects_parameters
from sharpflat.validation import Count, InputError, Positive

MARGIN = 5
"""The grid's margins beyond the outermost nodes, in s."""


def _cost(examples: int, arguments: Mapping[str, Any]) -> float:
    return 2 * arguments["probes"] * arguments["steps"]


def _resolves_width(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """The grid holds the nodes and five s on both sides; between its points lies one s at most."""
    points, width = arguments["points"], arguments["width"]
    least = np.ceil(1 / width) + 2 * MARGIN + 1
    if points < least:
        raise InputError(f"points: {points} are too few for width {width}, at least {least:.0f}")


def _can_be_judged(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """One step gives the mean alone, and there are no fewer to compare it with."""
    if arguments["steps"] < 2:
        raise InputError(f"steps: {arguments['steps']} is too few, at least 2")


@metric(cost=_cost, checks=(selects_parameters, _resolves_width, _can_be_judged))
def hessian_spectral_density(
    objective: Objective,
    key: jax.Array,
    *,
    probes: Count = 6,
    steps: Count = 30,
    points: Count = 400,
    width: Positive = 0.01,
    parameters: str = "*",
) -> Estimate:
    """The density of the Hessian's eigenvalues, with a band; the value is their mean, tr(H) / p.

    ρ(t) = E Σ_j w_j N(t; λ_j, s²) by stochastic Lanczos quadrature: from a random start each probe
    gives Gauss nodes λ_j and weights w_j, smoothed by a Gaussian of s = `width` × the range of the
    nodes, or × a thousandth of the uppermost one's size if that is more (1 where all are 0). Full
    reorthogonalisation: no ghost copies. The probes' spread is the band: with few of them the bulk
    near zero is known far better than the outliers, each of mass 1/p. The defaults are for a look:
    Ghorbani et al. take about ten starts of 80 to 90 steps, and in their released code a narrower
    s² = 1e-5 × the range. Units: eigenvalues, and the value, loss per squared parameter; the
    density one over that.

    Args:
        objective: where to measure.
        key: PRNG key of the starts.
        probes: random starts; the first is the space of the other Lanczos measures.
        steps: Lanczos steps a start, 2 or more: the outermost eigenvalues are resolved, the bulk is
            smoothed.
        points: of the grid, whose spacing is s at most: 11 + 1 / `width` or more.
        width: standard deviation of the smoothing, in units of the range of the nodes.
        parameters: pattern of the parameters' names: the density of their block.

    Returns:
        `standard_error` of the mean eigenvalue over probes (None for one). `converged` if the
        density from three quarters of the steps differs by at most 0.05 in total mass, and its
        outermost nodes, whose mass may be nothing, by at most s; or if there are as many steps as
        parameters, which leaves nothing out. Details: `grid`, `density`,
        `density_standard_error` `[points]`; `nodes`, `weights` `[probes, steps]`; `negative_mass`,
        the share of eigenvalues below −3 s; `change` of mass, `edge_change` of the outermost nodes.

    Raises:
        InputError: a pattern that fits no parameter; before any work, one step, or too few `points`
            for `width`.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> h, data = jnp.array([4.0, 1.0, 1.0]), (jnp.ones((1, 1)), jnp.ones(1))
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 0.5 * jnp.sum(h * w**2), jnp.zeros(3), data)
        >>> found = sf.measure(bowl, "hessian_spectral_density").details
        >>> found["nodes"][0, :2].round(3)
        array([1., 4.])

    Source: Ghorbani, Krishnan and Xiao (2019), section 2; Ubaru, Chen and Saad (2017).
    """
    space = shared_space(hessian, objective, key, parameters)
    rule, fewer = _rules(space, key, probes, min(steps, space.size))
    low, high = edges = _edges(rule)
    s = width * (max(high - low, 1e-3 * abs(high)) or 1.0)
    grid = np.linspace(low - MARGIN * s, high + MARGIN * s, points)
    densities = smoothed(rule, grid, s)
    density = densities.mean(axis=0)
    change = float(np.trapezoid(np.abs(density - smoothed(fewer, grid, s).mean(axis=0)), grid))
    edge_change = np.abs(edges - _edges(fewer)).max()
    spread = densities.std(axis=0, ddof=1) if probes > 1 else np.full(points, np.nan)
    estimate = Estimate.from_samples(np.sum(rule.weights * rule.nodes, axis=1))
    details = {
        "grid": grid,
        "density": density,
        "density_standard_error": spread / np.sqrt(probes),
        "nodes": rule.nodes,
        "weights": rule.weights,
        "negative_mass": np.sum(rule.weights * (rule.nodes < -3 * s)) / probes,
        "change": np.float64(change),
        "edge_change": edge_change,
    }
    settled = steps >= space.size or bool(change <= 0.05 and edge_change <= s)
    return estimate._replace(converged=settled, details=details)


def _edges(rule: Quadrature) -> np.ndarray:
    """The lowest and the uppermost node of all starts, `[2]`."""
    nodes = rule.nodes[rule.weights > 0]
    return np.array([nodes.min(), nodes.max()])


def _rules(first: Krylov, key: jax.Array, probes: int, steps: int) -> tuple[Quadrature, Quadrature]:
    """Of all starts, at `steps` and three quarters of them; beside `first` one space at a time."""

    def both(space: Krylov) -> tuple[Quadrature, Quadrature]:
        return quadrature(space, steps), quadrature(space, max(1, steps * 3 // 4))

    starts = [jax.random.fold_in(key, probe) for probe in range(1, probes)]
    pairs = [both(first), *(both(Krylov(hessian, first.objective, start)) for start in starts)]
    rules, fewer = zip(*pairs, strict=True)
    return joined(rules), joined(fewer)
