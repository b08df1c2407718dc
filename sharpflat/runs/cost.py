"""About how long measurements take, before any is made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from sharpflat.registry import metrics
from sharpflat.runs.build import abstract_objective, build_recipe, resident
from sharpflat.runs.measure_run import Request
from sharpflat.training import start


class Cost(NamedTuple):
    """About how much work a measurement of one run is, alone; together they share passes.

    Attributes:
        request: the measurement.
        gradients: evaluations of the loss's gradient over its examples; None if the metric does
            not say.
        seconds: that many times what one takes now, at the parameters a training starts from.
    """

    request: Request
    gradients: float | None
    seconds: float | None


def costs_of(config: dict[str, Any], asked: Sequence[Request]) -> list[Cost]:
    """The cost of each measurement of a run of this resolved config."""
    seconds = {request.setting: 0.0 for request in asked}
    for request in {request.setting: request for request in asked}.values():
        seconds[request.setting] = gradient_seconds(config, request)
    return [_cost(config, request, seconds[request.setting]) for request in asked]


def gradient_seconds(config: dict[str, Any], request: Request, repeats: int = 3) -> float:
    """The shortest time of one gradient over the request's examples, compiling left out."""
    data = getattr(resident(config["dataset"]), request.split)
    part = data.first(request.examples or data.size)
    state = start(build_recipe(config), data, 0)
    shapes = abstract_objective(
        config, request.split, request.examples, request.chunk, request.batch_norm
    )
    objective = replace(shapes, params=state.params, model_state=state.model_state, data=part)
    jax.block_until_ready(objective.value_and_grad(state.params))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(objective.value_and_grad(state.params))
        times.append(time.perf_counter() - began)
    return min(times)


def _cost(config: dict[str, Any], request: Request, seconds: float) -> Cost:
    entry = metrics[request.metric]
    if entry.cost is None:
        return Cost(request, None, None)
    examples = request.examples or getattr(resident(config["dataset"]), request.split).size
    gradients = float(entry.cost(examples, request.arguments))
    return Cost(request, gradients, gradients * seconds)
