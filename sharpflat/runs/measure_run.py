"""Measurements of finished runs: those that are not there yet, each on disk at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sharpflat.runs import files, outcomes
from sharpflat.runs.progress import Reporter
from sharpflat.runs.provenance import commit, device, versions
from sharpflat.runs.record import Run
from sharpflat.runs.requests import HANDED_OVER, Request, missing, not_finite
from sharpflat.sharpness import Measured


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
    where = group[0]
    found = outcomes.of_one_objective(
        lambda: run.objective(where.split, where.batch_norm, where.chunk, where.examples),
        [(request.metric, request.arguments) for request in group],
        lambda name: HANDED_OVER[name](run), where.seed + run.seed, before,
    )  # fmt: skip
    return ((group[place], outcome) for place, outcome in found)


def _write(run: Run, request: Request, outcome: Measured) -> None:
    found = outcomes.fields(run.folder, outcome)
    about = {"commit": commit(), "device": device(), "versions": versions()}
    files.append_lines(run.measurements_file, [{**request.row(run), **found, **about}])
