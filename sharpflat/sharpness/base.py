"""What every metric is made of: `Estimate`, the common checks, independent draws."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import trees
from sharpflat.objective import Objective
from sharpflat.registry import Entry
from sharpflat.validation import InputError


class Estimate(NamedTuple):
    """A measured number with what is known of its quality.

    Attributes:
        value: the scalar that tables and correlations use.
        standard_error: the estimator's own randomness at fixed data and parameters; 0 if it has
            none, None if it is not known.
        converged: the method's own criterion held; False where only an iteration limit ended it.
        details: arrays by name.
    """

    value: float
    standard_error: float | None
    converged: bool
    details: dict[str, Any] = {}  # noqa: RUF012 — never written to

    @classmethod
    def from_samples(cls, samples: Any, **details: Any) -> Estimate:
        """The mean of independent draws `[k]`, with standard error s/√k (None for one draw).

        Raises:
            ValueError: no draws.
        """
        values = np.asarray(samples, dtype=np.float64)
        if values.ndim != 1 or len(values) == 0:
            raise ValueError(f"samples: expected a vector of draws, got shape {values.shape}")
        with np.errstate(invalid="ignore"):  # of infinite draws the error is NaN
            spread = float(values.std(ddof=1)) if len(values) > 1 else None
            mean = float(values.mean())
        error = None if spread is None else spread / len(values) ** 0.5
        converged = bool(np.isfinite(values).all())
        return cls(mean, error, converged, {"samples": values, **details})

    @classmethod
    def from_ratio(cls, numerators: Any, denominators: Any, **details: Any) -> Estimate:
        """Σ a_i / Σ b_i over independent draws of pairs `[k]`, with the delta method's error.

        The standard error is s(a_i − R b_i) / (√k |b̄|), R the ratio; NaN where Σ b_i is 0.

        Raises:
            ValueError: no draws, or not as many numerators as denominators.
        """
        above, below = (np.asarray(part, dtype=np.float64) for part in (numerators, denominators))
        if above.ndim != 1 or len(above) == 0 or above.shape != below.shape:
            raise ValueError(f"draws: expected pairs, got shapes {above.shape} and {below.shape}")
        if below.sum() == 0:
            return cls(float("nan"), None, False, {"numerators": above, "denominators": below})
        ratio = float(above.sum() / below.sum())
        rest = cls.from_samples(above - ratio * below)
        error = None if rest.standard_error is None else rest.standard_error / abs(below.mean())
        samples = {"numerators": above, "denominators": below}
        return cls(ratio, error, bool(np.isfinite(ratio)), {**samples, **details})


ROUNDINGS = 8
"""Units in the last place by which a loss may be wrong: it is a sum over many examples."""


def above_rounding(rise: Any, loss: Any, dtype: Any, tolerance: float = 0.01) -> Any:
    """Whether the rounding of L, 8 units of it, is at most `tolerance` of a rise above L."""
    rounding = ROUNDINGS * float(jnp.finfo(dtype).eps) * np.abs(loss)
    return rounding <= tolerance * np.abs(rise)


def key_of(seed: Any) -> jax.Array:
    """The PRNG key that metrics are handed.

    Raises:
        InputError: no whole number from 0 to 2^32 − 1.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**32:
        raise InputError(f"seed: expected a whole number from 0 to 2^32 - 1, got {seed!r}")
    return jax.random.key(number)


def checked(entry: Entry, estimate: Any) -> Estimate:
    """What a metric returned, as plain numbers; where not finite, without error or certificate.

    Raises:
        InputError: no Estimate, or no scalar.
    """
    if not isinstance(estimate, Estimate):
        raise InputError(
            f"{entry.name}: returned {type(estimate).__name__}, not an Estimate: "
            f"write sf.Estimate(value, ...)"
        )
    if jnp.ndim(estimate.value) != 0:
        raise InputError(f"{entry.name}: value has shape {jnp.shape(estimate.value)}, not a scalar")
    error, finite = estimate.standard_error, math.isfinite(estimate.value)
    return estimate._replace(
        value=float(estimate.value),
        standard_error=None if error is None or not finite else float(error),
        converged=bool(estimate.converged) and finite,
    )


def needs_outputs(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """The check of metrics that look at a network's outputs."""
    objective.need_outputs("outputs")


def needs_single_examples(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """The check of metrics that look at one example's loss or gradient."""
    objective.need_single_examples("an example's own loss")


def selects_parameters(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """The check of metrics with `parameters`, a pattern, and `k` of them and of steps at most."""
    size, k = trees.size(objective.restrict(arguments["parameters"]).params), arguments.get("k", 0)
    if k > size:
        raise InputError(f"k: {k} is above the {size} parameters")
    if k > arguments.get("max_steps", k):
        raise InputError(f"k: {k} is above max_steps, {arguments['max_steps']}; raise that")


def fits_examples(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """The check of metrics that draw batches of `batch_size` examples."""
    if arguments["batch_size"] > objective.data.size:
        raise InputError(
            f"batch_size: {arguments['batch_size']} is above the {objective.data.size} examples"
        )


def map_draws(
    function: Callable[..., Any], objective: Objective, key: jax.Array, draws: int, *args: Any
) -> Any:
    """`function(objective, key_i, *args)` for `draws` independent keys, in one compiled loop.

    Args:
        function: gives an array (or tree) for one draw; it is compiled once, so let it live at
            module level.
        objective: handed on.
        key: PRNG key, split into one a draw.
        draws: how many.
        *args: numbers or arrays handed on.

    Returns:
        The results, stacked: `[draws, ...]`.
    """
    return _map_draws(function, objective, jax.random.split(key, draws), args)


@functools.partial(jax.jit, static_argnums=0)
def _map_draws(function: Any, objective: Objective, keys: jax.Array, args: Any) -> Any:
    return jax.lax.map(lambda key: function(objective, key, *args), keys)
