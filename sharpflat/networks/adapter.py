"""Linen modules, NNX modules and plain functions as one functional, hashable `Model`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.errors import InvalidRngError

from sharpflat.validation import InputError

Flags = Callable[[bool, bool], dict[str, Any]]


@dataclass(frozen=True)
class Model:
    """A network as two pure functions; equal models are equal, so that nothing re-traces.

    `params` is what curvature differentiates. `model_state` is everything else the network
    carries, batch-norm averages first of all; `{}` or another empty tree where there is nothing.
    """

    def init(self, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
        """Fresh `(params, model_state)` for inputs shaped like `inputs`, `[n, ...]`."""
        raise TypeError(f"{type(self).__name__} does not say how it is initialised")

    def apply(
        self,
        params: Any,
        model_state: Any,
        inputs: jax.Array,
        *,
        batch_statistics: bool,
        dropout: bool,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Outputs `[n, ...]` and the new model state.

        Args:
            params: parameters.
            model_state: batch-norm averages and the like.
            inputs: `[n, ...]`.
            batch_statistics: normalise by this batch's own statistics (and update the averages)
                rather than by the running averages.
            dropout: whether dropout is active; it then needs `key`.
            key: PRNG key.
        """
        raise TypeError(f"{type(self).__name__} does not say how it is applied")

    @staticmethod
    def of(network: Any) -> Model:
        """The `Model` of a Linen module, an NNX module, or a `Model` itself.

        Raises:
            InputError: `network` is none of these.
        """
        if isinstance(network, Model):
            return network
        if isinstance(network, nn.Module):
            return LinenModel(network)
        if isinstance(network, nnx.Module):
            return NnxModel(nnx.split(network, nnx.Param, ...)[0])
        raise InputError(
            f"model: expected a sharpflat.Model, a Linen module or an NNX module, "
            f"got {type(network).__name__}; a plain function goes through Model.from_functions"
        )

    @staticmethod
    def from_linen(module: nn.Module, flags: Flags | None = None) -> Model:
        """A Linen module; `flags(batch_statistics, dropout)` gives its own keyword arguments.

        Without `flags` the module's signature decides: `batch_statistics`, `dropout`,
        `use_running_average`, `deterministic` are understood one by one; a single `train` or
        `training` of a module with batch norm is refused where the two differ, unless nothing is
        dropped. What is dropped asks for a key, and none is there while `dropout` is off.
        """
        return LinenModel(module, flags)

    @staticmethod
    def from_nnx(create: Callable[[nnx.Rngs], nnx.Module]) -> Model:
        """NNX modules made by `create(rngs)`, so that each seed has its own start."""
        graph = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0))), nnx.Param, ...)[0]
        return NnxModel(graph, create)

    @staticmethod
    def from_functions(
        init: Callable[[jax.Array, jax.Array], Any], apply: Callable[[Any, jax.Array], jax.Array]
    ) -> Model:
        """Plain functions: `init(key, inputs) -> params` and `apply(params, inputs) -> outputs`."""
        return FunctionModel(init, apply)


