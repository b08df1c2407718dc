"""About how long trainings and measurements take, before any is made."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sharpflat.config import Config
from sharpflat.registry import metrics
from sharpflat.runs.build import abstract_objective, build_recipe, epochs_of, resident
from sharpflat.runs.layout import Layout, is_streamed, shared_mesh
from sharpflat.runs.record import DAMAGED, ENDED, Run
from sharpflat.runs.requests import Request
from sharpflat.training import Batches, advance, beginning, start

SECONDS_TIMED = 1.0


class Planned(NamedTuple):
    """What a study would do to one run.

    Attributes:
        run: its record, which may not be there yet.
        status: `new`, `damaged`, or that of its record.
        todo: the measurements that it lacks.
    """

    run: Run
    status: str
    todo: list[Request]

    @property
    def to_train(self) -> bool:
        """Whether its training is still to be made or to be ended."""
        return self.status not in (*ENDED, DAMAGED)


class Cost(NamedTuple):
    """About how much work a measurement is, alone; together they share passes.

    Attributes:
        request: the measurement.
        gradients: evaluations of the loss's gradient over its examples, a run; None if the metric
            does not say.
        seconds: that many times what one takes now, at the parameters a training starts from, over
            all runs that lack it; None where that could not be timed for some.
        runs: how many these are.
    """

    request: Request
    gradients: float | None
    seconds: float | None
    runs: int

    @classmethod
    def total(cls, costs: Sequence[Cost]) -> Cost:
        """Of one measurement on several kinds of runs."""
        seconds = [cost.seconds for cost in costs if cost.seconds is not None]
        total = sum(seconds) if len(seconds) == len(costs) else None
        known = next((cost for cost in costs if cost.gradients is not None), costs[0])
        return known._replace(seconds=total, runs=sum(cost.runs for cost in costs))


def costs_of(config: dict[str, Any], asked: Sequence[tuple[Request, int]]) -> list[Cost]:
    """The cost of each measurement, with the number of runs that lack it, of this config."""
    of_setting = {request.setting: request for request, _ in asked}
    seconds = {key: _request_seconds(config, request) for key, request in of_setting.items()}
    return [_cost(config, request, seconds[request.setting], runs) for request, runs in asked]


def trainings_seconds(study: Config, plan: Sequence[Planned]) -> tuple[float, int]:
    """About what all trainings take that are still to be made, and how many could not be timed.

    One after another; their epochs, by the time of some updates made now: evaluations are left out,
    and that a training may stop before its last epoch.
    """
    configs = [row.run.config for row in plan if row.to_train]
    settings = [json.dumps({**config, "seed": 0}, sort_keys=True) for config in configs]
    seconds = {key: _training_seconds(study, json.loads(key)) for key in dict.fromkeys(settings)}
    known = [seconds[key] for key in settings]
    return sum(time for time in known if time is not None), known.count(None)


def _training_seconds(study: Config, config: dict[str, Any]) -> float | None:
    try:
        streamed = is_streamed(config["dataset"], study.dataset_on_device)
        layout = Layout(shared_mesh(study.data_parallel), streamed)
        return epochs_of(config["train"]) * _epoch_seconds(config, layout)
    except Exception:
        return None  # someone's own model raises: its runs will, and say so


def _epoch_seconds(config: dict[str, Any], layout: Layout) -> float:
    """Over updates made now; the first segment of each batch size is left out: it compiles."""
    train, data = config["train"], layout.data(config).train
    recipe = replace(build_recipe(config), mesh=layout.mesh)
    batches = Batches(data.size, train["batch_size"], train["drop_last"])
    updates, seconds, step, compiled = 0, 0.0, 0, set[int]()
    for moment in advance(
        recipe, beginning(start(recipe, data, 0)), data, batch_size=train["batch_size"], seed=0,
        drop_last=train["drop_last"], streamed_by=layout.streamed_by(data),
    ):  # fmt: skip
        size = batches.stretch(step % batches.updates, 1)[0]
        if size in compiled:
            updates, seconds = updates + moment.step - step, seconds + moment.seconds
        step, compiled = moment.step, {*compiled, size}
        if seconds > SECONDS_TIMED:
            break
    return batches.updates * seconds / updates


def _request_seconds(config: dict[str, Any], request: Request) -> float | None:
    try:
        where = request.split, _examples(config, request), request.chunk, request.batch_norm
        return _gradient_seconds(config, *where)
    except Exception:
        return None  # as for trainings


def _gradient_seconds(
    config: dict[str, Any], split: str, examples: int, chunk: int, policy: Any = "running"
) -> float:
    """The median time of one gradient out of five, compiling left out."""
    host = getattr(resident(config["dataset"]), split).first(examples)
    part = jax.tree.map(jnp.asarray, host)
    state = start(build_recipe(config), part, 0)
    shapes = abstract_objective(config, split, examples, chunk, policy)
    objective = replace(shapes, params=state.params, model_state=state.model_state, data=part)
    jax.block_until_ready(objective.value_and_grad(state.params))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(objective.value_and_grad(state.params))
        times.append(time.perf_counter() - began)
    return median(times)


def _cost(config: dict[str, Any], request: Request, seconds: float | None, runs: int) -> Cost:
    gradients = _gradients(config, request)
    total = None if gradients is None or seconds is None else runs * gradients * seconds
    return Cost(request, gradients, total, runs)


def _gradients(config: dict[str, Any], request: Request) -> float | None:
    cost = metrics[request.metric].cost
    try:
        return None if cost is None else float(cost(_examples(config, request), request.arguments))
    except Exception:
        return None  # as for trainings


def _examples(config: dict[str, Any], request: Request) -> int:
    return request.examples or getattr(resident(config["dataset"]), request.split).size
