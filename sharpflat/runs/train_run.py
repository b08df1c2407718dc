"""A training, of one run or of many together: kept where it stops, and gone on with from there."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from sharpflat.config import RunConfig
from sharpflat.registry import InputError
from sharpflat.runs import files
from sharpflat.runs.build import build_recipe
from sharpflat.runs.checkpoints import Checkpoints
from sharpflat.runs.groups import Group
from sharpflat.runs.interrupts import Interrupted, Interrupts
from sharpflat.runs.member import Member
from sharpflat.runs.progress import Reporter
from sharpflat.runs.provenance import device
from sharpflat.runs.record import Run
from sharpflat.training import Batches, Moment, advance, beginning, epoch_of, start

DONE = ("finished", "diverged")


def train_group(group: Group, root: Path, reporter: Reporter, interrupts: Interrupts) -> None:
    """Train the runs of `group` under `root/runs`, those that are not trained already."""
    runs = [_record(config, root) for config in group.members]
    if all(run.status["status"] in DONE for run in runs):
        return
    with contextlib.ExitStack() as stack:
        for run in sorted(runs, key=lambda run: run.id):
            stack.enter_context(files.claimed(run.folder))
        todo = [run for run in runs if run.status["status"] not in DONE]
        for run in todo:
            files.write_text(run.folder / "config.yaml", yaml.safe_dump(run.config))
            run.check_data()
        if todo:
            _try_to_train(group, todo, root, reporter, interrupts)


def _try_to_train(
    group: Group, todo: Sequence[Run], root: Path, reporter: Reporter, interrupts: Interrupts
) -> None:
    """The study goes on; the records say what happened, and a later start tries again."""
    try:
        _Training(group, [run.id for run in todo], root, reporter).go(interrupts)
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        status = {"status": "failed", "reason": reason, "traceback": traceback.format_exc()}
        for run in todo:
            if run.status["status"] not in DONE:
                files.write_status(run.folder, status)
                reporter.say(f"run {run.id}: failed: {reason}")


def _record(config: RunConfig, root: Path) -> Run:
    folder = files.make_folder(root / "runs" / config.id)
    return Run(folder, config.swept, config.resolved())


class _Training:
    """A training between segments."""

    def __init__(self, group: Group, todo: Sequence[str], root: Path, reporter: Reporter) -> None:
        """`todo` are the ids of those that train; the others ride along unchanged."""
        self.group, self.together = group, group.together()
        self.members = [
            Member(config, root / "runs" / config.id, reporter) if config.id in todo else None
            for config in group.members
        ]
        first = next(member for member in self.members if member)
        self.recipe, self.data = first.recipe, first.data.train
        train = first.settings
        self.batches = Batches(self.data.size, train["batch_size"], train["drop_last"])
        self.folder = root / "runs" / group.id
        if self.together is not None:
            self.folder = files.make_folder(root / "groups" / group.id)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", group.id)
        self.flushed, self.seconds = time.monotonic(), 0.0
        self.say = reporter.say

    @property
    def training(self) -> list[tuple[int, Member]]:
        """Those that have not ended, by their place in the group."""
        pairs = enumerate(self.members)
        return [(place, member) for place, member in pairs if member and not member.ended]

    def go(self, interrupts: Interrupts) -> None:
        """Train to the end and write the records."""
        try:
            self._go(interrupts)
        finally:
            self.checkpoints.close()

    def _go(self, interrupts: Interrupts) -> None:
        for moment in advance(
            self.recipe, self._begin(), self.data, batch_size=self.batches.batch_size,
            seed=self.group.members[0].seed if self.together is None else self.together,
            drop_last=self.batches.drop_last,
        ):  # fmt: skip
            self._take(moment)
            if not self.training:
                return self.checkpoints.delete()
            self._keep(moment, interrupts)

    def _begin(self) -> Moment:
        """Where the training goes on."""
        starts = [
            start(build_recipe(config.resolved()), self.data, config.seed)
            for config in self.group.members
        ]
        first = beginning(starts[0])
        if self.together is not None:
            first = beginning(jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), len(starts))
        kept = self.checkpoints.restore(self._kept(first), self.say)
        for place, member in self.training:
            if kept is None:
                member.begin(starts[place], self._layout())
            else:
                member.go_on(kept[0] // self.batches.updates, kept[0])
        self._set_active()
        if kept is None:
            return first
        step, (sums, state, seconds) = kept
        self.seconds = float(seconds)
        return Moment(step, sums, state)

    def _kept(self, moment: Moment) -> tuple[Any, ...]:
        """What a checkpoint holds."""
        return moment.sums, moment.state, np.float32(self.seconds)

    def _layout(self) -> dict[str, Any] | None:
        """Who is trained together, and how; written down before the first update."""
        if self.together is None:
            return None
        layout = {
            "group": self.group.id, "members": [config.id for config in self.group.members],
            "numbers": self.together.numbers, "way": "vmap", "device": device(),
        }  # fmt: skip
        files.write_json(self.folder / "group.json", layout)
        return layout

    def _take(self, moment: Moment) -> None:
        self.seconds += moment.seconds
        if moment.step % self.batches.updates:
            for _, member in self.training:
                member.task.update(moment.step / self.batches.updates)
            return
        for place, member in self.training:
            member.take(epoch_of(self.batches, self._own(moment, place), self.seconds))
        self._set_active()
        self.seconds = 0.0

    def _own(self, moment: Moment, place: int) -> Moment:
        """One member's part."""
        if self.together is None:
            return moment
        sums, state = jax.tree.map(lambda leaf: leaf[place], (moment.sums, moment.state))
        return moment._replace(sums=sums, state=state)

    def _set_active(self) -> None:
        if self.together is not None:
            places = [place for place, _ in self.training]
            self.together.active = np.isin(np.arange(len(self.members)), places)

    def _keep(self, moment: Moment, interrupts: Interrupts) -> None:
        """History to disk about every second, and always before a checkpoint that covers it."""
        asked = interrupts.reason  # once: a signal may come at any time
        due = self.checkpoints.due or asked is not None
        if due or time.monotonic() - self.flushed > 1:
            for _, member in self.training:
                member.flush()
            self.flushed = time.monotonic()
        if due:
            self.checkpoints.save(moment.step, self._kept(moment))
        if asked is not None:
            self.checkpoints.close()
            epochs = moment.step / self.batches.updates
            self.say(f"{asked}: kept at epoch {epochs:.4g}; goes on from there")
            raise Interrupted
