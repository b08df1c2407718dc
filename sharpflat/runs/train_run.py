"""A training, of one run or of many together: kept where it stops, and gone on with from there."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from sharpflat.batch import Batch
from sharpflat.config import RunConfig
from sharpflat.registry import Entry, datasets, models, optimizers, told
from sharpflat.runs import files
from sharpflat.runs.build import build_recipe
from sharpflat.runs.checkpoints import Checkpoints
from sharpflat.runs.groups import Group
from sharpflat.runs.interrupts import Interrupted, Interrupts
from sharpflat.runs.layout import Layout
from sharpflat.runs.member import Member
from sharpflat.runs.processes import announced
from sharpflat.runs.progress import Reporter
from sharpflat.runs.provenance import device
from sharpflat.runs.record import ENDED, Run
from sharpflat.runs.tracking import tracks
from sharpflat.runs.warm_starts import origin, warm_start
from sharpflat.training import (
    Batches,
    Members,
    Moment,
    TrainState,
    advance,
    beginning,
    epoch_of,
    own,
    start,
)
from sharpflat.validation import InputError


def train_group(
    group: Group,
    layout: Layout,
    root: Path,
    reporter: Reporter,
    interrupts: Interrupts,
    checkpoint_seconds: float | None = None,
) -> None:
    """Train the runs of `group` under `root/runs`, those that are not trained already."""
    runs = [_record(config, root) for config in group.members]
    checkpoints = Checkpoints(group.folder(root) / "checkpoints", group.id, checkpoint_seconds)
    if all(run.status["status"] in ENDED for run in runs):
        return checkpoints.delete()
    with contextlib.ExitStack() as stack:
        for run in sorted(runs, key=lambda run: run.id):
            if run.status["status"] in ENDED:
                continue  # it is only looked at, by other groups of it perhaps at the same time
            stack.enter_context(files.claimed(run.folder))
        todo = [run for run in runs if run.status["status"] not in ENDED]
        for run in todo:
            files.write_text(run.folder / "config.yaml", yaml.safe_dump(run.config))
        if todo:
            with _failures_recorded(todo, reporter):
                for run in todo:
                    run.check_data()
                ids = [run.id for run in todo]
                _Training(group, layout, ids, root, reporter, checkpoints).go(interrupts)


@contextlib.contextmanager
def _failures_recorded(todo: Sequence[Run], reporter: Reporter) -> Iterator[None]:
    """The study goes on; the records say what happened, and a later start tries again."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = told(error, _entries(todo[0].config))
        status = {"status": "failed", "reason": reason, "traceback": traceback.format_exc()}
        for run in todo:
            if run.status["status"] not in ENDED:
                files.write_status(run.folder, status)
                reporter.say(f"run {run.id}: failed: {reason}")


def _entries(config: dict[str, Any]) -> Iterator[Entry]:
    """What a run is made of, as far as it is known here."""
    optimizer = config["train"]["optimizer"]
    pairs = [(datasets, config["dataset"]), (models, config["model"]), (optimizers, optimizer)]
    yield from (entries[spec["name"]] for entries, spec in pairs if spec["name"] in entries)


def follow_group(work: tuple[Group, Layout]) -> None:
    """Train in step with the first process, which keeps the records."""
    group, layout = work
    data = layout.data(group.members[0].resolved()).train
    for _ in _moments(group, group.together(), layout, _starts(group, data)[1]):
        pass


