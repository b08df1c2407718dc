"""`measure`: how every metric is called, alone or with others that share its passes."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import trees
from sharpflat.objective import Objective, sharing
from sharpflat.registry import Entry, metrics, told
from sharpflat.sharpness.base import Estimate, checked, key_of
from sharpflat.validation import InputError, closest

Spec = str | Mapping[str, Mapping[str, Any] | None]


class Measured(NamedTuple):
    """One metric's outcome: an estimate, or the error that kept it from one."""

    name: str
    arguments: dict[str, Any]
    estimate: Estimate | None
    error: Exception | None
    seconds: float

    @property
    def reason(self) -> str | None:
        """What kept it from a number, with the line of a user's own file that it came from."""
        if self.error is None:
            return None
        return told(self.error, [metrics[self.name]] if self.name in metrics else [])


def measure(
    objective: Objective,
    metric: Spec | Sequence[Spec],
    *,
    seed: int = 0,
    **keywords: Any,
) -> Any:
    """Measure one metric or several at the objective's parameters.

    Args:
        objective: where to measure.
        metric: a name, `{name: {argument: value}}`, or a list of these; `all` for every metric with
            its defaults, those left out that cannot be measured here, with the reason in a warning.
        seed: of all that is random; the same seed gives the same number.
        **keywords: arguments of a metric given by name alone, and inputs that metrics need
            (`initial_params`, ...).

    Returns:
        An `Estimate`, or a list of them in the order asked for; for `all` a mapping from names to
        them. Among several a metric that fails leaves the others' results: its own is NaN,
        unconverged, with the error in its details. A value that is not finite comes with a warning.

    Raises:
        InputError: before any work, an unknown metric or argument, a missing input, what the
            objective cannot give; what is not finite of the parameters, averages and initial
            parameters or, where data are looked at, of the loss; later, one metric's failure.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> data = (jnp.ones((4, 1)), jnp.zeros(4))
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 1.5 * jnp.sum(w**2), jnp.zeros(3), data)
        >>> round(sf.measure(bowl, "hessian_top_eigenvalues").value, 4)
        3.0
    """
    if not isinstance(objective, Objective):
        raise InputError(
            f"objective: expected an Objective, got {type(objective).__name__}; "
            f"Objective.from_function and Objective.from_model make one"
        )
    if metric == "all":
        names = _possible(objective, keywords)
        return dict(zip(names, measure(objective, names, seed=seed, **keywords), strict=True))
    several = isinstance(metric, Sequence) and not isinstance(metric, str)
    specs: Sequence[Spec] = metric if several else [metric]  # type: ignore[assignment, list-item]
    if several or not isinstance(metric, str):
        arguments, inputs = {}, keywords
    else:
        taken = metrics[metric].inputs
        inputs = {name: keywords[name] for name in keywords if name in taken}
        arguments = {name: keywords[name] for name in keywords if name not in taken}
    requests = [(name, {**given, **arguments}) for name, given in map(_parts, specs)]
    estimates = []
    for outcome in measure_each(objective, requests, seed, inputs):
        if outcome.error is not None and not several:
            raise outcome.error
        estimates.append(_told(outcome))
    return estimates if several else estimates[0]


def _possible(objective: Objective, inputs: Mapping[str, Any]) -> list[str]:
    """The metrics that can be measured, in the registry's order; the others are told of."""
    names, left_out = list[str](), dict[str, list[str]]()
    for name, entry in metrics.items():
        try:
            _check_inputs(entry, inputs, {*inputs})
            check(entry, objective, {**entry.arguments({}), **own_inputs(entry, inputs)})
        except Exception as error:  # an InputError, or a check of someone's own that fails
            left_out.setdefault(str(error).removeprefix(f"{name}: "), []).append(name)
        else:
            names.append(name)
    if left_out:
        reasons = "; ".join(f"{', '.join(those)}: {why}" for why, those in left_out.items())
        warnings.warn(f"all: left out {reasons}", stacklevel=3)
    return names


def _told(outcome: Measured) -> Estimate:
    """The estimate, or NaN for one that failed; a word of both and of what is not finite."""
    estimate = outcome.estimate
    if estimate is None:
        warnings.warn(f"{outcome.name}: {outcome.reason}", stacklevel=3)
        return Estimate(float("nan"), None, False, {"error": np.array(outcome.reason)})
    if not math.isfinite(estimate.value):
        said = f"its value is {estimate.value}, not a finite number"
        warnings.warn(f"{outcome.name}: {said}", stacklevel=3)
    return estimate


