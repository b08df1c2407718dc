"""Which runs of a study are trained together, as one program: by their configs and device alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sharpflat.config import RunConfig
from sharpflat.runs import files
from sharpflat.runs.build import (
    optimizer_arguments,
    own_data,
    state_like,
)
from sharpflat.runs.layout import SHARE_OF_MEMORY, device_memory, is_streamed
from sharpflat.runs.memory import evaluation_bytes, update_bytes
from sharpflat.runs.record import ENDED, Run
from sharpflat.training import Members, optimizer_of
from sharpflat.validation import InputError


class Group(NamedTuple):
    """Runs that are trained as one program, or one alone.

    Attributes:
        members: in the study's order.
        free: the optimizer's arguments in which they differ.
    """

    members: tuple[RunConfig, ...]
    free: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The run's own where it is alone; else a digest of who and how."""
        ids = [member.id for member in self.members]
        if len(ids) == 1:
            return ids[0]
        return hashlib.sha256(json.dumps([ids, self.free]).encode()).hexdigest()[:16]

    def without(self, ids: Collection[str]) -> Group:
        """The others of it."""
        left = tuple(member for member in self.members if member.id not in ids)
        return Group(left, self.free if len(left) > 1 else ())

    def folder(self, root: Path) -> Path:
        """Where its checkpoints are, and of several what was written down of them."""
        return root / ("runs" if len(self.members) == 1 else "groups") / self.id

    def together(self) -> Members | None:
        """What makes one program of them; None for one alone."""
        if len(self.members) == 1:
            return None
        named = [member.train["optimizer"] for member in self.members]
        numbers = {name: [float(one[name]) for one in named] for name in self.free}
        name, arguments, factors = optimizer_arguments(self.members[0].resolved())
        return Members(
            [member.seed for member in self.members], numbers,
            optimizer_of(name, arguments, free=self.free, **factors),
            np.ones(len(self.members), bool), self._labels(),
        )  # fmt: skip

    def _labels(self) -> jax.Array | None:
        """Each member's own, where they differ."""
        configs = [member.resolved() for member in self.members]
        draws = {json.dumps(config["train"].get("label_noise")) for config in configs}
        if len(draws) == 1:
            return None
        return jnp.stack([jnp.asarray(own_data(config).train.labels) for config in configs])


def groups(
    cells: Sequence[RunConfig],
    together: bool | None,
    on_device: bool | None = None,
    devices: int = 1,
    root: Path | None = None,
) -> list[Group]:
    """The runs, grouped; those whose data set is streamed, see `is_streamed`, train alone.

    A training that was stopped there under `root`, of one run or of several, goes on as it was
    written down, whatever `together` says and on whatever device.

    Args:
        cells: the runs.
        together: None for what is faster: each alone on a CPU.
        on_device: as a config's `dataset_on_device`.
        devices: that train a group each; runs that are alike are spread over them.
        root: of all results.

    Raises:
        InputError: several that were stopped together, of which not all are asked for, or whose
            data set is streamed now.
    """
    stopped = [] if root is None else _stopped(cells, root)
    for group in stopped:
        if len(group.members) > 1 and is_streamed(group.members[0].dataset, on_device):
            raise InputError(
                f"dataset_on_device: {group.folder(Path())} was stopped with its data on the "
                f"device, and they would be streamed now; set it to true, or move that folder of "
                f"{root} away to begin its runs anew"
            )
    if together is None:
        together = jax.default_backend() != "cpu"
    found = _alike(cells, devices, on_device) if together else [Group((cell,)) for cell in cells]
    # Whatever was stopped, the others are grouped as if nothing had been.
    taken = {member.id for group in stopped for member in group.members}
    found = stopped + [rest for group in found if (rest := group.without(taken)).members]
    places = {cell.id: place for place, cell in enumerate(cells)}
    return sorted(found, key=lambda group: places[group.members[0].id])


def _alike(cells: Sequence[RunConfig], devices: int, on_device: bool | None) -> list[Group]:
    alike: dict[str, list[RunConfig]] = {}
    for cell in cells:
        alone = cell.id if is_streamed(cell.dataset, on_device) else ""
        alike.setdefault(_likeness(cell) + alone, []).append(cell)
    return [group for runs in alike.values() for group in _split(runs, devices)]


def _stopped(cells: Sequence[RunConfig], root: Path) -> list[Group]:
    """Trainings of these runs that have a checkpoint, as they were written down.

    Of each run that of which its provenance is: one that another has overtaken is none. And those
    whose record is damaged, each alone.
    """
    known = {cell.id: cell for cell in cells}
    runs = {cell.id: Run(root / "runs" / cell.id) for cell in cells}
    whole = {name for name, run in runs.items() if _can_go_on(run)}
    going = {name for name in whole if runs[name].status["status"] not in ENDED}
    alone = [Group((known[name],)) for name in known if name in going and _is_of(runs[name], None)]
    found = [group for group in alone if _has_checkpoint(group.folder(root))]
    for file in sorted(root.glob("groups/*/group.json")):
        layout = files.read_fields(file, "members", "group", "numbers")
        members = layout["members"]
        mine = [one for one in members if one in going and _is_of(runs[one], layout["group"])]
        if not mine or not _has_checkpoint(file.parent):
            continue
        if left := [one for one in members if one not in known]:
            files.check_free(runs[mine[0]].folder)  # else it is training now, and says so
            raise InputError(_partly(root, layout["group"], left, runs[mine[0]]))
        lost = [one for one in set(members) & whole - set(mine) if not runs[one].exists]
        if lost:
            raise InputError(_lost(root, layout["group"], sorted(lost)))
        if set(members) & going == set(mine):
            found.append(Group(tuple(known[one] for one in members), tuple(layout["numbers"])))
    taken = {member.id for group in found for member in group.members}
    # A damaged one is refused alone, and holds up none that would begin with it; those that were
    # stopped with it wait.
    return found + [Group((cell,)) for name, cell in known.items() if name not in whole | taken]


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("checkpoints/[0-9]*"))


