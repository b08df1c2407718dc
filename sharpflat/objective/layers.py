"""A network's arrays by name, and its layers in the order in which a forward pass uses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
from jax.tree_util import GetAttrKey

from sharpflat.validation import InputError

if TYPE_CHECKING:
    from sharpflat.objective.objective import Objective


def name_of(path: tuple[Any, ...]) -> str:
    """A leaf's name by its path in a tree, as `Dense_0/kernel`.

    The attribute `value` in which NNX, or a box of Linen, keeps an array is left out.
    """
    boxed = len(path) > 1 and path[-1] == GetAttrKey("value")
    return jax.tree_util.keystr(path[:-1] if boxed else path, simple=True, separator="/")


def by_name(tree: Any) -> dict[str, Any]:
    """The tree's leaves by their names, in its own order."""
    return {name_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def order_of_use(objective: Objective) -> list[str]:
    """The parameters' names by their first use in a forward pass; what is not used is left out.

    The objective's arrays need only have shapes.

    Raises:
        InputError: an objective without a network.
    """
    objective.need_outputs("layers")

    def outputs(params: Any, objective: Objective) -> Any:
        model, few = objective.model, objective.data.first(2)
        assert model is not None
        whole, state = objective.whole(params), objective.model_state
        return model.apply(whole, state, few.inputs, batch_statistics=False, dropout=False)[0]

    program = jax.make_jaxpr(outputs)(objective.params, objective).jaxpr
    names = objective.layers()
    inputs = dict(zip(map(id, program.invars[: len(names)]), names, strict=True))
    return list(dict.fromkeys(_uses(program, inputs)))


def modules(objective: Objective) -> list[str]:
    """The modules that hold parameters, by their first use in a forward pass.

    Raises:
        InputError: as `order_of_use`.
    """
    return list(dict.fromkeys(name.rpartition("/")[0] for name in order_of_use(objective)))


def kernels(objective: Objective) -> dict[str, jax.Array]:
    """Each layer's kernel by the layer's name, in the order in which a forward pass uses them.

    Raises:
        InputError: an objective without a network, or one whose parameters are not named as
            Flax's are.
    """
    arrays = by_name(objective.params)
    named = {name: arrays.get(f"{name}/kernel") for name in modules(objective)}
    found = {name: leaf for name, leaf in named.items() if leaf is not None and leaf.ndim >= 2}
    if not found:
        raise InputError(f"params: none is a kernel, as 'Dense_0/kernel'; there are {[*arrays]}")
    return found


def _uses(program: Any, names: Mapping[int, str]) -> Iterator[str]:
    """Which of the named variables (by id) the program reads, one after another."""
    for equation in program.eqns:
        read = [names.get(id(variable)) for variable in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        inner = getattr(inner, "jaxpr", inner)
        if inner is not None and len(inner.invars) == len(read):
            inside = zip(map(id, inner.invars), read, strict=True)
            yield from _uses(inner, {variable: name for variable, name in inside if name})
        else:
            yield from filter(None, read)