def _starts(group: Group, data: Batch, root: Path | None = None) -> tuple[list[TrainState], Moment]:
    """The start of each member, and the moment in which all of them are there.

    Without `root` it need have the shapes only: those who follow are told the numbers.
    """
    starts = [start(build_recipe(config.resolved()), data, config.seed) for config in group.members]
    if root is not None:
        pairs = zip(group.members, starts, strict=True)
        starts = [warm_start(config.resolved(), root, plain) for config, plain in pairs]
    if len(starts) == 1:
        return starts, beginning(starts[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    return starts, beginning(stacked, len(starts))


def _moments(
    group: Group, together: Members | None, layout: Layout, begin: Moment
) -> Generator[Moment, None, None]:
    config = group.members[0].resolved()
    train, data = config["train"], layout.data(config).train
    return advance(
        replace(build_recipe(config), mesh=layout.mesh), begin, data,
        batch_size=train["batch_size"], seed=config["seed"] if together is None else together,
        drop_last=train["drop_last"], streamed_by=layout.streamed_by(data),
        stops_at=[track.period for track in tracks(config)],
    )  # fmt: skip


def _record(config: RunConfig, root: Path) -> Run:
    folder = files.make_folder(root / "runs" / config.id)
    return Run(folder, config.swept, config.resolved())


@jax.jit
def _of_one(stacked: Any, place: int) -> Any:
    """In one program: a call for each array takes longer than a short epoch."""
    return jax.tree.map(lambda leaf: leaf[place], stacked)


class _Training:
    """A training between segments."""

    def __init__(
        self,
        group: Group,
        layout: Layout,
        todo: Sequence[str],
        root: Path,
        reporter: Reporter,
        checkpoints: Checkpoints,
    ) -> None:
        """`todo` are the ids of those that train; the others ride along unchanged."""
        self.group, self.together, self.layout = group, group.together(), layout
        self.root = root
        self.members = [
            Member(config, root / "runs" / config.id, layout, reporter)
            if config.id in todo
            else None
            for config in group.members
        ]
        first = next(member for member in self.members if member)
        train, self.data = first.settings, first.data.train
        self.batches = Batches(self.data.size, train["batch_size"], train["drop_last"])
        self.folder, self.checkpoints = files.make_folder(group.folder(root)), checkpoints
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
        # The start is named nowhere, or it stays in memory.
        begun = _moments(self.group, self.together, self.layout, self._begin())
        announced(self.group.id)
        with contextlib.closing(begun) as moments:
            for moment in moments:
                self._take(moment)
                if not self.training:
                    return self.checkpoints.delete()
                self._keep(moment, interrupts)

    def _begin(self) -> Moment:
        """Where the training goes on."""
        kept = self._restored()
        done = kept[0] // self.batches.updates if kept else 0
        # All of them, before any is written: one that is damaged holds up the others of its group.
        rows = [member.first_epochs(done) for _, member in self.training]
        if kept is None:
            starts, first = _starts(self.group, self.data, self.root)
            for place, member in self.training:
                member.begin(starts[place], self._about(member))
            self._set_active()
            return first
        step, (sums, state, seconds, carried) = kept
        for (place, member), own_rows in zip(self.training, rows, strict=True):
            member.tracking.carried = carried[place]
            member.go_on(own_rows, step)
        self._set_active()
        self.seconds = float(seconds)
        return Moment(step, sums, state)

    def _restored(self) -> tuple[int, Any] | None:
        """The newest checkpoint, `_kept` after so many updates."""
        if not self.checkpoints.folder.exists():
            return None
        like = self._kept(_starts(self.group, self.data)[1])
        return self.checkpoints.restore(like, self.say, self._attempts())

    def _attempts(self) -> dict[str, str | None]:
        return {member.folder.name: member.attempt for _, member in self.training}

    def _kept(self, moment: Moment) -> tuple[Any, ...]:
        """What a checkpoint holds."""
        vector = next(member.tracking.carried for member in self.members if member)
        carried = [m.tracking.carried if m else jnp.zeros_like(vector) for m in self.members]
        return moment.sums, moment.state, np.float32(self.seconds), carried

    def _about(self, member: Member) -> dict[str, Any]:
        """What provenance is to say of how it trains."""
        found = {"together": self._layout(), "init_from": origin(member.config, self.root)}
        return {key: value for key, value in found.items() if value}

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
        for place, member in self.training:
            if member.tracking.due(moment.step):
                member.tracking.look(self._own(moment, place).state, moment.step)
        if moment.step % self.batches.updates:
            for _, member in self.training:
                member.task.update(moment.step / self.batches.updates)
            return
        for place, member in self.training:
            member.take(epoch_of(self.batches, self._own(moment, place), self.seconds))
        self._set_active()
        self.seconds = 0.0

    def _own(self, moment: Moment, place: int) -> Moment:
        """One member's part, on the devices of this process."""
        sums, state = own(self.layout.mesh, (moment.sums, moment.state))
        if self.together is not None:
            sums, state = _of_one((sums, state), place)
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
            self.checkpoints.save(moment.step, self._kept(moment), self._attempts())
        if asked is not None:
            self.checkpoints.close()
            epochs = moment.step / self.batches.updates
            folder = self.group.folder(Path())
            self.say(f"{asked}: kept at epoch {epochs:.4g} of {folder}; goes on from there")
            raise Interrupted
