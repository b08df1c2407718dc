"""Run: the record of one training, as its folder holds it."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sharpflat.config import read_yaml
from sharpflat.objective import BatchNormPolicy, Objective
from sharpflat.runs.build import build_recipe, own_data, resident, state_like
from sharpflat.runs.files import check_free, read_fields, read_lines
from sharpflat.runs.layout import is_streamed
from sharpflat.runs.snapshots import load_tree
from sharpflat.training import Batches, TrainState
from sharpflat.validation import InputError, closest

ENDED = ("finished", "diverged")
"""Statuses of a training that is not gone on with."""
DAMAGED = "damaged"
"""What is said of a run whose record cannot be read; no status of its own."""


class Run:
    """A training on disk; everything is read when asked for."""

    def __init__(
        self,
        folder: str | Path,
        swept: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        """The record in `folder`.

        Args:
            folder: `<root>/runs/<id>`.
            swept: its values of a study's swept keys.
            config: the resolved config it is asked for by, which says where its data lie now; by
                default the one recorded.
        """
        self.folder = Path(folder)
        self.id = self.folder.name
        self.swept = swept or {}
        if config is not None:
            self.config = config

    def __repr__(self) -> str:
        """Id, status and what distinguishes it."""
        settings = ", ".join(f"{key}={value}" for key, value in self.swept.items())
        return f"Run({self.id}, {self.status['status']}, {settings}, seed={self.seed})"

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """Data set, model, train and seed, every default included."""
        path = self.folder / "config.yaml"
        content = read_yaml(path)
        if missing := [key for key in ("dataset", "model", "train", "seed") if key not in content]:
            raise InputError(f"{path}: is damaged; mend it: it has no {missing[0]!r}")
        return content

    @property
    def seed(self) -> int:
        """The seed."""
        return self.config["seed"]

    @property
    def status(self) -> dict[str, Any]:
        """`{"status": running | finished | diverged | failed, "reason": ...}`."""
        path = self.folder / "status.json"
        if not path.exists() and not self._has_history:
            return {"status": "running", "reason": None}
        with self._replaceable():
            content = read_fields(path, "status", "reason")
            if content["status"] not in ("running", "failed", *ENDED):
                raise InputError(f"{path}: is damaged; mend it: no status is {content['status']!r}")
        return content

    @contextlib.contextmanager
    def _replaceable(self) -> Iterator[None]:
        """What is damaged inside need not be mended: the run can be trained anew."""
        try:
            yield
        except InputError as error:
            if self._awaited:
                raise
            raise InputError(f"{error}; or move {self.folder} away to train anew") from None

    @property
    def _awaited(self) -> bool:
        """Whether runs that were stopped in one group with it cannot go on without it."""
        stopped = {folder.parent for folder in self.folder.parents[1].glob("groups/*/checkpoints")}
        files = [folder / "group.json" for folder in stopped if (folder / "group.json").exists()]
        return any(self.id in file.read_text(errors="replace") for file in files)

    @property
    def state(self) -> str:
        """Its status; `interrupted` where its record says `running` and surely nobody holds it."""
        status = str(self.status["status"])
        if status != "running":
            return status
        try:
            check_free(self.folder)
        except InputError:
            return status
        return "interrupted"

    @property
    def finished(self) -> bool:
        """Whether it trained to its end."""
        return self.status["status"] == "finished"

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, device, data digest, commit, command, times."""
        path = self.folder / "provenance.json"
        with self._replaceable():
            content = read_fields(path, "data_digest")
            for name, kind in PROVENANCE_KINDS.items():
                if not isinstance(found := content.get(name), kind):
                    raise InputError(f"{path}: is damaged; mend it: {name!r} is {found!r}")
            if content.get("together") and not isinstance(content["together"].get("group"), str):
                raise InputError(f"{path}: is damaged; mend it: 'together' has no 'group'")
        return content

    @property
    def damage(self) -> InputError | None:
        """What is wrong with its status or its provenance; None if nothing is."""
        try:
            _ = self.status, self.provenance if self._begun else None
        except InputError as error:
            return error
        return None

    @property
    def _begun(self) -> bool:
        """Whether it has a provenance, or ought to have one."""
        names = ("provenance.json", "snapshots/0.npz")  # in the order in which they are written
        return self._has_history or any((self.folder / name).exists() for name in names)

    @property
    def _has_history(self) -> bool:
        path = self.folder / "history.jsonl"
        return path.exists() and path.stat().st_size > 0

    @property
    def exists(self) -> bool:
        """Whether anything of it is on disk."""
        names = ("config.yaml", "status.json", "provenance.json")
        return any((self.folder / name).exists() for name in names)

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row an epoch.

        Raises:
            InputError: it is damaged, or lacks epochs of a run that has ended.
        """
        path, needed = self.folder / "history.jsonl", ("epoch", "step", "train_loss")
        epochs = self._epochs or 0  # first: it may end while its lines are read
        rows = read_lines(path, needed, HISTORY_NUMBERS)
        if len(rows) < epochs:
            raise InputError(
                f"{path}: has {len(rows)} of the {epochs} epochs of a run that has ended; bring "
                f"the others back, or move {self.folder} away to train anew"
            )
        return rows

    @property
    def _epochs(self) -> int | None:
        """After how many it ended; None where it has not, or its record does not say."""
        try:
            return self.provenance.get("epochs") if self.status["status"] in ENDED else None
        except InputError:
            return None

    @property
    def measurements(self) -> list[dict[str, Any]]:
        """A row a measurement, the newest of its kind only."""
        newest = {measurement_key(row): row for row in self._lines()}
        return list(newest.values())

    def _lines(self) -> list[dict[str, Any]]:
        needed, numbers = (*KEY_FIELDS, "value", "error"), ("value", "standard_error")
        return read_lines(self.measurements_file, needed, numbers)

    @property
    def measurements_file(self) -> Path:
        """Where measurements go, a line each."""
        return self.folder / "measurements.jsonl"

    @property
    def params(self) -> Any:
        """Parameters at the end of training."""
        return self._end.params

    @property
    def model_state(self) -> Any:
        """Batch-norm averages at the end, re-estimated over the training set."""
        return self._end.model_state

    @property
    def opt_state(self) -> Any:
        """The optimizer's state at the end."""
        return self._end.opt_state

    @functools.cached_property
    def initial_params(self) -> Any:
        """Parameters before the first update."""
        return load_tree(self.folder / "snapshots" / "0.npz", state_like(self.config)).params

    @property
    def tracked(self) -> list[dict[str, Any]]:
        """A row a look of what was watched while it trained."""
        needed, numbers = ("track", "step", "epoch", "value"), TRACKED_NUMBERS
        return read_lines(self.folder / "tracked.jsonl", needed, numbers)

    @property
    def updates_an_epoch(self) -> int:
        """How many there are."""
        size, train = resident(self.config["dataset"]).train.size, self.config["train"]
        return Batches(size, train["batch_size"], train["drop_last"]).updates

    def snapshot(self, epoch: int | None = None) -> TrainState:
        """Parameters, batch-norm averages and optimizer state after `epoch` epochs; or at the end.

        Raises:
            InputError: none was kept there; it says where.
        """
        path = self.folder / "snapshots" / f"{self.step_of(epoch)}.npz"
        return load_tree(path, state_like(self.config))

    def step_of(self, epoch: int | None) -> int:
        """The updates before the snapshot after `epoch` epochs; or at the end.

        Raises:
            InputError: none was kept there; it says where.
        """
        if epoch is None:
            if self.status["status"] not in ENDED:
                raise InputError(f"run {self.id}: has no final snapshot (it has not finished)")
            return self._last_step
        updates, steps = self.updates_an_epoch, self._steps
        if epoch * updates not in steps:
            kept = ", ".join(f"{step / updates:g}" for step in steps) or "none"
            raise InputError(
                f"run {self.id}: has no snapshot after epoch {epoch}, but after {kept}; "
                f"train.track: [snapshots] keeps more"
            )
        return epoch * updates

    @property
    def _steps(self) -> list[int]:
        # A kill may leave a temporary file there, whose name begins with a dot, and a training
        # that was begun anew may end before the one that was given up.
        names = [path.stem for path in self.folder.glob("snapshots/*.npz")]
        steps = sorted(int(name) for name in names if name.isdecimal())
        last = self._last_step if self.status["status"] in ENDED else math.inf
        return [step for step in steps if step <= last]

    @property
    def _last_step(self) -> int:
        return self.last_epoch["step"]

    @property
    def last_epoch(self) -> dict[str, Any]:
        """The history's last row, of a run that has ended.

        Raises:
            InputError: there is none.
        """
        history = self.history
        if not history:
            raise InputError(
                f"{self.folder / 'history.jsonl'}: holds no epoch of a run that has ended; bring "
                f"it back, or move {self.folder} away to train anew"
            )
        return history[-1]

    @functools.cached_property
    def _end(self) -> Any:
        return self.snapshot()

    def check_data(self) -> None:
        """Refuse data that have changed since the run, begun or done, saw them.

        Raises:
            InputError: the digests differ, or theirs is not known any more.
        """
        if self._begun:
            known = self.provenance["data_digest"]
            data = resident(self.config["dataset"]).dataset
            if data.digest != known:
                raise InputError(
                    f"run {self.id}: its data set {data.name!r} has changed since it was trained; "
                    f"remove {self.folder} to train it anew"
                )

    def objective(
        self,
        split: str = "train",
        batch_norm: BatchNormPolicy = "running",
        chunk: int = 1000,
        examples: int | None = None,
    ) -> Objective:
        """The run's loss on a split of its data, at its final parameters.

        Args:
            split: `train` or `test`.
            batch_norm: see `Objective.from_model`.
            chunk: examples a pass.
            examples: only the first so many of the split.

        Raises:
            InputError: an unknown split, more examples than there are, other data than the run's;
                a run that diverged.
        """
        if split not in ("train", "test"):
            raise InputError(f"split: unknown {split!r}{closest(split, ('train', 'test'))}")
        if self.status["status"] == "diverged":
            raise InputError(f"run {self.id}: diverged: {self.status['reason']}")
        self.check_data()
        on_device = not is_streamed(self.config["dataset"], None)
        data = own_data(self.config, on_device)
        batch = data.train if split == "train" else data.test
        if examples is not None and examples > batch.size:
            raise InputError(f"examples: {examples} is above the {batch.size} of {split!r}")
        recipe = build_recipe(self.config)
        part = batch if examples is None else batch.first(examples)
        return Objective.from_model(
            recipe.model, self.params, self.model_state, part, loss=recipe.loss,
            batch_norm=batch_norm, chunk=chunk,
        )  # fmt: skip


PROVENANCE_KINDS = {"data_digest": str, "together": dict | None, "epochs": int | None}
TRACKED_NUMBERS = ("step", "epoch", "value", "standard_error", "stability_threshold")
HISTORY_NUMBERS = (
    "epoch", "step", "seconds", "train_loss", "train_accuracy", "full_train_loss",
    "full_train_accuracy", "test_loss", "test_accuracy",
)  # fmt: skip
KEY_FIELDS = (
    "metric", "arguments", "split", "examples", "data_digest", "batch_norm", "chunk", "dtype",
    "seed", "metric_digest",
)  # fmt: skip


def measurement_key(row: dict[str, Any]) -> str:
    """What makes two measurements the same one."""
    return repr([row[field] for field in KEY_FIELDS])
