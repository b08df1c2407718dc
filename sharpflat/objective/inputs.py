"""What an objective is made of, refused by name where it cannot be used, before any work."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import trees
from sharpflat.batch import Batch
from sharpflat.networks.adapter import has_batch_norm
from sharpflat.objective import derivatives
from sharpflat.objective.fit import output_shapes
from sharpflat.objective.layers import name_of
from sharpflat.objective.losses import cross_entropy, squared_error
from sharpflat.validation import InputError

if TYPE_CHECKING:
    from sharpflat.objective.objective import Objective

MOST_COMPARED = 64
"""Examples of which a plain loss is computed to see that it is a mean."""
TOLERANCE = 0.02
"""By which a mean may differ from that of its halves, relatively: in bfloat16 too."""
ROUNDING = 1e-5
SHARE = 0.01
BESIDE = 0.1
"""Losses below are not compared: where all is fitted they are rounding."""


def checked_params(params: Any) -> Any:
    """The parameters as arrays.

    Raises:
        InputError: none, or some that are not floating-point numbers.
    """
    try:
        arrays = jax.tree.map(jnp.asarray, params)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"params: expected arrays: {error}") from None
    for path, leaf in jax.tree.leaves_with_path(arrays):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            name = f" {name_of(path)!r}" if path else ""
            raise InputError(f"params:{name} expected floating-point numbers, got {leaf.dtype}")
    if not sum(leaf.size for leaf in jax.tree.leaves(arrays)):
        raise InputError("params: are empty")
    return arrays


def checked_data(data: Any) -> Batch:
    """Inputs and labels as arrays.

    Raises:
        InputError: no pair of arrays, no examples, not as many labels as inputs, or numbers that
            are not finite.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise InputError(f"data: expected a pair (inputs, labels), got {_said(data)}")
    try:
        inputs, labels = (jnp.asarray(part) for part in data)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"data: expected two arrays, (inputs, labels): {error}") from None
    if inputs.ndim == 0 or len(inputs) == 0:
        raise InputError("data: the data set is empty")
    if labels.ndim == 0 or len(labels) != len(inputs):
        raise InputError(f"data: {len(inputs)} inputs but labels of shape {labels.shape}")
    return Batch(inputs, labels)


def checked_chunk(chunk: Any, size: int) -> int:
    """Examples a pass: all of them for None, and never more than there are.

    Raises:
        InputError: no whole number of at least 1.
    """
    if chunk is None:
        return size
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise InputError(f"chunk: expected a whole number of at least 1, got {chunk!r}")
    return min(chunk, size)


def check_divides(policy: str | None, model_state: Any, size: int, chunk: int) -> None:
    """Refuse a chunk that leaves a rest where each chunk has statistics of its own.

    Raises:
        InputError: names both numbers.
    """
    if policy == "batch" and has_batch_norm(model_state) and size % chunk:
        raise InputError(
            f"chunk: {chunk} does not divide the {size} examples, as it must under "
            f"batch_norm 'batch', where each chunk is normalised by its own statistics"
        )


def check_loss(objective: Objective) -> None:
    """Refuse a loss that does not give what it should; only a plain one is computed, of a few.

    Raises:
        InputError: a plain loss that is no scalar, or a sum over the batch; parameters or a state
            that are not the model's; labels that are not those of the outputs; a loss an example
            that is none; one that is no floating-point number.
    """
    if not callable(objective.function):
        raise InputError(f"loss: expected a function, got {objective.function!r}")
    if objective.model is None:
        chunk = objective.data.first(objective.chunk)
        loss = jax.eval_shape(objective.function, objective.params, chunk)
        _expect("a scalar, the mean over the batch", (), loss)
        _check_mean(objective)
        return
    outputs = output_shapes(objective)
    if objective.function in (cross_entropy, squared_error):
        _check_labels(objective.function, outputs, objective.data.labels)
    losses = jax.eval_shape(derivatives.losses, objective, objective.params)
    _expect("a number an example", (objective.data.size,), losses)