@dataclass(frozen=True)
class LinenModel(Model):
    """A Linen module, with its flags mapped from ours."""

    module: nn.Module
    flags: Flags | None = None

    def init(self, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
        """See `Model.init`."""
        flags = self._flags(False, False, {})
        variables = dict(self.module.init(key, inputs[:1], **flags))
        params = variables.pop("params", {})
        return params, variables

    def apply(self, params, model_state, inputs, *, batch_statistics, dropout, key=None):  # type: ignore[no-untyped-def]
        """See `Model.apply`."""
        flags = self._flags(batch_statistics, dropout, model_state)
        rngs = {"dropout": key} if dropout and key is not None else None
        variables = {"params": params, **model_state}
        updated = list(model_state) if batch_statistics else []
        try:
            outputs, new = self.module.apply(variables, inputs, rngs=rngs, mutable=updated, **flags)
        except InvalidRngError as error:
            if dropout:
                raise
            if batch_statistics and '"dropout"' in str(error):
                raise self._inseparable(batch_statistics, dropout) from None
            name, said = type(self.module).__name__, str(error).partition("\n")[0]
            raise InputError(f"{name}: draws at random while dropout is off: {said}") from None
        return outputs, {**model_state, **new} if updated else model_state

    def _flags(self, batch_statistics: bool, dropout: bool, model_state: Any) -> dict[str, Any]:
        if self.flags is not None:
            return self.flags(batch_statistics, dropout)
        known = {
            "batch_statistics": batch_statistics,
            "dropout": dropout,
            "use_running_average": not batch_statistics,
            "deterministic": not dropout,
        }
        names = inspect.signature(type(self.module).__call__).parameters
        flags = {name: value for name, value in known.items() if name in names}
        if single := self._single():
            if dropout and not batch_statistics and model_state:
                raise self._inseparable(batch_statistics, dropout)
            flags[single] = batch_statistics if model_state else dropout
        return flags

    def _single(self) -> str | None:
        names = inspect.signature(type(self.module).__call__).parameters
        return next((name for name in ("train", "training") if name in names), None)

    def _inseparable(self, batch_statistics: bool, dropout: bool) -> InputError:
        single = None if self.flags else self._single()
        flag = f"one flag {single!r}" if single else "flags"
        return InputError(
            f"{type(self.module).__name__}: its {flag} cannot separate batch statistics "
            f"({batch_statistics}) from dropout ({dropout}); give it a flag for each, and say how "
            f"they map: Model.from_linen(module, flags=lambda batch_statistics, dropout: "
            f'{{"train": batch_statistics, "drop": dropout}})'
        )


@dataclass(frozen=True)
class NnxModel(Model):
    """An NNX module, split into its graph (static), its `nnx.Param`s and the rest of its state."""

    graph: Any
    create: Callable[[nnx.Rngs], nnx.Module] | None = None

    def init(self, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
        """See `Model.init`."""
        if self.create is None:
            raise InputError(
                "this NNX module has its parameters already; to train from several starts "
                "give Model.from_nnx(lambda rngs: ...)"
            )
        return nnx_parts(self.create(nnx.Rngs(key)))

    def apply(self, params, model_state, inputs, *, batch_statistics, dropout, key=None):  # type: ignore[no-untyped-def]
        """See `Model.apply`."""
        module = nnx.merge(self.graph, params, model_state, copy=True)
        module.set_attributes(use_running_average=not batch_statistics, raise_if_not_found=False)
        module.set_attributes(deterministic=not dropout, raise_if_not_found=False)
        if dropout and key is not None:
            nnx.reseed(module, default=key, dropout=key)
        outputs = module(inputs)
        # The flags are static: only the state travels back, in the structure it came in.
        updated = jax.tree.leaves(nnx_parts(module)[1])
        return outputs, jax.tree.unflatten(jax.tree.structure(model_state), updated)


@dataclass(frozen=True)
class FunctionModel(Model):
    """A pair of plain functions; it has no state and no dropout."""

    initialise: Callable[[jax.Array, jax.Array], Any]
    function: Callable[[Any, jax.Array], jax.Array]

    def init(self, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
        """See `Model.init`."""
        return self.initialise(key, inputs[:1]), {}

    def apply(self, params, model_state, inputs, *, batch_statistics, dropout, key=None):  # type: ignore[no-untyped-def]
        """See `Model.apply`."""
        return self.function(params, inputs), model_state


def nnx_parts(network: Any) -> tuple[Any, Any]:
    """`(params, model_state)` as an NNX module holds them."""
    if not isinstance(network, nnx.Module):
        raise InputError("params and model_state are required unless the model is an NNX module")
    _, params, *state = nnx.split(network, nnx.Param, ...)
    return params, state[0]


def has_batch_norm(model_state: Any) -> bool:
    """Whether the model carries floating-point state that batches update."""
    leaves = jax.tree.leaves(model_state)
    return any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)
