"""Measurements of finished runs: those that are not there yet, each on disk at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sharpflat.registry import metrics
from sharpflat.runs import files, outcomes
from sharpflat.runs.progress import Reporter
from sharpflat.runs.provenance import commit, device, versions
from sharpflat.runs.record import Run
from sharpflat.runs.requests import HANDED_OVER, Request, missing, not_finite
from sharpflat.sharpness import Measured, check, measure_each
from sharpflat.validation import InputError


def measure_run(run: Run, asked: list[Request], reporter: Reporter) -> None:
    """Measure what is missing, each result on disk before the next begins.

    What gave no finite number, now or before, is told each time: it is not measured again.
    """
    with files.claimed(run.folder):
        todo = missing(run, asked)
        if todo:
            _measure(run, todo, reporter)
    for label in not_finite(run, asked):
        reporter.say(f"run {run.id}: {label}: its value is not a finite number")


def _measure(run: Run, todo: list[Request], reporter: Reporter) -> None:
    settings = " ".join(f"{key}={value}" for key, value in run.swept.items())
    task = reporter.task(f"measure {run.id[:6]} {settings} seed={run.seed}", len(todo))
    failed = 0
    for done, (request, outcome) in enumerate(_outcomes(run, todo, task.note), start=1):
        _write(run, request, outcome)
        failed += outcome.error is not None
        task.update(done)
    task.finish(f"{failed} of {len(todo)} failed" if failed else f"{len(todo)} measured")


def _outcomes(
    run: Run, todo: list[Request], before: Callable[[str], None]
) -> Iterator[tuple[Request, Measured]]:
    for setting in dict.fromkeys(request.setting for request in todo):
        group = [request for request in todo if request.setting == setting]
        yield from _of_one_objective(run, group, before)


def _of_one_objective(
    run: Run, group: list[Request], before: Callable[[str], None]
) -> Iterator[tuple[Request, Measured]]:
    """What cannot be measured is an error of its own, as where a snapshot is damaged."""
    first, inputs = group[0], dict[str, Any]()
    ready: list[Request] = []
    try:
        objective = run.objective(first.split, first.batch_norm, first.chunk, first.examples)
    except Exception as error:
        yield from (_failed(request, error) for request in group)
        return
    for request in group:
        try:
            entry = metrics[request.metric]
            own = {name: HANDED_OVER[name](run) for name in entry.inputs}
            check(entry, objective, {**request.arguments, **own})
        except Exception as error:
            yield _failed(request, error)
        else:
            ready, inputs = [*ready, request], {**inputs, **own}
    names, left = [(request.metric, request.arguments) for request in ready], iter(ready)
    try:
        for outcome in measure_each(objective, names, first.seed + run.seed, inputs, before):
            yield next(left), outcome
    except InputError as error:  # of all of them, as parameters that are not finite
        yield from (_failed(request, error) for request in left)


def _failed(request: Request, error: Exception) -> tuple[Request, Measured]:
    return request, Measured(request.metric, request.arguments, None, error, 0.0)


def _write(run: Run, request: Request, outcome: Measured) -> None:
    found = outcomes.fields(run.folder, outcome)
    about = {"commit": commit(), "device": device(), "versions": versions()}
    files.append_lines(run.measurements_file, [{**request.row(run), **found, **about}])