def measure_each(
    objective: Objective,
    requests: Sequence[tuple[str, Mapping[str, Any]]],
    seed: int,
    inputs: Mapping[str, Any],
    before: Callable[[str], None] = lambda name: None,
) -> Iterator[Measured]:
    """Each request's outcome in turn, shared passes made once; an error ends only its own metric.

    Everything that can be checked is checked before any work.
    """
    asked = [(metrics[name], metrics[name].arguments(given)) for name, given in requests]
    known = {*INPUTS, *(name for entry, _ in asked for name in entry.inputs)}
    for entry, arguments in asked:
        _check_inputs(entry, inputs, known)
        check(entry, objective, {**arguments, **own_inputs(entry, inputs)})
    check_finite(objective, any(_looks_at_data(objective, *request) for request in asked))
    key = key_of(seed)
    with sharing():
        for entry, arguments in asked:
            before(entry.label(arguments))
            began = time.perf_counter()
            estimate, failure = None, None
            try:
                given = {**arguments, **own_inputs(entry, inputs)}
                estimate = checked(entry, entry(objective, key, **given))
            except Exception as error:
                failure = error
            yield Measured(entry.name, arguments, estimate, failure, time.perf_counter() - began)


def _looks_at_data(objective: Objective, entry: Entry, arguments: Mapping[str, Any]) -> bool:
    return entry.cost is None or entry.cost(objective.data.size, arguments) > 0


class NotFinite(InputError):
    """An objective at whose parameters there is nothing to measure."""


def check_finite(objective: Objective, with_loss: bool = True) -> None:
    """Refuse an objective whose parameters, state or, if asked for, loss there are not finite.

    Raises:
        NotFinite: names which.
    """
    held = {"parameters": objective.whole(objective.params), "model_state": objective.model_state}
    for name, tree in held.items():
        if not _finite(tree):
            raise NotFinite(f"{name}: hold numbers that are not finite; {IN_VAIN}")
    if not with_loss:
        return
    try:
        loss = float(objective.loss(objective.params))
    except Exception:  # what needs the loss will raise it, as its own error
        return
    if not math.isfinite(loss):
        raise NotFinite(f"loss: is {loss} at these parameters; {IN_VAIN}")


def _finite(tree: Any) -> bool:
    """Whether all its floating-point numbers are; what has only a shape has none."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array | np.ndarray)]
    return bool(
        trees.all_finite([leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)])
    )


def check(entry: Entry, objective: Objective, arguments: Mapping[str, Any]) -> None:
    """Refuse what `entry` cannot measure on `objective`, whose arrays need only have shapes.

    Args:
        entry: the metric.
        objective: where it would be measured.
        arguments: all of them, and inputs (`initial_params`, ...) where they are at hand already.

    Raises:
        InputError: one line that names the metric.
    """
    if not _finite(arguments.get("initial_params")):
        raise InputError(f"{entry.name}: initial_params: hold numbers that are not finite")
    for refuse in entry.checks:
        try:
            refuse(objective, arguments)
        except InputError as error:
            raise InputError(f"{entry.name}: {error}") from None


def missing_inputs(entry: Entry, inputs: Mapping[str, Any]) -> list[str]:
    """What the metric needs and is not handed."""
    needed = [name for name in entry.inputs if name not in UNLESS_GIVEN]
    return [name for name in needed if inputs.get(name) is None]


def own_inputs(entry: Entry, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Of what is handed over the metric's own; of what need not be and is not, nothing of it."""
    given = {name: value for name, value in inputs.items() if value is not None}
    return {name: {**UNLESS_GIVEN, **given}[name] for name in entry.inputs}


def _parts(spec: Spec) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise InputError(f"metric: expected a name or {{name: arguments}}, got {spec!r}")
    ((name, arguments),) = spec.items()
    return name, dict(arguments or {})


def _check_inputs(entry: Entry, inputs: Mapping[str, Any], known: set[str]) -> None:
    missing = missing_inputs(entry, inputs)
    if missing:
        hint = f" (given: {', '.join(inputs)})" if inputs else ""
        raise InputError(f"{entry.name}: needs {missing[0]!r}{hint}; pass it to measure")
    unknown = [name for name in inputs if name not in known]
    if unknown and unknown[0] in entry.schema.model_fields:
        given = f"{{{entry.name!r}: {{{unknown[0]!r}: {inputs[unknown[0]]!r}}}}}"
        raise InputError(f"{entry.name}: in a list its arguments go with it, as {given}")
    if unknown:
        hint = closest(unknown[0], (*entry.schema.model_fields, *entry.inputs))
        raise InputError(f"{entry.name}: unknown argument {unknown[0]!r}{hint}")


IN_VAIN = "nothing can be measured there"

INPUTS = ("initial_params", "opt_state", "optimizer", "hyperparams")
"""What metrics may ask for beside the objective: a study hands these over."""

UNLESS_GIVEN: dict[str, Any] = {"hyperparams": {}}
"""What `measure` hands over of these where it is not given them."""
