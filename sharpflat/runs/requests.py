"""What a study asks to be measured, and which of it a run can give."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from sharpflat.config import Config, Measure, Policy, resolve
from sharpflat.registry import datasets, metrics, optimizers, told
from sharpflat.runs import files
from sharpflat.runs.build import (
    abstract_objective,
    check_chunk,
    config_of,
    make_optimizer_of,
    optimizer_arguments,
    resident,
    shape_key,
    state_like,
)
from sharpflat.runs.record import Run, measurement_key
from sharpflat.sharpness import check
from sharpflat.validation import InputError, closest

HANDED_OVER: dict[str, Callable[[Run], Any]] = {
    "initial_params": lambda run: run.initial_params,
    "opt_state": lambda run: run.opt_state,
    "optimizer": lambda run: make_optimizer_of(run.config),
    "hyperparams": lambda run: hyperparams_of(run.config),
}
"""What metrics may ask for beside the objective."""


def hyperparams_of(config: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a resolved run config's optimizer, and its name."""
    name, arguments, _ = optimizer_arguments(config)
    return {**optimizers[name].arguments(arguments), "name": name}


@dataclass(frozen=True)
class Request:
    """One measurement that a config asks of its runs.

    Attributes:
        metric: its name; `arguments` are all of them.
        split: `train` or `test`; with `examples`, `chunk` and `batch_norm` the objective.
        seed: added to the run's own.
        seeds: of the runs that it is asked of; None for all.
        if_possible: whether it is asked only of runs that can give it, as by `metrics: all`.
    """

    metric: str
    arguments: dict[str, Any]
    split: str
    examples: int | None
    chunk: int
    batch_norm: Policy
    seed: int
    seeds: tuple[int, ...] | None
    if_possible: bool = False

    @property
    def label(self) -> str:
        """The metric's name, with the arguments that are not its defaults."""
        return metrics[self.metric].label(self.arguments)

    @property
    def where(self) -> str:
        """The objective, for the reader."""
        examples = f"{self.examples or 'all'} {self.split} examples"
        return f" on {examples}, bn {self.batch_norm}, chunk {self.chunk}, seed {self.seed}"

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
        if self.seeds is not None and run.seed not in self.seeds:
            return False
        return not self.if_possible or obstacle(self, run.config) is None

    def row(self, run: Run) -> dict[str, Any]:
        """The fields that identify the measurement in `run`'s record."""
        examples = self.examples or self._all_examples(run)
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

    def _all_examples(self, run: Run) -> int:
        try:
            return getattr(resident(run.config["dataset"]), self.split).size
        except InputError:
            raise
        except Exception as error:  # someone's own data set
            told_of = [datasets[run.config["dataset"]["name"]]]
            raise InputError(f"run {run.id}: its data: {told(error, told_of)}") from None


def requests(config: Config) -> list[Request]:
    """All measurements of a study, in the config's order."""
    return [
        Request(
            *resolve(metrics, spec, "measure.metrics"), block.split, block.examples, block.chunk,
            policy, block.seed, None if block.seeds is None else tuple(block.seeds),
            block.metrics == "all",
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
    """What went wrong in those of `asked` that were measured: metric and error.

    A value that is not finite is no failure but what the metric says of that minimum, as a radius
    that no loss reaches: `not_finite` tells of it, and it is measured anew only by other code.
    """
    rows = _measured(run, asked)
    return [f"{request.label}: {row['error']}" for request, row in rows if row["error"]]


def not_finite(run: Run, asked: list[Request]) -> list[str]:
    """Those of `asked` that were measured, without an error, and gave no finite number."""
    rows = _measured(run, asked)
    return [r.label for r, row in rows if row["value"] is None and row["error"] is None]


def _measured(run: Run, asked: list[Request]) -> list[tuple[Request, dict[str, Any]]]:
    if not run.finished:
        return []
    keys = {measurement_key(request.row(run)): request for request in asked if request.wants(run)}
    rows = {measurement_key(row): row for row in run.measurements}
    return [(keys[key], row) for key, row in rows.items() if key in keys]


def left_out(asked: Sequence[Request], runs: Sequence[Run]) -> list[str]:
    """A line for each metric of `metrics: all` that some runs cannot give, with the reason."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for request in asked:
            if request.if_possible and (request.seeds is None or run.seed in request.seeds):
                reason = obstacle(request, run.config)
                if reason is not None:
                    found.setdefault(reason, set()).add(run.id)
    return [f"left out of {len(ids)} of {len(runs)} runs: {why}" for why, ids in found.items()]


def check_measures(config: Config, run: dict[str, Any]) -> None:
    """Refuse, before any work, what cannot be measured on a run of this resolved config.

    Raises:
        InputError: more examples than there are; a chunk that does not divide them under `batch`;
            a metric asked for by name that needs what a study does not have, or what its runs
            cannot give.
    """
    for block in config.measures:
        _check_block(block, run)
    for request in requests(config):
        reason = None if request.if_possible else obstacle(request, run)
        if reason is not None:
            raise InputError(reason)


def obstacle(request: Request, run: dict[str, Any]) -> str | None:
    """Why a measurement cannot be made on a run of this resolved config; None where it can."""
    where = (request.split, request.examples, request.chunk, request.batch_norm)
    known = [metrics[request.metric].digest, request.arguments, where]
    return _obstacle(request.metric, json.dumps(files.plain(known)), shape_key(run))


@functools.cache
def _obstacle(name: str, known: str, key: str) -> str | None:
    _, arguments, where = json.loads(known)
    entry, run = metrics[name], config_of(key)
    unknown = [given for given in entry.inputs if given not in HANDED_OVER]
    if unknown:
        hint = closest(unknown[0], HANDED_OVER)
        return f"measure.metrics.{name}: needs {unknown[0]!r}, which a study cannot hand over{hint}"
    try:
        state = state_like(run)
        there = {
            "initial_params": state.params,
            "opt_state": state.opt_state,
            "optimizer": make_optimizer_of(run),
            "hyperparams": hyperparams_of(run),
        }
        inputs = {given: there[given] for given in entry.inputs}
        check(entry, abstract_objective(run, *where), {**entry.arguments(arguments), **inputs})
    except InputError as error:
        return str(error)
    except Exception:
        return None  # someone's own check or model raises: the measurement will, and say so
    return None


def _check_block(block: Measure, run: dict[str, Any]) -> None:
    size = getattr(resident(run["dataset"]), block.split).size
    if block.examples is not None and block.examples > size:
        raise InputError(
            f"measure.examples: {block.examples} is above the {size} examples of "
            f"{run['dataset']['name']!r}, split {block.split!r}"
        )
    for policy in block.batch_norm if block.metrics else ():
        where = f"measure.chunk: {block.chunk}"
        check_chunk(run, block.split, block.examples, block.chunk, policy, where)
