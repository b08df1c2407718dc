"""One update: the gradient of a batch as the recipe wants it, and the step that follows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from sharpflat import trees
from sharpflat.batch import Batch
from sharpflat.networks.adapter import Model
from sharpflat.objective import hit_rate
from sharpflat.training.adversarial import Adversarial, attacked
from sharpflat.training.augmentation import Augmentation, augmented
from sharpflat.training.label_noise import resampled
from sharpflat.training.sharding import divided

# Numbers that tell an update's random keys apart; those from 2 on are of the batch's chunks.
OPTIMIZER, AUGMENTATION, LABELS, GHOSTS = 1, 2**31 - 1, 2**31 - 2, 2**31 - 3


@dataclass(frozen=True)
class Recipe:
    """What an update is made of; static, so that equal recipes share one compiled program.

    Attributes:
        model: the network.
        loss: each example's loss `[n]`, from outputs and labels.
        optimizer: the Optax update. Equal recipes need the same object: see `make_optimizer`. It
            may ask for `grad_fn`, the gradient of the same batch at other parameters, and `key`.
        clip: the gradient is scaled down to this norm where it is longer.
        gradient_penalty: c of L + c/2 ‖∇L‖², which is what the gradient is of; L is the loss that
            is trained on, the adversarial one included.
        chunk: examples a pass; a batch's gradient is then accumulated, batch norm sees each
            chunk's own statistics, and its averages are the mean of what the chunks make of them;
            what else a network keeps (random keys, counters) is what the last one leaves.
        ghost: examples that batch norm normalises together, all in one pass; averages likewise.
        augmentation: of the batch's pictures, drawn for each update.
        relabel: (classes, fraction) of labels that are replaced by another class at each update, or
            (classes, fraction, draw), where each draw's replacements are others.
        adversarial: beside the loss of the inputs, that of inputs which were moved to raise it.
        matmul_precision: of products, as `jax.default_matmul_precision` has it; None for what is
            set there.
        compute_dtype: of the forward and the backward pass; parameters, averages and the loss
            itself keep their own.
        mesh: the devices that share the examples of a pass; one device without.
    """

    model: Model
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    optimizer: optax.GradientTransformation
    clip: float | None = None
    gradient_penalty: float | None = None
    chunk: int | None = None
    ghost: int | None = None
    augmentation: Augmentation | None = None
    relabel: tuple[int, float] | tuple[int, float, int] | None = None
    adversarial: Adversarial | None = None
    matmul_precision: str | None = None
    compute_dtype: str | None = None
    mesh: Mesh | None = None


class TrainState(NamedTuple):
    """What an update changes."""

    params: Any
    model_state: Any
    opt_state: Any


class Seen(NamedTuple):
    """What a batch says beside its gradient."""

    loss: jax.Array
    accuracy: jax.Array
    model_state: Any


def update(
    recipe: Recipe, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, jax.Array, jax.Array]:
    """One update, with the loss and the accuracy before it."""
    batch = _drawn(recipe, batch, key)

    def gradient(params: Any) -> tuple[Seen, Any]:
        return _gradient(recipe, params, state.model_state, batch, key)

    seen, grads = gradient(state.params)
    updates, opt_state = optax.with_extra_args_support(recipe.optimizer).update(
        grads, state.opt_state, state.params,
        grad_fn=lambda point: gradient(point)[1], key=jax.random.fold_in(key, OPTIMIZER),
    )  # fmt: skip
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, seen.model_state, opt_state), seen.loss, seen.accuracy


def _drawn(recipe: Recipe, batch: Batch, key: jax.Array) -> Batch:
    """The batch as this update sees it."""
    inputs, labels = batch
    if recipe.augmentation is not None:
        inputs = augmented(recipe.augmentation, inputs, jax.random.fold_in(key, AUGMENTATION))
    if recipe.relabel is not None:
        classes, fraction, *draw = recipe.relabel
        of_labels = jax.random.fold_in(key, LABELS)
        if any(draw):  # draw 0 is as runs were before there were others
            of_labels = jax.random.fold_in(of_labels, *draw)
        labels = resampled(labels, classes, fraction, of_labels)
    return Batch(inputs, labels)


def _gradient(
    recipe: Recipe, params: Any, model_state: Any, batch: Batch, key: jax.Array
) -> tuple[Seen, Any]:
    def part(chunk: Batch, key: jax.Array) -> tuple[Seen, Any]:
        return _of_chunk(recipe, params, model_state, chunk, key)

    whole = recipe.chunk is None or batch.size <= recipe.chunk
    precision = recipe.matmul_precision
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        found = part(batch, key) if whole else _accumulated(part, batch, recipe.chunk or 1, key)
    seen, grads = found
    if recipe.clip is not None:
        grads, _ = optax.clip_by_global_norm(recipe.clip).update(grads, optax.EmptyState())
    return seen, grads


def _accumulated(part: Callable[..., Any], batch: Batch, chunk: int, key: jax.Array) -> Any:
    """The mean over the batch of what `part` gives for each chunk, a smaller last one included."""
    count, rest = divmod(batch.size, chunk)
    chunks = jax.tree.map(
        lambda leaf: leaf[: count * chunk].reshape(count, chunk, *leaf.shape[1:]), batch
    )

    def add(total: Any, given: Any) -> tuple[Any, None]:
        number, data = given
        found = part(data, jax.random.fold_in(key, 2 + number))
        return _floats(lambda t, f: t + chunk / batch.size * f, total, found), None

    shapes = jax.eval_shape(part, jax.tree.map(lambda leaf: leaf[0], chunks), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(count), chunks))
    if rest:
        last = jax.tree.map(lambda leaf: leaf[count * chunk :], batch)
        found = part(last, jax.random.fold_in(key, 2 + count))
        total = _floats(lambda t, f: t + rest / batch.size * f, total, found)
    return total


def _of_chunk(
    recipe: Recipe, params: Any, model_state: Any, batch: Batch, key: jax.Array
) -> tuple[Seen, Any]:
    batch = divided(recipe.mesh, batch)

    def mean_loss(params: Any) -> tuple[jax.Array, Seen]:
        outputs, state = _outputs(recipe, params, model_state, batch.inputs, key)
        loss = jnp.mean(recipe.loss(outputs, batch.labels))
        seen = Seen(loss, hit_rate(outputs, batch.labels), state)
        if recipe.adversarial is None:
            return loss, seen
        share = recipe.adversarial.share
        inputs = attacked(recipe.adversarial, partial(loss_of, params), batch.inputs)
        return (1 - share) * loss + share * loss_of(params, inputs), seen

    def loss_of(params: Any, inputs: jax.Array) -> jax.Array:
        outputs, _ = _outputs(recipe, params, model_state, inputs, key)
        return jnp.mean(recipe.loss(outputs, batch.labels))

    def penalised(params: Any) -> tuple[jax.Array, Seen]:
        if recipe.gradient_penalty is None:
            return mean_loss(params)
        (loss, seen), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        return loss + recipe.gradient_penalty / 2 * optax.tree.vdot(grads, grads), seen

    grads, seen = jax.grad(penalised, has_aux=True)(params)
    return seen, grads


def _outputs(
    recipe: Recipe, params: Any, model_state: Any, inputs: jax.Array, key: jax.Array
) -> tuple[jax.Array, Any]:
    """Outputs with the batch's statistics, or those of each of its ghosts, and the new state."""

    def apply(inputs: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        given, seen = params, inputs
        if recipe.compute_dtype is not None:
            given, seen = trees.cast((params, inputs), recipe.compute_dtype)
        outputs, state = recipe.model.apply(
            given, model_state, seen, batch_statistics=True, dropout=True, key=key
        )
        if recipe.compute_dtype is not None:
            outputs = trees.cast(outputs, "float32")
            state = _floats(lambda old, new: new.astype(old.dtype), model_state, state)
        return outputs, state

    if recipe.ghost is None or len(inputs) <= recipe.ghost:
        return apply(inputs, key)
    count, rest = divmod(len(inputs), recipe.ghost)
    whole = inputs[: count * recipe.ghost].reshape(count, recipe.ghost, *inputs.shape[1:])
    key = jax.random.fold_in(key, GHOSTS)
    outputs, states = jax.vmap(apply)(whole, jax.random.split(key, count))
    outputs = outputs.reshape(-1, *outputs.shape[2:])
    final = jax.tree.map(lambda leaf: leaf[-1], states)
    state = _floats(lambda leaf, _: jnp.mean(leaf, axis=0), states, final)
    if rest:
        last, after = apply(inputs[count * recipe.ghost :], jax.random.fold_in(key, count))
        outputs, share = jnp.concatenate([outputs, last]), rest / len(inputs)
        state = _floats(lambda s, t: (1 - share) * s + share * t, state, after)
    return outputs, state


def _floats(function: Callable[..., jax.Array], *of: Any) -> Any:
    """`function` of floating-point leaves; others (random keys, counters) are the last tree's."""

    def one(*leaves: jax.Array) -> jax.Array:
        floating = jnp.issubdtype(leaves[-1].dtype, jnp.floating)
        return function(*leaves) if floating else leaves[-1]

    return jax.tree.map(one, *of)
