"""Objective: the mean loss over a data set as a function of parameters, and its derivatives."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from sharpflat.batch import Batch
from sharpflat.networks.adapter import Model, has_batch_norm, nnx_parts
from sharpflat.objective import derivatives, inputs
from sharpflat.objective.layers import name_of
from sharpflat.objective.losses import LOSSES
from sharpflat.objective.sharing import once
from sharpflat.validation import InputError, closest

BatchNormPolicy = Literal["batch", "running", "recalibrated"]


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
        frozen: the parameters that `restrict` holds fixed, None where they are free.
    """

    params: Any
    model_state: Any
    data: Batch
    function: Callable[..., jax.Array] = field(metadata={"static": True})
    model: Model | None = field(metadata={"static": True})
    batch_norm: BatchNormPolicy | None = field(metadata={"static": True})
    chunk: int = field(metadata={"static": True})
    frozen: Any = None

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
            InputError: parameters that are none or not floating-point, empty data, mismatched
                lengths, a chunk below 1, a loss that is no floating-point scalar, or that is a sum
                over its batch where `chunk` would change it (else it is warned of). (Data need not
                be finite: such a loss may look past what is missing.)
        """
        params, batch = inputs.checked_params(params), inputs.checked_data(data)
        chunk = inputs.checked_chunk(chunk, batch.size)
        objective = Objective(params, {}, batch, loss, None, None, chunk)
        inputs.check_loss(objective)
        return objective

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
            InputError: as `from_function`; an unknown loss or policy, inputs that are not finite,
                nor labels of a loss given by name, labels that the outputs do not have, parameters
                or a state of another model, a chunk that does not divide the data under `batch`.
        """
        if params is None:
            params, model_state = nnx_parts(model)
        model, batch = Model.of(model), inputs.checked_data(data)
        if batch_norm not in get_args(BatchNormPolicy):
            hint = closest(batch_norm, get_args(BatchNormPolicy))
            raise InputError(f"batch_norm: unknown policy {batch_norm!r}{hint}")
        if isinstance(loss, str) and loss not in LOSSES:
            raise InputError(f"loss: unknown {loss!r}{closest(loss, LOSSES)}")
        chunk = inputs.checked_chunk(chunk, batch.size)
        params = inputs.checked_params(params)
        state = {} if model_state is None else jax.tree.map(jnp.asarray, model_state)
        inputs.check_divides(batch_norm, state, batch.size, chunk)
        function = LOSSES[loss] if isinstance(loss, str) else loss
        inputs.check_finite(batch, function)
        objective = Objective(params, state, batch, function, model, batch_norm, chunk)
        inputs.check_loss(objective)
        return objective

    def loss(self, params: Any) -> jax.Array:
        """L(params), a scalar."""
        return derivatives.loss(self, params)

    def value_and_grad(self, params: Any) -> tuple[jax.Array, Any]:
        """L(params) and its gradient."""
        return derivatives.value_and_grad(self, params)

    def hvp(self, params: Any, vector: Any) -> Any:
        """The Hessian at `params` times `vector`, a tree like `params`."""
        return derivatives.hvp(self, params, vector)

    def linearize_hvp(self, params: Any) -> Callable[[Any], Any]:
        """`vector -> H vector` at fixed `params`, the forward work done once where memory allows.

        With one chunk the gradient is linearised once; with more, each product makes its own pass.
        What comes back is a pytree, so that it can be an argument of a compiled program.
        """
        if self.chunk >= self.data.size:
            return derivatives.linearized_gradient(self, params)
        return Partial(derivatives.hvp, self, params)

    def ggn_vp(self, params: Any, vector: Any) -> Any:
        """The generalised Gauss–Newton matrix (1/n) Σ J_iᵀ ∇²ℓ_i J_i times `vector`."""
        self.need_outputs("ggn_vp")
        return derivatives.ggn_vp(self, params, vector)

    def linearize_ggn_vp(self, params: Any) -> Callable[[Any], Any]:
        """`vector -> GGN vector`, as `linearize_hvp`."""
        self.need_outputs("ggn_vp")
        if self.chunk >= self.data.size:
            return derivatives.linearized_ggn(self, params)
        return Partial(derivatives.ggn_vp, self, params)

    def outputs(self, params: Any) -> jax.Array:
        """The network's outputs on all examples, `[n, ...]`."""
        self.need_outputs("outputs")
        return derivatives.outputs(self, params)

    def losses(self, params: Any) -> jax.Array:
        """Each example's loss, `[n]`."""
        self.need_outputs("losses")
        return derivatives.losses(self, params)

    def accuracy(self, params: Any) -> jax.Array:
        """Fraction of examples whose largest output is their label's, a scalar in [0, 1]."""
        return self.loss_and_accuracy(params)[1]

    def loss_and_accuracy(self, params: Any) -> tuple[jax.Array, jax.Array]:
        """Both from one pass."""
        self.need_outputs("accuracy")
        return derivatives.loss_and_accuracy(self, params)

    def per_example_gradients(self, params: Any) -> Any:
        """∇ℓ_i for each example, `[n, ...]` a leaf: n times the memory of the parameters.

        Raises:
            InputError: under `batch`, where an example's loss depends on the others of its chunk.
        """
        return self.map_gradients(_same, params)

    def map_gradients(self, function: Callable[..., Any], params: Any, *args: Any) -> Any:
        """`function(∇ℓ_i, *args)` for each example, stacked `[n, ...]`; the gradients go at once.

        Args:
            function: from one example's gradient, a tree like `params`, to a small array or tree;
                it is compiled once, so let it live at module level.
            params: where.
            *args: arrays handed on.

        Raises:
            InputError: as `per_example_gradients`.
        """
        self.need_single_examples("per_example_gradients")
        return derivatives.map_gradients(self, function, params, args)

    @property
    def has_batch_norm(self) -> bool:
        """Whether the model carries batch-norm averages."""
        return has_batch_norm(self.model_state)

    def state_at(self, params: Any) -> Any:
        """The model state that the policy uses at `params`."""
        return derivatives.state_at(self, params)

    def subset(self, indices: Any) -> Objective:
        """The same objective on the examples at `indices`, inside compiled programs too.

        Under `batch` and `recalibrated` the statistics are then those of these examples.

        Raises:
            InputError: under `batch`, the chunk does not divide their number.
        """
        data = self.data.take(jnp.asarray(indices))
        chunk = min(self.chunk, data.size)
        inputs.check_divides(self.batch_norm, self.model_state, data.size, chunk)
        return replace(self, data=data, chunk=chunk)

    def restrict(self, pattern: str | Collection[str]) -> Objective:
        """The same loss as a function of some parameters only, the others held fixed.

        Args:
            pattern: of names as `layers` gives them, `*` for anything: `Dense_0/*`, `*/kernel`;
                or a list of such names.

        Raises:
            InputError: no name matches.
        """
        if pattern == "*":
            return self
        names = self.layers()
        if isinstance(pattern, str):
            chosen = [fnmatch.fnmatchcase(name, pattern) for name in names]
        else:
            chosen = [name in pattern for name in names]
        if not any(chosen):
            raise InputError(
                f"parameters: none is called {pattern!r}{closest(str(pattern), names)}"
            )
        leaves, structure = jax.tree.flatten(self.params)
        free = [leaf if c else None for leaf, c in zip(leaves, chosen, strict=True)]
        held = [None if c else leaf for leaf, c in zip(leaves, chosen, strict=True)]
        frozen = self.whole(jax.tree.unflatten(structure, held))
        return replace(self, params=jax.tree.unflatten(structure, free), frozen=frozen)

    def whole(self, params: Any) -> Any:
        """`params` together with those that `restrict` holds fixed."""
        if self.frozen is None:
            return params
        return jax.tree.map(
            lambda free, held: held if free is None else free,
            params, self.frozen, is_leaf=lambda leaf: leaf is None,
        )  # fmt: skip

    def layers(self) -> list[str]:
        """The parameters' names, a path a leaf, as `Dense_0/kernel`."""
        return [name_of(path) for path, _ in jax.tree.leaves_with_path(self.params)]

    def shared(self, function: Callable[..., Any], key: jax.Array, *args: Any) -> Any:
        """`function(self, key, *args)`, computed once for the metrics of one `measure` call."""
        return once(function, self, key, *args)

    def need_outputs(self, what: str) -> None:
        """Refuse `what` where there is no network, named in one line."""
        if self.model is None:
            raise InputError(f"{what}: an objective made by from_function has no outputs")

    def need_single_examples(self, what: str) -> None:
        """Refuse `what` where an example's loss depends on the others of its chunk."""
        if self.batch_norm == "batch" and self.has_batch_norm:
            raise InputError(f"{what}: not defined under batch_norm 'batch'")


def _same(gradient: Any) -> Any:
    return gradient
