"""Objective: the mean loss over a data set as a function of parameters, and its derivatives."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat.batch import Batch, map_over_chunks, mean_over_chunks
from sharpflat.networks.adapter import Model, has_batch_norm, nnx_parts
from sharpflat.networks.batch_norm import recalibrate
from sharpflat.registry import InputError, closest

BatchNormPolicy = Literal["batch", "running", "recalibrated"]


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """−log softmax(outputs)[label] in nats, `[n]`, for logits `[n, classes]`, integer labels."""
    chosen = jnp.take_along_axis(outputs, labels[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(outputs, axis=-1) - chosen


def squared_error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """½ ‖output − label‖², `[n]`; integer labels stand for their one-hot vectors."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        labels = jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype)
    return 0.5 * jnp.sum(
        (outputs - labels.reshape(outputs.shape)) ** 2, axis=range(1, outputs.ndim)
    )


def hit_rate(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Fraction of examples whose largest output is their label's; NaN for real-valued labels."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return jnp.full((), jnp.nan)
    return jnp.mean(jnp.argmax(outputs, axis=-1) == labels)


LOSSES = {"cross_entropy": cross_entropy, "squared_error": squared_error}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Objective:
    """L(w) = (1/n) Σ_i ℓ(w; x_i, y_i) over all of `data`, computed chunk by chunk.

    A pytree: parameters, state and data are arguments of every compiled program, never constants.
    Make one with `from_function` or `from_model`.

    Attributes:
        params: the parameters at which it was made; every method takes others.
        model_state: batch-norm averages (policy `running`), or `{}`.
        data: the examples.
        function: the user's mean loss, or the loss an example `[n]` from outputs and labels.
        model: the network, or None for a plain loss function.
        batch_norm: `batch`, `running`, `recalibrated`; None for a plain loss function.
        chunk: examples a pass. Under `batch` it is part of the definition and divides the data.
    """

    params: Any
    model_state: Any
    data: Batch
    function: Callable[..., jax.Array] = field(metadata={"static": True})
    model: Model | None = field(metadata={"static": True})
    batch_norm: BatchNormPolicy | None = field(metadata={"static": True})
    chunk: int = field(metadata={"static": True})

    @staticmethod
    def from_function(
        loss: Callable[[Any, Batch], jax.Array],
        params: Any,
        data: Batch | tuple[Any, Any],
        chunk: int | None = None,
    ) -> Objective:
        """The objective of any loss in JAX.

        Args:
            loss: `loss(params, batch) -> scalar`, the mean over the batch.
            params: any pytree of floating-point arrays.
            data: a `Batch`, or `(inputs, labels)`.
            chunk: examples a pass (all of them by default); bounds memory.

        Raises:
            InputError: empty data, mismatched lengths, a chunk below 1.
        """
        batch = _checked_data(data)
        chunk = _checked_chunk(chunk, batch.size)
        return Objective(_arrays(params), {}, batch, loss, None, None, chunk)

    @staticmethod
    def from_model(
        model: Any,
        params: Any,
        model_state: Any,
        data: Batch | tuple[Any, Any],
        loss: str | Callable[[jax.Array, jax.Array], jax.Array] = "cross_entropy",
        batch_norm: BatchNormPolicy = "running",
        chunk: int | None = 1000,
    ) -> Objective:
        """The objective of a network; dropout is off.

        Args:
            model: a `Model`, a Linen module, or an NNX module.
            params: its parameters; None for an NNX module that holds them.
            model_state: its state (`{}` or None where there is none).
            data: a `Batch`, or `(inputs, labels)`.
            loss: `cross_entropy`, `squared_error`, or a function of `(outputs, labels)` that
                gives each example's loss `[n]`.
            batch_norm: `batch` normalises by each chunk's own statistics; `running` by the
                averages in `model_state`; `recalibrated` re-estimates the averages over all the
                data at every point at which the loss is asked for, derivatives holding them fixed.
            chunk: examples a pass.

        Raises:
            InputError: an unknown loss or policy, empty data, a chunk that does not divide the
                data under `batch`.
        """
        if params is None:
            params, model_state = nnx_parts(model)
        model, batch = Model.of(model), _checked_data(data)
        if batch_norm not in get_args(BatchNormPolicy):
            hint = closest(batch_norm, get_args(BatchNormPolicy))
            raise InputError(f"batch_norm: unknown policy {batch_norm!r}{hint}")
        if isinstance(loss, str) and loss not in LOSSES:
            raise InputError(f"loss: unknown {loss!r}{closest(loss, LOSSES)}")
        chunk = _checked_chunk(chunk, batch.size)
        model_state = {} if model_state is None else model_state
        _check_divides(batch_norm, model_state, batch.size, chunk)
        function = LOSSES[loss] if isinstance(loss, str) else loss
        return Objective(
            _arrays(params), _arrays(model_state), batch, function, model, batch_norm, chunk
        )

    def loss(self, params: Any) -> jax.Array:
        """L(params), a scalar."""
        return _loss(self, params)

    def value_and_grad(self, params: Any) -> tuple[jax.Array, Any]:
        """L(params) and its gradient."""
        return _value_and_grad(self, params)

    def hvp(self, params: Any, vector: Any) -> Any:
        """The Hessian at `params` times `vector`, a tree like `params`."""
        return _hvp(self, params, vector)

    def ggn_vp(self, params: Any, vector: Any) -> Any:
        """The generalised Gauss–Newton matrix (1/n) Σ J_iᵀ ∇²ℓ_i J_i times `vector`."""
        self._needs_outputs("ggn_vp")
        return _ggn_vp(self, params, vector)

    def linearize_hvp(self, params: Any) -> Callable[[Any], Any]:
        """`vector -> H vector` at fixed `params`, the forward work done once where memory allows.

        With one chunk the gradient is linearised once; with more, each product makes its own pass.
        """
        if self.chunk >= self.data.size:
            return _linearized(self, params)
        return functools.partial(self.hvp, params)

    def outputs(self, params: Any) -> jax.Array:
        """The network's outputs on all examples, `[n, ...]`."""
        self._needs_outputs("outputs")
        return _outputs(self, params)

    def losses(self, params: Any) -> jax.Array:
        """Each example's loss, `[n]`."""
        self._needs_outputs("losses")
        return _losses(self, params)

    def accuracy(self, params: Any) -> jax.Array:
        """Fraction of examples whose largest output is their label's, a scalar in [0, 1]."""
        self._needs_outputs("accuracy")
        return _loss_and_accuracy(self, params)[1]

    def loss_and_accuracy(self, params: Any) -> tuple[jax.Array, jax.Array]:
        """Both from one pass."""
        self._needs_outputs("accuracy")
        return _loss_and_accuracy(self, params)

    def per_example_gradients(self, params: Any) -> Any:
        """∇ℓ_i for each example, `[n, ...]` a leaf: n times the memory of the parameters.

        Under `batch` an example's loss depends on the others of its chunk: refused there.
        """
        if self.batch_norm == "batch" and has_batch_norm(self.model_state):
            raise InputError("per_example_gradients: not defined under batch_norm 'batch'")
        return _per_example_gradients(self, params)

    @property
    def has_batch_norm(self) -> bool:
        """Whether the model carries batch-norm averages."""
        return has_batch_norm(self.model_state)

    def state_at(self, params: Any) -> Any:
        """The model state that the policy uses at `params`."""
        return _state_at(self, params)

    def subset(self, indices: Any) -> Objective:
        """The same objective on the examples at `indices`.

        Raises:
            InputError: under `batch`, the chunk does not divide their number.
        """
        data = self.data.take(jnp.asarray(indices))
        chunk = min(self.chunk, data.size)
        _check_divides(self.batch_norm, self.model_state, data.size, chunk)
        return replace(self, data=data, chunk=chunk)

    def layers(self) -> list[str]:
        """The parameters' names, a path a leaf, as `Dense_0/kernel`."""
        paths, _ = jax.tree.flatten_with_path(self.params)
        return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]

    def shared(self, function: Callable[..., Any], key: jax.Array, *args: Any) -> Any:
        """`function(self, key, *args)`, computed once for the metrics of one `measure` call."""
        cache = _SHARED.get()
        if cache is None:
            return function(self, key, *args)
        numbers = [jax.random.key_data(key), *jax.tree.leaves(args)]
        name = (function, id(self), *(np.asarray(number).tobytes() for number in numbers))
        if name not in cache:
            # The objective is kept beside its result, so that its id is not given to another.
            cache[name] = (self, function(self, key, *args))
        return cache[name][1]

    def _needs_outputs(self, what: str) -> None:
        if self.model is None:
            raise InputError(f"{what}: an objective made by from_function has no outputs")


