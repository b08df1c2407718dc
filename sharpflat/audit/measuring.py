"""Which metrics an audit asks for, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sharpflat.objective import Objective
from sharpflat.registry import Entry, metrics
from sharpflat.sharpness import Estimate, check, measure_each
from sharpflat.sharpness.measuring import NotFinite, missing_inputs, own_inputs
from sharpflat.validation import InputError

UNCERTIFIED = "!"
Spec = str | Mapping[str, Mapping[str, Any] | None]
Requests = list[tuple[str, dict[str, Any]]]


def chosen(
    objective: Objective,
    specs: Spec | Sequence[Spec] | None,
    inputs: Mapping[str, Any],
) -> tuple[Requests, dict[str, str]]:
    """The metrics with all their arguments, and those left out with the reason.

    Args:
        objective: what they would be measured on.
        specs: a name, `{name: arguments}` or a list of these; None for all that there are.
        inputs: what is there to be handed over.

    Raises:
        InputError: an unknown metric or argument; a metric asked for that cannot be measured.
    """
    asked = list(metrics) if specs is None else specs
    asked = [asked] if isinstance(asked, str | Mapping) else asked
    requests: Requests = []
    left_out: dict[str, str] = {}
    for name, given in map(_parts, asked):
        entry, arguments = metrics[name], metrics[name].arguments(given)
        reason = _obstacle(entry, objective, arguments, inputs)
        if reason is None:
            requests.append((name, arguments))
        elif specs is None:
            left_out[name] = reason
        else:
            raise InputError(f"{name}: {reason}")
    if not requests:
        raise InputError("metrics: none is asked for that can be measured here")
    return requests, left_out


def estimates(
    objective: Objective,
    requests: Requests,
    seed: int,
    inputs: Mapping[str, Any],
    before: Callable[[str], None],
) -> list[Estimate]:
    """What each gives; one that fails is NaN, with the error in its details, as of `measure`.

    Every one does where the objective's numbers are not finite.
    """
    try:
        outcomes = list(measure_each(objective, requests, seed, inputs, before))
    except NotFinite as error:
        return [_failed(str(error))] * len(requests)
    return [outcome.estimate or _failed(str(outcome.reason)) for outcome in outcomes]


def _failed(reason: str) -> Estimate:
    return Estimate(float("nan"), None, False, {"error": np.array(reason)})


def shown(estimate: Estimate) -> str:
    """Value ± standard error (`?` if not known), and `UNCERTIFIED` where that holds."""
    return with_error(f"{estimate.value:.4g}", estimate.standard_error) + mark(estimate)


def with_error(text: str, error: float | None) -> str:
    """A number with its standard error behind it, `?` if that is not known."""
    return f"{text} ± ?" if error is None else f"{text} ± {error:.2g}" if error else text


def mark(estimate: Estimate) -> str:
    """`UNCERTIFIED` behind a number whose own certificate did not hold."""
    return "" if estimate.converged else f" {UNCERTIFIED}"


def failure(estimate: Estimate) -> str | None:
    """What kept a metric from a number."""
    return str(estimate.details["error"]) if "error" in estimate.details else None


def _parts(spec: Spec) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    if len(spec) != 1:
        raise InputError(f"metric: expected a name or {{name: arguments}}, got {spec!r}")
    ((name, arguments),) = spec.items()
    return name, dict(arguments or {})


def _obstacle(
    entry: Entry,
    objective: Objective,
    arguments: Mapping[str, Any],
    inputs: Mapping[str, Any],
) -> str | None:
    lacking = missing_inputs(entry, inputs)
    if lacking:
        return f"needs {lacking[0]!r}"
    try:
        check(entry, objective, {**arguments, **own_inputs(entry, inputs)})
    except InputError as error:
        return str(error).removeprefix(f"{entry.name}: ")
    return None
