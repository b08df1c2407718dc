"""One training: resumed where it stopped, kept where it is interrupted."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

import yaml

from sharpflat.config import RunConfig
from sharpflat.registry import InputError
from sharpflat.runs import files
from sharpflat.runs.checkpoints import Checkpoints
from sharpflat.runs.interrupts import Interrupts, held
from sharpflat.runs.member import Member
from sharpflat.runs.progress import Reporter
from sharpflat.runs.record import Run
from sharpflat.training import Batches, Epoch, Moment, advance, beginning, start

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
                status = {"status": "failed", "reason": reason}
                status["traceback"] = traceback.format_exc()
                files.write_json(folder / "status.json", status)
                reporter.say(f"run {config.id}: failed: {reason}")
    return run


class _Training:
    """A training between segments."""

    def __init__(self, config: RunConfig, folder: Path, reporter: Reporter) -> None:
        self.member = Member(config, folder, reporter)
        self.seed, settings = config.seed, self.member.settings
        self.data = self.member.data.train
        self.batches = Batches(self.data.size, settings["batch_size"], settings["drop_last"])
        self.checkpoints = Checkpoints(folder / "checkpoints", config.id)
        self.flushed = time.monotonic()
        self.seconds = 0.0
        self.say = reporter.say

    def go(self) -> None:
        """Train to the end and write the record."""
        with held() as interrupts:
            try:
                self._go(interrupts)
            finally:
                self.checkpoints.close()

    def _go(self, interrupts: Interrupts) -> None:
        for moment in advance(
            self.member.recipe, self._begin(), self.data, batch_size=self.batches.batch_size,
            seed=self.seed, drop_last=self.batches.drop_last,
        ):  # fmt: skip
            self._take(moment)
            if self.member.ended:
                return self.checkpoints.delete()
            self._keep(moment, interrupts)

    def _begin(self) -> Moment:
        """Where the training goes on."""
        first = beginning(start(self.member.recipe, self.data, self.seed))
        kept = self.checkpoints.restore((first.sums, first.state), self.say)
        if kept is None:
            self.member.begin(first.state)
            return first
        step, (sums, state) = kept
        self.member.go_on(step // self.batches.updates, step)
        return Moment(step, sums, state)

    def _take(self, moment: Moment) -> None:
        self.seconds += moment.seconds
        number, rest = divmod(moment.step, self.batches.updates)
        if rest:
            return self.member.task.update(moment.step / self.batches.updates)
        loss, accuracy = (float(total) / self.batches.seen for total in moment.sums)
        epoch = Epoch(number, moment.step, loss, accuracy, self.seconds, moment.state)
        self.seconds = 0.0
        return self.member.take(epoch)

    def _keep(self, moment: Moment, interrupts: Interrupts) -> None:
        """History to disk about every second, and always before a checkpoint that covers it."""
        due = self.checkpoints.due or interrupts.received is not None
        if due or time.monotonic() - self.flushed > 1:
            self.member.flush()
            self.flushed = time.monotonic()
        if due:
            self.checkpoints.save(moment.step, (moment.sums, moment.state))
        if interrupts.received is not None:
            epochs = moment.step / self.batches.updates
            self.say(f"{interrupts.received.name}: kept at epoch {epochs:.4g}; goes on from there")
            interrupts.deliver()
