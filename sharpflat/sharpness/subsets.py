"""What perturbations share: subsets of examples, scales, normalised logits, exact gradients.

Source: Andriushchenko et al. (2023), "A modern look at the relationship between sharpness and
generalization", and its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from sharpflat.objective import Objective
from sharpflat.validation import InputError

SMALLEST_NORM = 1e-10


def subset_rows(examples: int, subsets: int, batch_size: int) -> jax.Array:
    """Indices `[k, m]` of disjoint subsets of m = `batch_size` examples each, the first in order.

    k is `subsets`, or as many whole ones as fit; fewer than m examples make one subset.
    """
    size = min(batch_size, examples)
    count = min(subsets, examples // size)
    return jnp.arange(count * size).reshape(count, size)


def whole_chunks(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """The check of metrics on subsets of `batch_size` examples, each cut into whole chunks."""
    if arguments["batch_size"] is not None:
        needs_whole_chunks(objective, "batch_size", arguments["batch_size"])


def needs_whole_chunks(objective: Objective, name: str, size: int) -> None:
    """Refuse subsets that the chunk does not divide, under batch norm by the chunk's statistics."""
    size = min(size, objective.data.size)
    chunk = min(objective.chunk, size)
    if objective.batch_norm == "batch" and objective.has_batch_norm and size % chunk:
        raise InputError(
            f"{name}: the objective's chunk of {chunk} does not divide subsets of {size} "
            f"examples, as it must under batch_norm 'batch'"
        )


def exact_gradient(objective: Objective) -> bool:
    """Whether the gradient is that of the loss: recalibrated batch norm holds statistics fixed.

    A solver or a chain that trusts both has no certificate where they differ.
    """
    return objective.batch_norm != "recalibrated" or not objective.has_batch_norm


def scales(params: Any, adaptive: bool) -> Any:
    """c, a tree like `params`: |w| for adaptive measures, else 1."""
    return jax.tree.map(jnp.abs if adaptive else jnp.ones_like, params)


@dataclass(frozen=True)
class NormalizedLogits:
    """A loss of outputs whose mean is taken away and which are divided by their norm."""

    function: Callable[..., jax.Array]

    def __call__(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Each example's loss `[n]`."""
        centered = outputs - jnp.mean(outputs, axis=-1, keepdims=True)
        squared = jnp.sum(centered**2, axis=-1, keepdims=True)
        # Not a maximum of norms: the derivative of √0 is not finite.
        norms = jnp.sqrt(jnp.maximum(squared, SMALLEST_NORM**2))
        return self.function(centered / norms, labels)


def with_normalized_logits(objective: Objective, wanted: bool) -> Objective:
    """`objective`, with normalised logits if `wanted`."""
    return (
        replace(objective, function=NormalizedLogits(objective.function)) if wanted else objective
    )


def outputs_if_normalized(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """The check of metrics with `normalize_logits`."""
    if arguments["normalize_logits"]:
        objective.need_outputs("normalize_logits")