def _said(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{len(value)} parts"
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array of shape {shape}"


def _expect(what: str, shape: tuple[int, ...], loss: Any) -> None:
    found = getattr(loss, "shape", None)
    if found != shape:
        got = type(loss).__name__ if found is None else f"shape {found}"
        raise InputError(f"loss: expected {what}, got {got}")
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise InputError(f"loss: expected floating-point numbers, got {loss.dtype}")


def check_finite(data: Batch, loss: Any) -> None:
    """Refuse inputs that are not finite, and labels where a loss of our own takes them.

    Raises:
        InputError: how many examples, and the first of them.
    """
    _check_finite("inputs", data.inputs)
    if loss in (cross_entropy, squared_error):
        _check_finite("labels", data.labels)


def _check_finite(name: str, numbers: jax.Array) -> None:
    finite = trees.all_finite(numbers)
    if isinstance(finite, jax.core.Tracer) or finite:
        return
    rows = np.isfinite(np.asarray(numbers)).reshape(len(numbers), -1).all(axis=1)
    first, count = int(np.argmin(rows)), int((~rows).sum())
    raise InputError(
        f"data: {name} hold numbers that are not finite, in {count} of {len(rows)} examples, "
        f"the first of them example {first}"
    )


def _check_mean(objective: Objective) -> None:
    """Refuse a sum over the batch, and warn of what else is no mean: L would depend on `chunk`.

    The mean over some examples is the mean of the means over their halves. Where all are in one
    chunk, a sum may be divided by their number, and is warned of.
    """
    half = min(objective.chunk, MOST_COMPARED) // 2
    if half == 0:
        return
    function, few = jax.jit(objective.function), objective.data.first(2 * half)
    beside = jax.tree.map(lambda leaf: leaf + BESIDE, objective.params)
    whole, left, right, scale = 0.0, 0.0, 0.0, 0.0
    for params in (objective.params, beside):  # at a minimum there may be rounding only
        try:
            losses = _whole_and_halves(function, params, few)
        except Exception:
            return  # a loss that is written for all the examples takes no part of them
        if isinstance(losses[0], jax.core.Tracer):
            return
        whole, left, right = map(float, losses)
        scale = max(map(abs, (whole, left, right)))
        if scale > ROUNDING:
            break
    mean = (left + right) / 2
    if not ROUNDING < scale < math.inf or abs(whole - mean) <= TOLERANCE * scale:
        return
    said = f"{2 * half} examples give {whole:.6g}, their two halves {left:.6g} and {right:.6g}"
    halves = min(abs(left), abs(right)) > SHARE * scale
    summed = halves and abs(whole - 2 * mean) <= TOLERANCE * scale
    one_chunk = objective.chunk == objective.data.size
    if summed and not one_chunk:
        raise InputError(f"loss: expected the mean over the batch, got a sum: {said}")
    if summed:
        warnings.warn(
            f"loss: is a sum over the batch, which is right only if it is divided by the number of "
            f"all examples, and wrong for measures of single ones and of batches: {said}",
            stacklevel=4,
        )
    if one_chunk:
        return
    warnings.warn(
        f"loss: is no mean over the batch, so that numbers depend on chunk: {said}", stacklevel=4
    )


def _whole_and_halves(function: Callable[..., jax.Array], params: Any, few: Batch) -> Any:
    half = few.size // 2
    parts = few, few.first(half), jax.tree.map(lambda leaf: leaf[half:], few)
    return [function(params, part) for part in parts]


def _check_labels(function: Any, outputs: Any, labels: jax.Array) -> None:
    """Of the losses of our own; what a user's own takes, only they know."""
    shape = getattr(outputs, "shape", None)
    if shape is None:
        raise InputError(f"outputs: expected an array, got {type(outputs).__name__}")
    classes = jnp.issubdtype(labels.dtype, jnp.integer)
    if function is squared_error and not classes:
        fits, wanted = labels.size == math.prod(shape), f"numbers of shape {shape}"
    elif len(shape) != 2:
        raise InputError(f"outputs: expected shape (n, classes) for such labels, got {shape}")
    else:
        fits, wanted = classes and labels.ndim == 1, f"whole numbers of shape {shape[:1]}"
    if not fits:
        raise InputError(f"labels: expected {wanted}, got {labels.dtype} {labels.shape}")
    if classes:
        _check_range(labels, shape[-1])


def _check_range(labels: jax.Array, classes: int) -> None:
    if isinstance(labels, jax.core.Tracer):
        return  # inside a compiled program there are no numbers to look at
    numbers = np.asarray(labels)  # not JAX: within a trace its minimum would be traced too
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"labels: expected 0 to {classes - 1}, as there are {classes} outputs, "
            f"got {low} to {high}"
        )
