"""One training: resumed where it stopped, evaluated, recorded."""

from __future__ import annotations

import functools
import math
import time
import traceback
from pathlib import Path
from typing import Any

import jax
import yaml

from sharpflat import trees
from sharpflat.batch import Batch
from sharpflat.config import RunConfig
from sharpflat.networks import Model, recalibrate
from sharpflat.objective import Objective
from sharpflat.registry import InputError
from sharpflat.runs import files
from sharpflat.runs.build import Resident, build_recipe, epochs_of, resident
from sharpflat.runs.checkpoints import Checkpoints
from sharpflat.runs.progress import Reporter
from sharpflat.runs.provenance import command, commit, now, provenance
from sharpflat.runs.record import Run
from sharpflat.runs.snapshots import save_tree
from sharpflat.training import Epoch, Recipe, Stopping, TrainState, epochs, evaluated, start

EVALUATION_CHUNK = 1000
DONE = ("finished", "diverged")


def train_run(config: RunConfig, root: Path, reporter: Reporter) -> Run:
    """Train `config` under `root/runs`, unless that is done already; its record either way."""
    folder = files.make_folder(root / "runs" / config.id)
    run = Run(folder, config.swept, config.resolved())
    if run.status["status"] in DONE:
        return run
    with files.claimed(folder, reporter.say):
        if run.status["status"] not in DONE:
            files.write_text(folder / "config.yaml", yaml.safe_dump(config.resolved()))
            run.check_data()
            try:
                _Training(config, folder, reporter).go()
            except InputError:
                raise
            except Exception as error:
                # The study goes on; the record says what happened, and a later start tries again.
                reason = f"{type(error).__name__}: {error}"
                _write_status(folder, "failed", reason, traceback=traceback.format_exc())
                reporter.say(f"run {config.id}: failed: {reason}")
    return run


