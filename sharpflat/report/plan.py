"""What is to be done, and about how long it takes, before any of it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sharpflat import runs
from sharpflat.config import Config
from sharpflat.report.names import setting_text
from sharpflat.runs.cost import Cost, Planned, costs_of, trainings_seconds
from sharpflat.runs.requests import Request, left_out, requests

COMPILE_SECONDS = 3
"""Of one measure of a small network on two cores."""


def plan_lines(study: Config, plan: Sequence[Planned]) -> Iterator[str]:
    """What `sharpflat run --dry-run` prints: a line a run, then what it all costs."""
    for row in plan:
        setting = f"{setting_text(row.run.swept)}, seed={row.run.seed}"
        yield f"{row.run.id}  {setting}  {row.status}, {len(row.todo)} measurements to make"
    yield from left_out(requests(study), [row.run for row in plan])
    trainings = sum(row.to_train for row in plan)
    if trainings:
        seconds, unknown = trainings_seconds(study, plan)
        beside = f", beside {unknown} that could not be timed" if unknown else ""
        minutes = f"{seconds / 60:.1f} min one after another if none stops early"
        yield f"\n{trainings} trainings, their updates about {minutes}{beside}"
    if any(row.todo for row in plan):
        yield from _cost_lines(runs.costs(study, plan))


def _cost_lines(costs: Sequence[Cost]) -> Iterator[str]:
    yield "\nabout what is to be measured, each measure alone, without compiling"
    yield "(gradients over its examples; one was timed just now):"
    settings = {cost.request.setting for cost in costs}
    labels = [cost.request.label + cost.request.where * (len(settings) > 1) for cost in costs]
    width = max(map(len, labels))
    yield f"{'measure':{width}}  gradients      a run  runs"
    for label, cost in zip(labels, costs, strict=True):
        gradients = "?" if cost.gradients is None else f"{cost.gradients:.0f}"
        seconds = "?" if cost.seconds is None else f"{cost.seconds / cost.runs:.1f} s"
        yield f"{label:{width}}  {gradients:>9} {seconds:>10}  {cost.runs:4}"
    minutes = sum(cost.seconds or 0 for cost in costs) / 60
    silent = sum(cost.seconds is None for cost in costs)
    beside = f", beside {silent} that are not known" if silent else ""
    yield f"{'the sum':{width}}  about {minutes:.1f} min{beside}"


def effort(record: runs.Run, objective: Any, asked: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """How many measurements an audit makes, and about how long that takes."""
    size, chunk = objective.data.size, objective.chunk
    wanted = [
        Request(name, arguments, "train", size, chunk, objective.batch_norm, 0, None)
        for name, arguments in asked
    ]
    costs = costs_of(record.config, [(request, 1) for request in wanted])
    minutes = sum(cost.seconds or 0 for cost in costs) / 60
    compiling = COMPILE_SECONDS * len({request.metric for request in wanted}) / 60
    return (
        f"{len(asked)} measurements on {size} examples, about {minutes:.1f} min (gradients by what "
        f"each declares; one timed now), and the first time {compiling:.1f} min or more to compile"
    )
