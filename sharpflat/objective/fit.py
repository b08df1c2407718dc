"""Whether parameters and state are those of the model; what is not is named by its path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import errors

from sharpflat.objective import derivatives
from sharpflat.objective.layers import by_name
from sharpflat.validation import InputError

if TYPE_CHECKING:
    from sharpflat.objective.objective import Objective

MOST_NAMED = 3
OF_VARIABLES = (
    errors.ApplyScopeInvalidVariablesTypeError,
    errors.ApplyScopeInvalidVariablesStructureError,
    errors.ScopeCollectionNotFound,
    errors.ScopeParamNotFoundError,
    errors.ScopeParamShapeError,
    errors.ScopeVariableNotFoundError,
)


def output_shapes(objective: Objective) -> Any:
    """The shapes of the network's outputs on all examples, nothing computed.

    Raises:
        InputError: the parameters or the state are not those of the model.
    """
    try:
        return jax.eval_shape(derivatives.outputs, objective, objective.params)
    except InputError:
        raise
    except Exception as error:
        reason = _misfit(objective)
        if reason is None and isinstance(error, OF_VARIABLES):
            said = str(error).splitlines()[0]
            reason = f"params or model_state: do not fit the model: {said}"
        if reason is None:
            raise
        raise InputError(reason) from None


def _misfit(objective: Objective) -> str | None:
    """How params and state differ from what the model begins with; None where it cannot say."""
    model, inputs = objective.model, objective.data.inputs
    assert model is not None
    try:
        params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)
    except Exception:
        return None
    pairs = {"params": (params, objective.params), "model_state": (state, objective.model_state)}
    found = (_difference(what, *pair) for what, pair in pairs.items())
    reason = next((said for said in found if said is not None), None)
    return reason and f"{reason}, as the model has it for inputs of shape {inputs.shape}"


def _difference(what: str, wanted: Any, given: Any) -> str | None:
    there = {name: np.shape(leaf) for name, leaf in by_name(given).items()}
    for name, leaf in by_name(wanted).items():
        if name not in there:
            names = ", ".join(repr(n) if n else "one array" for n in list(there)[:MOST_NAMED])
            more = ", ..." * (len(there) > MOST_NAMED)
            return f"{what}: got {names or 'nothing'}{more}; expected {name!r}"
        if there[name] != leaf.shape:
            return f"{what}: {name!r} has shape {there[name]}; expected {leaf.shape}"
    return None
