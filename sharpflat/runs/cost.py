"""About how long trainings and measurements take, before any is made."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from sharpflat.registry import metrics
from sharpflat.runs.build import abstract_objective, build_recipe, epochs_of, resident
from sharpflat.runs.record import Run
from sharpflat.runs.requests import Request
from sharpflat.training import start

UPDATES_TIMED = 64


class Planned(NamedTuple):
    """What a study would do to one run.

    Attributes:
        run: its record, which may not be there yet.
        status: `new`, or that of its record.
        todo: the measurements that it lacks.
    """

    run: Run
    status: str
    todo: list[Request]

    @property
    def to_train(self) -> bool:
        """Whether its training is still to be made or to be ended."""
        return self.status not in ("finished", "diverged")


class Cost(NamedTuple):
    """About how much work a measurement of one run is, alone; together they share passes.

    Attributes:
        request: the measurement.
        gradients: evaluations of the loss's gradient over its examples; None if the metric does
            not say.
        seconds: that many times what one takes now, at the parameters a training starts from.
        runs: how many lack it.
    """

    request: Request
    gradients: float | None
    seconds: float | None
    runs: int


def costs_of(config: dict[str, Any], asked: Sequence[tuple[Request, int]]) -> list[Cost]:
    """The cost of each measurement, with the number of runs that lack it, of this config."""
    of_setting = {request.setting: request for request, _ in asked}
    seconds = {key: _request_seconds(config, request) for key, request in of_setting.items()}
    return [_cost(config, request, seconds[request.setting], runs) for request, runs in asked]


def training_seconds(config: dict[str, Any]) -> float:
    """At most about what a training takes: its epochs, by the gradients of a few batches.

    Evaluations and compiling are left out, and that it may stop before its last epoch.
    """
    train = config["train"]
    batch, size = train["batch_size"], resident(config["dataset"]).train.size
    examples = min(size, UPDATES_TIMED * batch)
    return epochs_of(train) * size / examples * _gradient_seconds(config, "train", examples, batch)


def trainings_seconds(plan: Sequence[Planned]) -> float:
    """The same for all that are still to be trained."""
    configs = [row.run.config for row in plan if row.to_train]
    settings = [json.dumps({**config, "seed": 0}, sort_keys=True) for config in configs]
    seconds = {key: training_seconds(json.loads(key)) for key in dict.fromkeys(settings)}
    return sum(seconds[key] for key in settings)


def _request_seconds(config: dict[str, Any], request: Request) -> float:
    data = getattr(resident(config["dataset"]), request.split)
    examples = request.examples or data.size
    return _gradient_seconds(config, request.split, examples, request.chunk, request.batch_norm)


def _gradient_seconds(
    config: dict[str, Any], split: str, examples: int, chunk: int, policy: Any = "running"
) -> float:
    """The shortest time of one gradient out of three, compiling left out."""
    part = getattr(resident(config["dataset"]), split).first(examples)
    state = start(build_recipe(config), part, 0)
    shapes = abstract_objective(config, split, examples, chunk, policy)
    objective = replace(shapes, params=state.params, model_state=state.model_state, data=part)
    jax.block_until_ready(objective.value_and_grad(state.params))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(objective.value_and_grad(state.params))
        times.append(time.perf_counter() - began)
    return min(times)


def _cost(config: dict[str, Any], request: Request, seconds: float, runs: int) -> Cost:
    entry = metrics[request.metric]
    if entry.cost is None:
        return Cost(request, None, None, runs)
    examples = request.examples or getattr(resident(config["dataset"]), request.split).size
    gradients = float(entry.cost(examples, request.arguments))
    return Cost(request, gradients, gradients * seconds, runs)