def _partly(root: Path, group: str, left: Sequence[str], asked: Run) -> str:
    """Why part of a group cannot go on: beginning it anew would make all of it begin anew."""
    return (
        f"groups/{group}: was stopped while it trained {asked.id} together with runs that are not "
        f"asked for: {', '.join(left)}; ask for all of them, as {asked.provenance['command']!r} "
        f"did, or move that folder of {root} away to begin anew"
    )


def _lost(root: Path, group: str, lost: Sequence[str]) -> str:
    return (
        f"groups/{group}: was stopped while it trained runs that are not there any more: "
        f"{', '.join(lost)}; bring them back, or move that folder of {root} away to begin all of "
        f"its runs anew"
    )


def _can_go_on(run: Run) -> bool:
    """Whether its record can be read, as far as a training needs it."""
    try:
        return run.damage is None and (run.status["status"] in ENDED or run.history is not None)
    except InputError:
        return False


def _is_of(run: Run, group: str | None) -> bool:
    """Whether its training, begun or done, is that of this group; None for one alone."""
    if not (run.folder / "provenance.json").exists():
        return False
    together = run.provenance.get("together")
    return (together["group"] if together else None) == group


def _likeness(cell: RunConfig) -> str:
    """Equal for runs that may differ in seed, labels and the optimizer's numbers only."""
    config = cell.resolved()
    numbers = _numbers(config)
    optimizer = {k: v for k, v in config["train"]["optimizer"].items() if k not in numbers}
    noise = config["train"].get("label_noise")
    train = {**config["train"], "optimizer": optimizer}
    if noise and not noise["resample"]:
        train["label_noise"] = {**noise, "draw": 0}
    return json.dumps({**config, "train": train, "seed": 0}, sort_keys=True)


def _numbers(config: dict[str, Any]) -> list[str]:
    optimizer = config["train"]["optimizer"]
    return [name for name, value in optimizer.items() if isinstance(value, float)]


def _split(runs: list[RunConfig], devices: int) -> list[Group]:
    """Runs that are alike, in groups of nearly one size: one a device, or as many as fit one."""
    optimizer = [run.train["optimizer"] for run in runs]
    differ = [
        name for name in _numbers(runs[0].resolved()) if len({o[name] for o in optimizer}) > 1
    ]
    free = tuple(differ)
    if len(runs) == 1:
        return [Group((runs[0],))]
    if free and not _can_be_free(runs[0], free):
        apart: dict[str, list[RunConfig]] = {}
        for run in runs:
            apart.setdefault(json.dumps(run.train["optimizer"], sort_keys=True), []).append(run)
        return [group for part in apart.values() for group in _split(part, devices)]
    room = SHARE_OF_MEMORY * device_memory()
    most = max(1, int(room / update_bytes(runs[0], room / len(runs))))
    count = max(math.ceil(len(runs) / most), min(len(runs), devices))
    parts = np.array_split(np.arange(len(runs)), count)
    return [Group(tuple(runs[i] for i in part), free if len(part) > 1 else ()) for part in parts]


def _can_be_free(run: RunConfig, free: tuple[str, ...]) -> bool:
    """Whether the optimizer can be made of traced numbers: tried, without numbers."""
    config = run.resolved()
    name, arguments, factors = optimizer_arguments(config)
    build = optimizer_of(name, arguments, free=free, **factors)

    def once(numbers: dict[str, Any], params: Any) -> Any:
        rule = optax.with_extra_args_support(build(numbers))
        key = jax.random.key(0)
        return rule.update(params, rule.init(params), params, grad_fn=lambda w: w, key=key)

    try:
        params = state_like(config).params
        jax.eval_shape(once, {name: jnp.ones(()) for name in free}, params)
    except Exception:
        return False
    return True


def places(found: Sequence[Group], together: bool | None) -> list[jax.Device]:
    """The local devices to train on, a group at a time on each; of a CPU as many as memory allows.

    Where each group is trained changes nothing of it: all devices are alike.
    """
    devices = jax.local_devices()
    if together is False or min(len(found), len(devices)) < 2:
        return devices[:1]
    if devices[0].platform != "cpu":
        return devices
    room = SHARE_OF_MEMORY * device_memory() * len(devices)
    sizes = [len(group.members) for group in found]
    needed = max(
        size * update_bytes(group.members[0], room / len(devices) / size)
        + evaluation_bytes(group.members[0], room / len(devices))
        for group, size in zip(found, sizes, strict=True)
    )
    return devices[: max(1, int(room / needed))]
