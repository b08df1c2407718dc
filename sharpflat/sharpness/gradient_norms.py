"""Norms of the loss's gradients, and the curvature that batches' gradients meet."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import trees
from sharpflat.batch import Batch, map_over_chunks
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate, fits_examples, needs_single_examples
from sharpflat.validation import Count, InputError


def real_inputs(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """The check of metrics that vary the inputs."""
    kind = objective.data.inputs.dtype
    if not jnp.issubdtype(kind, jnp.floating):
        raise InputError(f"inputs: expected real numbers, got {kind}")


def takes_batches(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """The check of metrics that draw batches: `subset` must give one."""
    indices = jax.ShapeDtypeStruct((arguments["batch_size"],), jnp.int32)
    jax.eval_shape(Objective.subset, objective, indices)


def held_fixed(objective: Objective) -> Objective:
    """The same derivatives with the batch-norm averages of this point, whatever the examples."""
    if objective.batch_norm != "recalibrated":
        return objective
    state = objective.state_at(objective.params)
    return replace(objective, model_state=state, batch_norm="running")


def scaled(tree: Any) -> tuple[Any, jax.Array]:
    """`tree` over its largest magnitude, so that squares stay in range, and that magnitude."""
    leaves = jax.tree.leaves(tree)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]))
    divisor = jnp.where(largest > 0, largest, 1)
    return jax.tree.map(lambda leaf: (leaf / divisor).astype(leaf.dtype), tree), largest


@metric(cost=lambda n, a: 1.0)
def gradient_norm(objective: Objective, key: jax.Array) -> Estimate:
    """‖∇L‖₂, the Euclidean norm of the gradient over all examples and all parameters.

    Units: loss per parameter. Under `recalibrated` batch norm the gradient holds the statistics
    fixed.

    Args:
        objective: where to measure.
        key: not used.

    Returns:
        `standard_error` is 0; `converged` if the norm is finite. Details: `largest` = ‖∇L‖_∞ and
        `loss` = L.

    Raises:
        InputError: never for itself.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 0.5 * jnp.sum(w**2), jnp.array([3.0, 4.0]),
        ...     (jnp.ones((1, 1)), jnp.ones(1)))
        >>> sf.measure(bowl, "gradient_norm").value
        5.0

    Source: Zhao, Zhang and Hu (2022), who penalise it as a measure of flatness.
    """
    loss, norm, largest = (float(number) for number in _gradient(objective))
    return Estimate(norm, 0.0, bool(np.isfinite(norm)), {"largest": largest, "loss": loss})


@jax.jit
def _gradient(objective: Objective) -> tuple[jax.Array, jax.Array, jax.Array]:
    loss, gradient = objective.value_and_grad(objective.params)
    direction, largest = scaled(gradient)
    return loss, largest * trees.norm(direction), largest


@metric(cost=lambda n, a: 1.0, checks=(needs_single_examples, real_inputs))
def input_gradient_norm(objective: Objective, key: jax.Array) -> Estimate:
    """(1/n) Σ_i ‖∇_x ℓ(x_i, y_i)‖₂, the mean norm of the loss's gradient by the example's input.

    Units: loss per unit of input. One gradient of each chunk's summed loss gives all of its
    examples' at once, as no example's loss depends on another's input; a loss that was given as a
    function must therefore be a mean over its batch's examples.

    Args:
        objective: where to measure.
        key: not used.

    Returns:
        `standard_error` is 0: the examples are the data. `converged` if finite. Details:
        `largest` and `root_mean_square` of the n norms.

    Raises:
        InputError: inputs that are not real numbers; batch norm under `batch`, where an example's
            loss depends on the others of its chunk.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> data = (jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.zeros(2))
        >>> line = sf.Objective.from_function(
        ...     lambda w, batch: jnp.mean(batch.inputs @ w), jnp.array([3.0, 4.0]), data)
        >>> sf.measure(line, "input_gradient_norm").value
        5.0

    Source: Drucker and LeCun (1992), who penalise its square; Novak et al. (2018) take the whole
    Jacobian of the outputs, of which this is the part that the loss sees.
    """
    norms = np.asarray(_input_gradient_norms(objective), np.float64)
    details = {"largest": norms.max(), "root_mean_square": np.sqrt(np.mean(norms**2))}
    return Estimate(float(norms.mean()), 0.0, bool(np.isfinite(norms).all()), details)


@jax.jit
def _input_gradient_norms(objective: Objective) -> jax.Array:
    fixed = held_fixed(objective)

    def chunk(batch: Batch) -> jax.Array:
        def total(inputs: jax.Array) -> jax.Array:
            data = Batch(inputs, batch.labels)
            return batch.size * replace(fixed, data=data, chunk=batch.size).loss(fixed.params)

        gradients = jax.grad(total)(batch.inputs).reshape(batch.size, -1)
        return jnp.linalg.norm(gradients, axis=1)

    return map_over_chunks(chunk, objective.data, objective.chunk)


@metric(
    cost=lambda n, a: 3 * a["draws"] * a["batch_size"] / n, checks=(fits_examples, takes_batches)
)
def batch_sharpness(
    objective: Objective, key: jax.Array, *, batch_size: Count = 16, draws: Count = 100
) -> Estimate:
    """E_B[g_Bᵀ H_B g_B / ‖g_B‖²], the curvature that a batch has along its own gradient.

    g_B and H_B are gradient and Hessian of the batch's loss; B is `batch_size` different examples,
    drawn anew for each of the `draws`. For SGD at learning rate η it settles at 2/η. Units: loss
    per squared parameter. A batch with g_B = 0 has no such curvature and is left out, and the
    estimate is then not called converged. Under `batch` and `recalibrated` batch norm each batch
    has its own statistics.

    Args:
        objective: where to measure.
        key: PRNG key of the batches.
        batch_size: examples a batch; SGD's own. 16 is that of the paper's experiments.
        draws: independent batches.

    Returns:
        `standard_error` over batches. `converged` if every batch had a gradient and all is finite.
        Details: `samples`; `zero_gradients`, the number of batches left out;
        `ratio_of_expectations` = E[gᵀHg] / E[‖g‖²], which some write instead, and its
        `ratio_of_expectations_standard_error`.

    Raises:
        InputError: `batch_size` above the number of examples; under `batch` batch norm, one that
            the chunk does not divide.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 1.5 * jnp.mean((w - batch.inputs) ** 2), jnp.zeros(()),
        ...     (jnp.arange(1.0, 9.0), jnp.zeros(8)))
        >>> round(sf.measure(bowl, "batch_sharpness", batch_size=2).value, 4)
        3.0

    Source: Andreyev and Beneventano (2024), definition of Batch Sharpness.
    """
    found = _along_batch_gradients(objective, key, batch_size, draws)
    curvature, square, scale = (np.asarray(part, np.float64) for part in found)
    moving = scale != 0
    zero = int(draws - moving.sum())
    if zero == draws:
        return Estimate(float("nan"), None, False, {"zero_gradients": zero})
    with np.errstate(invalid="ignore", over="ignore"):
        estimate = Estimate.from_samples(curvature[moving] / square[moving])
        ratio = Estimate.from_ratio(curvature * scale**2, square * scale**2)
    of_ratio = np.nan if ratio.standard_error is None else ratio.standard_error
    details = {
        "samples": estimate.details["samples"],
        "zero_gradients": zero,
        "ratio_of_expectations": ratio.value,
        "ratio_of_expectations_standard_error": of_ratio,
    }
    return estimate._replace(converged=estimate.converged and zero == 0, details=details)


@functools.partial(jax.jit, static_argnames=("batch_size", "draws"))
def _along_batch_gradients(
    objective: Objective, key: jax.Array, batch_size: int, draws: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """uᵀ H_B u, ‖u‖² and c for each batch, with g_B = c u."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        indices = jax.random.choice(key, objective.data.size, (batch_size,), replace=False)
        batch = objective.subset(indices)
        direction, scale = scaled(batch.value_and_grad(batch.params)[1])
        product = batch.hvp(batch.params, direction)
        return trees.vdot(direction, product), trees.vdot(direction, direction), scale

    return jax.lax.map(one, jax.random.split(key, draws))
