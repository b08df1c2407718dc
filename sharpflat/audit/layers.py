"""The layers of a network in the order it uses them, and edits of their arrays by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from sharpflat.objective import Objective
from sharpflat.registry import InputError

Edits = Mapping[str, Callable[[jax.Array], jax.Array]]


class Pair(NamedTuple):
    """A layer, what normalises its outputs if anything does, the next layer, and its units."""

    first: str
    norm: str | None
    second: str
    units: int


def kernels(objective: Objective) -> dict[str, jax.Array]:
    """Each layer's kernel by the layer's name, in the order in which a forward pass uses them.

    Raises:
        InputError: an objective without a network, or one whose parameters are not named as
            Flax's are.
    """
    return _kernels(_modules(objective), _arrays(objective.params))


def pairs(objective: Objective) -> list[Pair]:
    """Neighbouring layers whose shapes fit.

    Raises:
        InputError: as `kernels`.
    """
    modules, arrays = _modules(objective), _arrays(objective.params)
    layers, found = _kernels(modules, arrays), []
    for first, second in itertools.pairwise(layers):
        units = layers[first].shape[-1]
        between = modules[modules.index(first) + 1 : modules.index(second)]
        norms = [name for name in between if f"{name}/scale" in arrays]
        if layers[second].shape[-2] % units == 0:
            found.append(Pair(first, norms[0] if norms else None, second, units))
    return found


def edited(objective: Objective, params: Edits, state: Edits | None = None) -> Objective:
    """The objective with the arrays of these names changed; a name that none has is left out."""
    return replace(
        objective,
        params=_edited(objective.params, params),
        model_state=_edited(objective.model_state, state or {}),
    )


def average(objective: Objective, norm: str, part: str) -> str:
    """The name in the state of a normalisation's `mean` or `var`; nothing where it has none."""
    # A Linen state's names begin with its collection, which the parameters' lack.
    names = [
        name for name in _arrays(objective.model_state) if f"/{name}".endswith(f"/{norm}/{part}")
    ]
    return min(names, key=len, default="")


def _modules(objective: Objective) -> list[str]:
    """The modules that hold parameters, by their first use in a forward pass."""
    objective.need_outputs("layers")
    model, state, few = objective.model, objective.model_state, objective.data.first(2)
    assert model is not None

    def outputs(params: Any) -> jax.Array:
        whole = objective.whole(params)
        return model.apply(whole, state, few.inputs, batch_statistics=False, dropout=False)[0]

    program = jax.make_jaxpr(outputs)(objective.params).jaxpr
    uses = [id(variable) for equation in program.eqns for variable in equation.invars]
    inputs = zip(program.invars, _arrays(objective.params), strict=True)
    first = {name: uses.index(id(variable)) for variable, name in inputs if id(variable) in uses}
    return list(
        dict.fromkeys(name.rpartition("/")[0] for name in sorted(first, key=first.__getitem__))
    )


def _kernels(modules: Sequence[str], arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    named = {name: arrays[f"{name}/kernel"] for name in modules if f"{name}/kernel" in arrays}
    found = {name: kernel for name, kernel in named.items() if kernel.ndim >= 2}
    if not found:
        raise InputError(f"params: none is a kernel, as 'Dense_0/kernel'; there are {[*arrays]}")
    return found


def _arrays(tree: Any) -> dict[str, jax.Array]:
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _edited(tree: Any, edits: Edits) -> Any:
    def leaf(path: Any, value: jax.Array) -> jax.Array:
        return edits[_name(path)](value) if _name(path) in edits else value

    return jax.tree.map_with_path(leaf, tree)


def _name(path: Any) -> str:
    """`Dense_0/kernel`; an NNX parameter's own `value` is left out."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