_SHARED: ContextVar[dict[Any, Any] | None] = ContextVar("shared", default=None)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """While it lasts, `Objective.shared` computes everything once."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def _arrays(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def _checked_data(data: Batch | tuple[Any, Any]) -> Batch:
    inputs, labels = (jnp.asarray(part) for part in data)
    if inputs.ndim == 0 or len(inputs) == 0:
        raise InputError("data: the data set is empty")
    if labels.ndim == 0 or len(labels) != len(inputs):
        raise InputError(f"data: {len(inputs)} inputs but labels of shape {labels.shape}")
    return Batch(inputs, labels)


def _checked_chunk(chunk: int | None, size: int) -> int:
    if chunk is None:
        return size
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise InputError(f"chunk: expected a whole number of at least 1, got {chunk!r}")
    return min(chunk, size)


def _check_divides(policy: str | None, model_state: Any, size: int, chunk: int) -> None:
    if policy == "batch" and has_batch_norm(model_state) and size % chunk:
        raise InputError(
            f"chunk: {chunk} does not divide the {size} examples, as it must under "
            f"batch_norm 'batch', where each chunk is normalised by its own statistics"
        )


def _state_at(objective: Objective, params: Any) -> Any:
    """The model state that holds at `params`; constant as far as derivatives go."""
    if objective.model is None or objective.batch_norm != "recalibrated":
        return objective.model_state
    params = jax.lax.stop_gradient(params)
    state = objective.model_state
    return recalibrate(objective.model, params, state, objective.data, objective.chunk)


def _apply(objective: Objective, params: Any, state: Any, inputs: jax.Array) -> jax.Array:
    statistics = objective.batch_norm == "batch" and has_batch_norm(state)
    model = objective.model
    assert model is not None
    return model.apply(params, state, inputs, batch_statistics=statistics, dropout=False)[0]


def _chunk_loss(objective: Objective, params: Any, state: Any, batch: Batch) -> jax.Array:
    if objective.model is None:
        return objective.function(params, batch)
    outputs = _apply(objective, params, state, batch.inputs)
    return jnp.mean(objective.function(outputs, batch.labels))


def _mean(objective: Objective, function: Callable[[Batch], Any]) -> Any:
    return mean_over_chunks(function, objective.data, objective.chunk)


@jax.jit
def _loss(objective: Objective, params: Any) -> jax.Array:
    state = _state_at(objective, params)
    return _mean(objective, lambda batch: _chunk_loss(objective, params, state, batch))


@jax.jit
def _value_and_grad(objective: Objective, params: Any) -> tuple[jax.Array, Any]:
    state = _state_at(objective, params)

    def chunk(batch: Batch) -> tuple[jax.Array, Any]:
        return jax.value_and_grad(lambda w: _chunk_loss(objective, w, state, batch))(params)

    return _mean(objective, chunk)


@jax.jit
def _hvp(objective: Objective, params: Any, vector: Any) -> Any:
    state = _state_at(objective, params)

    def chunk(batch: Batch) -> Any:
        gradient = jax.grad(lambda w: _chunk_loss(objective, w, state, batch))
        return jax.jvp(gradient, (params,), (vector,))[1]

    return _mean(objective, chunk)


@jax.jit
def _ggn_vp(objective: Objective, params: Any, vector: Any) -> Any:
    state = _state_at(objective, params)

    def chunk(batch: Batch) -> Any:
        def outputs(w: Any) -> jax.Array:
            return _apply(objective, w, state, batch.inputs)

        def mean_loss(values: jax.Array) -> jax.Array:
            return jnp.mean(objective.function(values, batch.labels))

        values, pushed = jax.jvp(outputs, (params,), (vector,))
        curved = jax.jvp(jax.grad(mean_loss), (values,), (pushed,))[1]
        return jax.vjp(outputs, params)[1](curved)[0]

    return _mean(objective, chunk)


@jax.jit
def _linearized(objective: Objective, params: Any) -> Callable[[Any], Any]:
    state = _state_at(objective, params)
    gradient = jax.grad(lambda w: _chunk_loss(objective, w, state, objective.data))
    return jax.linearize(gradient, params)[1]


@jax.jit
def _outputs(objective: Objective, params: Any) -> jax.Array:
    state = _state_at(objective, params)
    return map_over_chunks(
        lambda batch: _apply(objective, params, state, batch.inputs),
        objective.data,
        objective.chunk,
    )


@jax.jit
def _losses(objective: Objective, params: Any) -> jax.Array:
    return objective.function(_outputs(objective, params), objective.data.labels)


@jax.jit
def _loss_and_accuracy(objective: Objective, params: Any) -> tuple[jax.Array, jax.Array]:
    state = _state_at(objective, params)

    def chunk(batch: Batch) -> tuple[jax.Array, jax.Array]:
        outputs = _apply(objective, params, state, batch.inputs)
        loss = jnp.mean(objective.function(outputs, batch.labels))
        return loss, hit_rate(outputs, batch.labels)

    return _mean(objective, chunk)


@jax.jit
def _per_example_gradients(objective: Objective, params: Any) -> Any:
    state = _state_at(objective, params)

    def one(batch: Batch) -> Any:
        single = jax.tree.map(lambda leaf: leaf[None], batch)
        return jax.grad(lambda w: _chunk_loss(objective, w, state, single))(params)

    return map_over_chunks(jax.vmap(one), objective.data, objective.chunk)
