"""Measurements of finished runs: what a config asks for, and what is not there yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sharpflat.config import Config, Policy, resolve
from sharpflat.registry import InputError, closest, metrics
from sharpflat.runs import files
from sharpflat.runs.build import abstract_objective, check_chunk, make_optimizer_of, resident
from sharpflat.runs.progress import Reporter
from sharpflat.runs.provenance import commit, device, versions
from sharpflat.runs.record import Run, measurement_key
from sharpflat.sharpness import Measured, check, measure_each

MOST_NUMBERS = 1000
INPUTS: dict[str, Callable[[Run], Any]] = {
    "initial_params": lambda run: run.initial_params,
    "opt_state": lambda run: run.opt_state,
    "optimizer": lambda run: make_optimizer_of(run.config),
}


@dataclass(frozen=True)
class Request:
    """One measurement that a config asks of its runs."""

    metric: str
    arguments: dict[str, Any]
    split: str
    examples: int | None
    chunk: int
    batch_norm: Policy
    seed: int
    seeds: tuple[int, ...] | None

    @property
    def setting(self) -> tuple[Any, ...]:
        """What requests that can share an objective have in common."""
        return (self.split, self.examples, self.chunk, self.batch_norm, self.seed)

    def variant(self) -> dict[str, Any]:
        """Everything by which two requests of one metric can differ."""
        names = ("split", "examples", "batch_norm", "chunk", "seed")
        return {**self.arguments, **{name: getattr(self, name) for name in names}}

    def wants(self, run: Run) -> bool:
        """Whether it is asked of this run."""
        return self.seeds is None or run.seed in self.seeds

    def row(self, run: Run) -> dict[str, Any]:
        """The fields that identify the measurement in `run`'s record."""
        split = getattr(resident(run.config["dataset"]), self.split)
        examples = self.examples or split.size
        return {
            "metric": self.metric,
            "arguments": files.plain(self.arguments),
            "split": self.split,
            "examples": examples,
            "data_digest": run.provenance["data_digest"],
            "batch_norm": self.batch_norm,
            "chunk": min(self.chunk, examples),
            "dtype": str(jax.numpy.zeros(()).dtype),
            "seed": self.seed + run.seed,
            "metric_digest": metrics[self.metric].digest,
        }


def requests(config: Config) -> list[Request]:
    """All measurements of a study, in the config's order."""
    return [
        Request(
            *resolve(metrics, spec, "measure.metrics"), block.split, block.examples, block.chunk,
            policy, block.seed, None if block.seeds is None else tuple(block.seeds),
        )
        for block in config.measures
        for policy in block.batch_norm
        for spec in block.specs
    ]  # fmt: skip


def missing(run: Run, asked: list[Request]) -> list[Request]:
    """Those of `asked` that the run's record lacks, or holds only as an error."""
    there = {measurement_key(row) for row in run.measurements if row["error"] is None}
    wanted = [request for request in asked if request.wants(run)]
    return [request for request in wanted if measurement_key(request.row(run)) not in there]


def failures(run: Run, asked: list[Request]) -> list[str]:
    """What went wrong in those of `asked` that were measured: metric and error."""
    if not run.finished:
        return []
    keys = {measurement_key(request.row(run)) for request in asked if request.wants(run)}
    rows = [row for row in run.measurements if measurement_key(row) in keys]
    return [f"{row['metric']}: {row['error']}" for row in rows if row["error"] is not None]


def measure_run(run: Run, asked: list[Request], reporter: Reporter) -> None:
    """Measure what is missing; each result is on disk before the next begins."""
    with files.claimed(run.folder, reporter.say):
        todo = missing(run, asked)
        if not todo:
            return
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
        first = group[0]
        objective = run.objective(first.split, first.batch_norm, first.chunk, first.examples)
        names = [(request.metric, request.arguments) for request in group]
        inputs = _inputs(run, group)
        outcomes = measure_each(objective, names, first.seed + run.seed, inputs, before)
        yield from zip(group, outcomes, strict=True)


def _inputs(run: Run, group: list[Request]) -> dict[str, Any]:
    """What metrics may ask for beside the objective; read only if one of them does."""
    needed = {name for request in group for name in metrics[request.metric].inputs}
    return {name: INPUTS[name](run) for name in needed}


def _write(run: Run, request: Request, outcome: Measured) -> None:
    estimate, row = outcome.estimate, request.row(run)
    row |= {"value": None, "standard_error": None, "converged": False, "error": None}
    if estimate is None:
        row["error"] = f"{type(outcome.error).__name__}: {outcome.error}"
        details: dict[str, Any] = {}
    else:
        row["value"] = estimate.value
        row["standard_error"], row["converged"] = estimate.standard_error, estimate.converged
        details = {name: np.asarray(value) for name, value in estimate.details.items()}
    row["seconds"] = round(outcome.seconds, 3)
    row["commit"], row["device"] = commit(), device()
    row["versions"] = versions()
    row["details"] = _small(run, details)
    files.append_lines(run.measurements_file, [row])


def _small(run: Run, details: dict[str, np.ndarray]) -> dict[str, Any]:
    """Details for a JSON line: of more than 1,000 numbers the largest go to `arrays/`."""
    small: dict[str, Any] = {}
    room = MOST_NUMBERS
    for name, array in sorted(details.items(), key=lambda item: item[1].size):
        if array.size <= room:
            small[name], room = array, room - array.size
            continue
        folder = files.make_folder(run.folder / "arrays")
        file = folder / f"{files.digest(array)}.npy"
        with files.replacing(file) as temporary:
            np.save(temporary, array, allow_pickle=False)
        small[name] = {"file": f"arrays/{file.name}", "shape": list(array.shape)}
    return small


def check_measures(config: Config, run: dict[str, Any]) -> None:
    """Refuse, before any work, what cannot be measured on a run of this resolved config.

    Raises:
        InputError: more examples than there are; a chunk that does not divide them under `batch`;
            a metric that needs what a study does not have, or what its objective cannot give.
    """
    data = resident(run["dataset"])
    for block in config.measures:
        size = getattr(data, block.split).size
        if block.examples is not None and block.examples > size:
            raise InputError(
                f"measure.examples: {block.examples} is above the {size} examples of "
                f"{run['dataset']['name']!r}, split {block.split!r}"
            )
        for policy in block.batch_norm if block.metrics else ():
            where = f"measure.chunk: {block.chunk}"
            check_chunk(run, block.split, block.examples, block.chunk, policy, where)
    for request in requests(config):
        unknown = [name for name in metrics[request.metric].inputs if name not in INPUTS]
        if unknown:
            raise InputError(
                f"measure.metrics.{request.metric}: needs {unknown[0]!r}, which a study cannot "
                f"hand over{closest(unknown[0], INPUTS)}"
            )
        shapes = abstract_objective(
            run, request.split, request.examples, request.chunk, request.batch_norm
        )
        check(metrics[request.metric], shapes, request.arguments)
