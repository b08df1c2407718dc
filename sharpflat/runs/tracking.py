"""What is watched of a run while it trains: which of it is due, and its lines in the record."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from sharpflat import trees
from sharpflat.batch import Batch
from sharpflat.config import Every, Looked
from sharpflat.registry import Entry, metrics, trackers
from sharpflat.runs import files, outcomes
from sharpflat.runs.build import (
    check_chunk,
    make_optimizer_of,
    optimizer_arguments,
    resident,
    state_like,
)
from sharpflat.runs.requests import Request, hyperparams_of, obstacle
from sharpflat.runs.snapshots import load_tree
from sharpflat.runs.trackers import Look
from sharpflat.sharpness import Measured
from sharpflat.training import Batches, Recipe, TrainState, rate_at, stability_threshold
from sharpflat.validation import InputError

OF_HESSIAN = ("top_eigenvalue", "hessian_top_eigenvalues")
OF_PRECONDITIONED = ("preconditioned_sharpness",)
OTHER_DYNAMICS = ("clip", "gradient_penalty", "conservative", "adversarial")
"""Keys of `train` with which an update is no longer the optimizer's of the loss's gradient."""


class Track(NamedTuple):
    """One thing that is watched.

    Attributes:
        name: of a tracker or a metric; `arguments` are its own, all of them.
        period: updates from one look to the next.
        where: of a metric the objective: examples, chunk and batch-norm policy.
    """

    name: str
    arguments: dict[str, Any]
    period: int
    where: Looked | None

    @property
    def entry(self) -> Entry:
        """The tracker or metric."""
        return trackers[self.name] if self.where is None else metrics[self.name]

    @property
    def asked(self) -> dict[str, Any]:
        """All arguments, those of the objective with them."""
        return {**self.arguments, **(self.where.model_dump() if self.where else {})}


def tracks(config: dict[str, Any]) -> list[Track]:
    """All that a resolved run config asks to be watched."""
    train, found = config["train"], list[Track]()
    if not train["track"]:
        return found
    size = resident(config["dataset"]).train.size
    updates = Batches(size, train["batch_size"], train["drop_last"]).updates
    for spec in train["track"]:
        ((name, given),) = spec.items()
        own = dict(given)
        every = Every(**{key: own.pop(key) for key in Every.model_fields})
        period = every.every * (updates if every.unit == "epochs" else 1)
        where = None
        if name not in trackers:
            where = Looked(**{key: own.pop(key) for key in Looked.model_fields})
        found.append(Track(name, own, period, where))
    return found


def check_tracks(config: dict[str, Any]) -> None:
    """Refuse, before any work, what cannot be watched of a run of this resolved config.

    Raises:
        InputError: names it.
    """
    for track in tracks(config):
        asked = track.asked
        if "chunk" not in asked:
            continue
        examples = min(asked["examples"], resident(config["dataset"]).train.size)
        place = ("train", examples, asked["chunk"], asked["batch_norm"])
        check_chunk(config, *place, f"train.track.{track.name}.chunk: {asked['chunk']}")
        if track.where is not None:
            reason = obstacle(Request(track.name, track.arguments, *place, 0, None), config)
            if reason is not None:
                raise InputError(f"train.track: {reason}")


class Tracking:
    """One run's; without anything to watch it does nothing."""

    def __init__(self, config: dict[str, Any], folder: Path, recipe: Recipe, data: Batch) -> None:
        """Nothing is looked at yet."""
        self.config, self.folder, self.recipe, self.data = config, folder, recipe, data
        self.tracks = tracks(config)
        warm = any(track.arguments.get("certify") is False for track in self.tracks)
        self.carried = jnp.zeros(trees.size(state_like(config).params) if warm else 0)
        self.rows: list[dict[str, Any]] = []

    @property
    def file(self) -> Path:
        """Where its lines go."""
        return self.folder / "tracked.jsonl"

    def begin(self, state: TrainState) -> None:
        """A new record, and the look before the first update."""
        if self.tracks:
            files.write_text(self.file, "")
        self.look(state, 0)

    def go_on(self, step: int) -> None:
        """The record as it was after `step` updates, when a checkpoint was made."""
        if self.tracks:
            rows = files.read_lines(self.file, ("step",))
            files.write_lines(self.file, [row for row in rows if row["step"] <= step])

    def flush(self) -> None:
        """The lines to disk."""
        if self.rows:
            files.append_lines(self.file, self.rows)
            self.rows = []

    def due(self, step: int) -> list[Track]:
        """What is to be looked at after `step` updates.

        What needs an optimizer's state is not of a training that has none yet.
        """
        return [
            track for track in self.tracks
            if step % track.period == 0 and (step or "opt_state" not in track.entry.inputs)
        ]  # fmt: skip

    def look(self, state: TrainState, step: int) -> None:
        """Look at what is due; what fails says so in its line."""
        due = self.due(step)
        if not due:
            return
        look = Look(self.config, self.folder, self.recipe, self.data, state, step, self.carried)
        if trees.all_finite(state.params):
            found = list(self._outcomes(look, due))
        else:
            error = InputError("the parameters are not finite")
            found = [(one, outcomes.failed(one.name, one.arguments, error)) for one in due]
        self.carried = look.carried
        for track, outcome in found:
            if outcome.estimate is not None or outcome.error is not None:
                self.rows.append(self._row(look, track, outcome))

    def _outcomes(self, look: Look, due: Sequence[Track]) -> Iterator[tuple[Track, Measured]]:
        for where in dict.fromkeys(repr(track.where) for track in due):
            alike = [track for track in due if repr(track.where) == where]
            if alike[0].where is None:
                yield from ((track, _of_tracker(look, track)) for track in alike)
            else:
                yield from self._of_metrics(look, alike)

    def _of_metrics(self, look: Look, alike: Sequence[Track]) -> Iterator[tuple[Track, Measured]]:
        found = outcomes.of_one_objective(
            lambda: look.objective(**alike[0].where.model_dump()),  # type: ignore[union-attr]
            [(track.name, track.arguments) for track in alike],
            lambda name: self._input(name, look.state), self.config["seed"],
        )  # fmt: skip
        return ((alike[place], outcome) for place, outcome in found)

    def _input(self, name: str, state: TrainState) -> Any:
        there: dict[str, Callable[[], Any]] = {
            "initial_params": lambda: self._initial_params,
            "opt_state": lambda: state.opt_state,
            "optimizer": lambda: make_optimizer_of(self.config),
            "hyperparams": lambda: hyperparams_of(self.config),
        }
        return there[name]()

    @functools.cached_property
    def _initial_params(self) -> Any:
        path = self.folder / "snapshots" / "0.npz"
        return load_tree(path, state_like(self.config)).params

    def _row(self, look: Look, track: Track, outcome: Measured) -> dict[str, Any]:
        train, n, asked = self.config["train"], self.data.size, track.asked
        updates = Batches(n, train["batch_size"], train["drop_last"]).updates
        row = {
            "track": track.name, "digest": track.entry.digest, "arguments": track.arguments,
            "epoch": look.step / updates, "step": look.step,
            "examples": min(asked.get("examples", n), n),
            "batch_norm": asked.get("batch_norm", "batch"),
            **outcomes.fields(self.folder, outcome),
        }  # fmt: skip
        if track.name in (*OF_HESSIAN, *OF_PRECONDITIONED):
            row |= _beside(look, track, row["error"])
        return row


