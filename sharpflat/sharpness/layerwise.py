"""The Hessian layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sharpflat.curvature.krylov import Krylov, hessian
from sharpflat.curvature.lanczos import RISK, Eigenvalue, outermost_eigenvalue
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate, selects_parameters
from sharpflat.sharpness.hessian_moments import moments_of
from sharpflat.validation import Count, NaturalNumber, Positive


def _cost(examples: int, arguments: Mapping[str, Any]) -> float:
    """Of a dozen layers; a block's products cost about half of the whole Hessian's."""
    return 2 * (arguments["steps"] + arguments["probes"]) + 12 * 15


@metric(cost=_cost, checks=(selects_parameters,))
def layerwise_hessian(
    objective: Objective,
    key: jax.Array,
    *,
    probes: Count = 30,
    steps: NaturalNumber = 20,
    tolerance: Positive = 1e-3,
    max_steps: Count = 100,
    parameters: str = "*",
) -> Estimate:
    """Top eigenvalue and trace of every layer's own block of the Hessian; the value is the largest.

    A layer is all parameters of one module (`Dense_0/kernel` and `Dense_0/bias`); the block of a
    layer is the Hessian of L as a function of its parameters alone. Top eigenvalues by Lanczos, a
    block at a time; traces of all blocks from the probes of `hessian_trace`, which are shared.
    Units: loss per squared parameter.

    Args:
        objective: where to measure.
        key: PRNG key.
        probes: v's of the traces.
        steps: dimension of Q for the traces.
        tolerance: of each block's top eigenvalue, relative.
        max_steps: Lanczos steps a block at most.
        parameters: pattern of the parameters' names: only their layers.

    Returns:
        The value is the largest of the layers' top eigenvalues, `converged` if the certificate of
        `hessian_top_eigenvalues` holds for every layer, `standard_error` 0 then and else None.
        Details, a row a layer: `layers` (names), `sizes`, `top_eigenvalues`, `residuals`, `missed`,
        `traces`, `trace_standard_errors` (over probes).

    Raises:
        InputError: a pattern that fits no parameter.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> params = {"first": {"w": jnp.zeros(2)}, "second": {"w": jnp.zeros(3)}}
        >>> bowl = sf.Objective.from_function(
        ...     lambda p, batch: jnp.sum(p["first"]["w"]**2) + 2 * jnp.sum(p["second"]["w"]**2),
        ...     params, (jnp.ones((1, 1)), jnp.ones(1)))
        >>> sf.measure(bowl, "layerwise_hessian").details["top_eigenvalues"].round(3)
        array([2., 4.])

    Source: Yao et al. (2020, PyHessian), section 4 for blocks; Lanczos and Hutch++ as elsewhere.
    """
    part = objective.restrict(parameters)
    names = part.layers()
    layers = list(dict.fromkeys(map(_layer, names)))
    found = moments_of(hessian, objective, key, steps, probes, parameters)
    belongs = np.array([[_layer(name) == layer for layer in layers] for name in names], float)
    traces = (found.trace + found.traces) @ belongs
    spread = traces.std(axis=0, ddof=1) if len(traces) > 1 else np.full(len(layers), np.nan)
    sizes = np.array([np.size(leaf) for leaf in jax.tree.leaves(part.params)]) @ belongs
    blocks = [[name for name in names if _layer(name) == layer] for layer in layers]
    rows = [_top(part.restrict(block), key, tolerance, max_steps) for block in blocks]
    values, residuals, missed, *_ = np.array(rows).T
    converged = bool((residuals <= tolerance).all() and (missed <= RISK).all())
    details = {
        "layers": np.array(layers),
        "sizes": sizes.astype(int),
        "top_eigenvalues": values,
        "residuals": residuals,
        "missed": missed,
        "traces": traces.mean(axis=0),
        "trace_standard_errors": spread / np.sqrt(len(traces)),
    }
    return Estimate(float(values.max()), 0.0 if converged else None, converged, details)


def _layer(name: str) -> str:
    """The module of a parameter: its name without the last part, where it has several."""
    return name.rpartition("/")[0] or name


def _top(block: Objective, key: jax.Array, tolerance: float, steps: int) -> Eigenvalue:
    """A block's top eigenvalue with its certificate."""
    space = Krylov(hessian, block, key)
    return outermost_eigenvalue(space, tolerance=tolerance, max_steps=steps)
