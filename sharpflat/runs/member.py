"""One run while it trains: its record, and when it ends."""

from __future__ import annotations

import math
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

from sharpflat import trees
from sharpflat.config import RunConfig
from sharpflat.runs import files
from sharpflat.runs.build import Resident, build_recipe, epochs_of
from sharpflat.runs.evaluation import evaluate
from sharpflat.runs.layout import Layout
from sharpflat.runs.progress import Reporter
from sharpflat.runs.provenance import (
    command,
    commit,
    device,
    now,
    provenance,
    training_digest,
    versions,
)
from sharpflat.runs.record import Run
from sharpflat.runs.snapshots import save_tree
from sharpflat.runs.tracking import Tracking
from sharpflat.training import Epoch, Recipe, Stopping, TrainState
from sharpflat.validation import InputError


class Member:
    """A run in training; what it learns of itself goes to its folder."""

    def __init__(self, config: RunConfig, folder: Path, layout: Layout, reporter: Reporter) -> None:
        """Nothing is written yet."""
        self.layout = layout
        self.folder = folder
        self.config = config.resolved()
        self.settings = self.config["train"]
        self.last = epochs_of(self.settings)
        self.data: Resident = layout.data(self.config)
        self.recipe: Recipe = replace(build_recipe(self.config), mesh=layout.mesh)
        self.tracking = Tracking(self.config, folder, self.recipe, self.data.train)
        self.stopping = Stopping(**self.settings["stop"])
        self.rows: list[dict[str, Any]] = []
        self.ended = False
        settings = " ".join(f"{key}={value}" for key, value in config.swept.items())
        name = f"train {config.id[:6]} {settings} seed={config.seed}"
        self.task = reporter.task(name, self.last)

    @property
    def attempt(self) -> str | None:
        """What tells this training of the run from others that were begun, by chance unlike."""
        path = self.folder / "provenance.json"
        return files.read_json(path).get("attempt") if path.exists() else None

    def begin(self, initial: TrainState, about: dict[str, Any]) -> None:
        """A new record, with the start among its snapshots; `about` goes to its provenance."""
        history = self.folder / "history.jsonl"
        if history.exists() and files.read_lines(history):
            self.task.note(f"{self._why_anew()}; begins anew")
        record = provenance(self.data.dataset) | about | {"attempt": secrets.token_hex(8)}
        record |= {"layout": self.layout.record} if self.layout.record else {}
        files.write_json(self.folder / "provenance.json", record)
        save_tree(files.make_folder(self.folder / "snapshots") / "0.npz", initial)
        files.write_text(history, "")
        self._write_status("running", None)
        self.tracking.begin(initial)

    def _why_anew(self) -> str:
        place = self._begun_in
        if place != self.folder and any(place.glob("checkpoints/[0-9]*")):
            return f"was stopped in group {place.name}, of which some were begun anew"
        return "has no checkpoint to go on from"

    @property
    def _begun_in(self) -> Path:
        """The folder of the group that it was begun in; its own where that was alone."""
        path = self.folder / "provenance.json"
        group = files.read_json(path).get("together") if path.exists() else None
        return self.folder.parents[1] / "groups" / group["group"] if group else self.folder

    def first_epochs(self, done: int) -> list[dict[str, Any]]:
        """The history of its first `done` epochs.

        Raises:
            InputError: it holds less, or is damaged.
        """
        record = Run(self.folder)
        rows, _ = record.history[:done], record.tracked
        if len(rows) < done:
            raise InputError(
                f"{self.folder / 'history.jsonl'}: has {len(rows)} of the {done} epochs before the "
                f"checkpoint; bring the others back, or move {self._begun_in} away to train anew"
            )
        return rows

    def go_on(self, rows: list[dict[str, Any]], step: int) -> None:
        """The record of its first epochs, as it was when a checkpoint was made."""
        done = len(rows)
        self._write_status("running", None)
        self.task.update(done)
        record = files.read_json(self.folder / "provenance.json")
        self.task.note(f"goes on after epoch {done}, update {step}{_unlike(record)}")
        self._check_layout(record)
        again = {
            "epoch": done, "step": step, "commit": commit(), "training_digest": training_digest(),
            "command": command(), "versions": versions(), "device": device(),
        }  # fmt: skip
        layout = {"layout": self.layout.record} if self.layout.record else {}
        record["resumed"] = [*record.get("resumed", []), {**again, "started": now(), **layout}]
        files.write_json(self.folder / "provenance.json", record)
        files.write_lines(self.folder / "history.jsonl", rows)
        self.tracking.go_on(step)
        for row in rows:
            self.stopping.take(row["train_loss"])

    def _check_layout(self, record: dict[str, Any]) -> None:
        earlier = [record, *record.get("resumed", [])][-1].get("layout", {})
        if earlier.get("mesh") != self.layout.record.get("mesh"):
            self.task.note("was begun on other devices; agrees with an unbroken run to rounding")

    def take(self, epoch: Epoch) -> None:
        """An epoch more, which may have been the last: `ended` says so."""
        row, reason = _row(epoch), self._reason_to_end(epoch)
        if reason and not math.isfinite(epoch.train_loss):
            return self._end("diverged", reason, row, epoch.step, epoch.state)
        state = epoch.state
        if reason or epoch.number % self._eval_every == 0:
            values, state = evaluate(self.recipe, epoch.state, self.data)
            row |= values
            # The updates' losses are those before each update: the last may have diverged.
            if not trees.all_finite([values["full_train_loss"], epoch.state.params]):
                reason = f"parameters or loss are not finite after epoch {epoch.number}"
                return self._end("diverged", reason, row, epoch.step, state)
        if reason:
            return self._end("finished", reason, row, epoch.step, state)
        self.rows.append(row)
        self.task.update(epoch.number, f"loss {epoch.train_loss:.2e}")
        return None

    def flush(self) -> None:
        """History to disk."""
        files.append_lines(self.folder / "history.jsonl", self.rows)
        self.rows = []
        self.tracking.flush()

    def _reason_to_end(self, epoch: Epoch) -> str | None:
        if not math.isfinite(epoch.train_loss):
            return f"train loss is {epoch.train_loss} in epoch {epoch.number}"
        stopped = self.stopping.take(epoch.train_loss)
        if stopped is None and epoch.number >= self.last:
            return f"all {epoch.number} epochs done"
        return stopped

    @property
    def _eval_every(self) -> int:
        return self.settings["eval_every"] or max(1, self.last // 30)

    def _end(
        self, status: str, reason: str, row: dict[str, Any], step: int, state: TrainState
    ) -> None:
        self.rows.append(row)
        self.flush()
        save_tree(self.folder / "snapshots" / f"{step}.npz", state)
        record = files.read_json(self.folder / "provenance.json")
        ended = {"finished": now(), "epochs": row["epoch"]}
        files.write_json(self.folder / "provenance.json", {**record, **ended})
        self._write_status(status, reason)
        self.ended = True
        accuracy = row.get("test_accuracy")
        shown = "" if accuracy is None else f", test accuracy {100 * accuracy:.2f} %"
        self.task.finish(f"{status}: {reason}{shown}")

    def _write_status(self, status: str, reason: str | None) -> None:
        files.write_json(self.folder / "status.json", {"status": status, "reason": reason})


def _unlike(record: dict[str, Any]) -> str:
    """What trains otherwise than it did when it was last begun, by its provenance."""
    last = {k: v for begun in (record, *record.get("resumed", [])) for k, v in begun.items()}
    pairs = {
        "the code that trains": (last.get("training_digest"), training_digest()),
        "the packages' versions": (last.get("versions"), versions()),
        "the device": (_kind(last.get("device")), _kind(device())),
    }
    changed = [what for what, (then, now) in pairs.items() if then not in (None, now)]
    return f"; not what it began with: {', '.join(changed)}" if changed else ""


def _kind(device: dict[str, Any] | None) -> list[Any] | None:
    """What shapes the bits: on a CPU the number of its cores, too, among which sums are shared."""
    if device is None:
        return None
    cores = [device.get("cpu_cores")] if device["platform"] == "cpu" else []
    return [device["platform"], device["kind"], *cores]


def _row(epoch: Epoch) -> dict[str, Any]:
    return {
        "epoch": epoch.number,
        "step": epoch.step,
        "seconds": round(epoch.seconds, 6),
        "train_loss": epoch.train_loss,
        "train_accuracy": epoch.train_accuracy,
    }