def _of_tracker(look: Look, track: Track) -> Measured:
    began, estimate, failure = time.perf_counter(), None, None
    try:
        estimate = track.entry(look, **track.arguments)
    except OSError:
        raise  # what it writes: a full disk stops the training, as everywhere
    except Exception as error:
        failure = error
    seconds = time.perf_counter() - began
    return Measured(track.name, track.arguments, estimate, failure, seconds)


def _beside(look: Look, track: Track, error: str | None) -> dict[str, Any]:
    """The threshold, or what kept a look from it, unless there is an error already."""
    try:
        return {"stability_threshold": _threshold(look, track)}
    except Exception as failure:
        said = f"stability_threshold: {type(failure).__name__}: {failure}"
        return {"stability_threshold": None, "error": error or said}


def _threshold(look: Look, track: Track) -> float | None:
    """The curvature beyond which the optimizer oscillates at its learning rate of now.

    It is of all parameters together: None beside the curvature of some of them.
    """
    name, arguments, factors = optimizer_arguments(look.config)
    changed = any(look.config["train"].get(key) for key in OTHER_DYNAMICS)
    of_some = track.arguments.get("parameters", "*") != "*"
    known = "learning_rate" in arguments and trees.all_finite(look.state.params)
    if of_some or changed or not known:
        return None

    def gradient_norm() -> float:
        objective = look.objective(**{key: track.asked[key] for key in Looked.model_fields})
        return float(trees.norm(objective.value_and_grad(look.state.params)[1]))

    rate = rate_at(look.step, arguments, **factors)
    of_preconditioned = track.name in OF_PRECONDITIONED
    return stability_threshold(name, arguments, rate, gradient_norm, of_preconditioned)