class _Training:
    """The state of one training between epochs."""

    def __init__(self, config: RunConfig, folder: Path, reporter: Reporter) -> None:
        self.folder = folder
        self.config = config.resolved()
        self.settings = self.config["train"]
        self.last = epochs_of(self.settings)
        self.data: Resident = resident(self.config["dataset"])
        self.recipe: Recipe = build_recipe(self.config)
        self.stopping = Stopping(**self.settings["stop"])
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.rows: list[dict[str, Any]] = []
        self.flushed = time.monotonic()
        self.say = reporter.say
        settings = " ".join(f"{key}={value}" for key, value in config.swept.items())
        name = f"train {config.id[:6]} {settings} seed={config.seed}"
        self.task = reporter.task(name, self.last)

    def go(self) -> None:
        """Train to the end and write the record."""
        try:
            self._go()
        finally:
            self.checkpoints.close()

    def _go(self) -> None:
        done, state = self._begin()
        reason, epoch, evaluated = None, None, state
        for epoch in self._epochs(state, done):
            row = _row(epoch)
            reason = self._reason_to_end(epoch)
            if reason and not math.isfinite(epoch.train_loss):
                return self._end("diverged", reason, row, epoch, epoch.state)
            if reason or epoch.number % self._eval_every == 0:
                values, evaluated = evaluate(self.recipe, epoch.state, self.data)
                row |= values
                # The updates' losses are those before each update: the last may have diverged.
                if not trees.all_finite([values["full_train_loss"], epoch.state.params]):
                    reason = f"parameters or loss are not finite after epoch {epoch.number}"
                    return self._end("diverged", reason, row, epoch, evaluated)
            if reason:
                return self._end("finished", reason, row, epoch, evaluated)
            self.rows.append(row)
            self._keep(epoch)

    def _begin(self) -> tuple[int, TrainState]:
        """Epochs done already and the state after them."""
        seed = self.config["seed"]
        initial = start(self.recipe, self.data.train, seed)
        restored = self.checkpoints.restore(initial, self.say)
        if restored is None:
            record = provenance(self.data.dataset)
            files.write_json(self.folder / "provenance.json", record)
            save_tree(files.make_folder(self.folder / "snapshots") / "0.npz", initial)
            files.write_text(self.folder / "history.jsonl", "")
            _write_status(self.folder, "running", None)
            return 0, initial
        _write_status(self.folder, "running", None)
        done, state = restored
        self.task.update(done)
        self.task.note(f"goes on after epoch {done}")
        record = files.read_json(self.folder / "provenance.json")
        again = {"epoch": done, "commit": commit(), "command": command(), "started": now()}
        record["resumed"] = [*record.get("resumed", []), again]
        files.write_json(self.folder / "provenance.json", record)
        rows = files.read_lines(self.folder / "history.jsonl")[:done]
        files.write_lines(self.folder / "history.jsonl", rows)
        for row in rows:
            self.stopping.reason(row["train_loss"])
        return done, state

    def _epochs(self, state: TrainState, done: int) -> Any:
        return epochs(
            self.recipe, state, self.data.train, batch_size=self.settings["batch_size"],
            seed=self.config["seed"], first=done + 1, drop_last=self.settings["drop_last"],
            on_segment=self.task.update,
        )  # fmt: skip

    def _reason_to_end(self, epoch: Epoch) -> str | None:
        if not math.isfinite(epoch.train_loss):
            return f"train loss is {epoch.train_loss} in epoch {epoch.number}"
        stopped = self.stopping.reason(epoch.train_loss)
        if stopped is None and epoch.number >= self.last:
            return f"all {epoch.number} epochs done"
        return stopped

    @property
    def _eval_every(self) -> int:
        return self.settings["eval_every"] or max(1, self.last // 30)

    def _keep(self, epoch: Epoch) -> None:
        """History to disk about every second, and always before a checkpoint that covers it."""
        self.task.update(epoch.number, f"loss {epoch.train_loss:.2e}")
        due = self.checkpoints.due
        if due or time.monotonic() - self.flushed > 1:
            self._flush()
        if due:
            self.checkpoints.save(epoch.number, epoch.state)

    def _flush(self) -> None:
        files.append_lines(self.folder / "history.jsonl", self.rows)
        self.rows, self.flushed = [], time.monotonic()

    def _end(
        self, status: str, reason: str, row: dict[str, Any], epoch: Epoch, state: TrainState
    ) -> None:
        self.rows.append(row)
        self._flush()
        save_tree(self.folder / "snapshots" / f"{epoch.step}.npz", state)
        record = files.read_json(self.folder / "provenance.json")
        files.write_json(self.folder / "provenance.json", {**record, "finished": now()})
        _write_status(self.folder, status, reason)
        self.checkpoints.delete()
        accuracy = row.get("test_accuracy")
        shown = "" if accuracy is None else f", test accuracy {100 * accuracy:.2f} %"
        self.task.finish(f"{status}: {reason}{shown}")


def evaluate(
    recipe: Recipe, state: TrainState, data: Resident
) -> tuple[dict[str, float], TrainState]:
    """Loss and accuracy on all of both splits, and the state that they are of.

    Its parameters are the average where the training keeps one, and the batch-norm averages those
    parameters' own over the training set.
    """
    params = evaluated(state.opt_state, state.params)
    averages = _recalibrated(recipe.model, params, state.model_state, data.train)
    values: dict[str, float] = {}
    for name, split in (("full_train", data.train), ("test", data.test)):
        objective = Objective.from_model(
            recipe.model, params, averages, split, loss=recipe.loss, chunk=EVALUATION_CHUNK
        )
        loss, accuracy = objective.loss_and_accuracy(params)
        values |= {f"{name}_loss": float(loss), f"{name}_accuracy": float(accuracy)}
    return values, state._replace(params=params, model_state=averages)


@functools.partial(jax.jit, static_argnums=0)
def _recalibrated(model: Model, params: Any, model_state: Any, data: Batch) -> Any:
    return recalibrate(model, params, model_state, data, EVALUATION_CHUNK)


def _row(epoch: Epoch) -> dict[str, Any]:
    return {
        "epoch": epoch.number,
        "step": epoch.step,
        "seconds": round(epoch.seconds, 6),
        "train_loss": epoch.train_loss,
        "train_accuracy": epoch.train_accuracy,
    }


def _write_status(folder: Path, status: str, reason: str | None, **more: str) -> None:
    files.write_json(folder / "status.json", {"status": status, "reason": reason, **more})
