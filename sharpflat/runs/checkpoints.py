"""Checkpoints of unfinished trainings, by Orbax: a save is whole or not there."""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sharpflat.runs.files import make_folder
from sharpflat.runs.snapshots import from_host, to_host
from sharpflat.validation import InputError

SECONDS_BETWEEN = 60.0
# Orbax tells saves of one process apart by a counter that is the process's: with several at once
# one waits for the other's folder.
ONE_AT_A_TIME = threading.RLock()
OF_THE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
"""Errors of the system by which a checkpoint is known to lack a part."""

Attempts = Mapping[str, str | None]
"""By a run's id the `attempt` that its provenance has: another one each time it begins anew."""


class Checkpoints:
    """The newest two states of a training, in `folder`, every so often and where it is stopped.

    Beside its arrays each holds their digest, by which a damaged one is known, and the name of the
    training that it is of.
    """

    def __init__(self, folder: Path, owner: str, seconds: float | None = None) -> None:
        """Nothing is read or written before it is needed: Orbax takes a second to import.

        Args:
            folder: of its checkpoints alone.
            owner: the training they are of.
            seconds: from one to the next; `SECONDS_BETWEEN` by default.
        """
        self.seconds = SECONDS_BETWEEN if seconds is None else seconds
        self.folder = folder.absolute()
        self.owner = owner
        self._manager: Any = None
        self._last = time.monotonic()

    def restore(
        self, like: Any, say: Callable[[str], None], attempts: Attempts | None = None
    ) -> tuple[int, Any] | None:
        """The newest whole checkpoint as `(step, tree)`, or None if there is none.

        A damaged one is named to `say` and set aside, and the one before it is taken. So is one of
        other `attempts` at these runs, which were begun anew since.

        Raises:
            InputError: a whole one, of another training or precision.
        """
        if not self.folder.exists():
            return None
        with ONE_AT_A_TIME:
            return self._restore(like, say, attempts or {})

    def _restore(
        self, like: Any, say: Callable[[str], None], attempts: Attempts
    ) -> tuple[int, Any] | None:
        for step in sorted(self._open().all_steps(), reverse=True):
            try:
                about, leaves = self._stored(step)
            except Exception as error:
                if _is_of_the_machine(error):
                    raise
                kept = self._set_aside(step)
                reason = str(error).partition("\n")[0][:200]
                say(f"checkpoint {self.folder / str(step)}: damaged, kept as {kept}: {reason}")
                continue
            wanted = to_host(like)
            self._check_owner(step, about["owner"])
            if anew := _begun_anew(attempts, about.get("attempts", {})):
                kept = self._set_aside(step)
                place = self.folder / str(step)
                say(f"checkpoint {place}: run {anew} was begun anew since; kept as {kept}")
                continue
            self._check_shapes(step, _shapes(leaves), _shapes(_stored_part(wanted)))
            found = iter(leaves)
            return step, from_host([next(found) if leaf.size else leaf for leaf in wanted], like)
        return None

    def _check_owner(self, step: int, owner: str) -> None:
        if owner != self.owner:
            where = f"checkpoint {self.folder / str(step)}"
            raise InputError(f"{where}: is of training {owner}, not of {self.owner}; move it away")

    def _check_shapes(self, step: int, found: list[str], wanted: list[str]) -> None:
        where = f"checkpoint {self.folder / str(step)}"
        if found != wanted:
            pairs = itertools.zip_longest(found, wanted, fillvalue="nothing")
            one, other = next(pair for pair in pairs if pair[0] != pair[1])
            raise InputError(
                f"{where}: holds an array {one} where this training has {other}; go on with the "
                f"precision and the versions it was made with, or move it away"
            )

    def _stored(self, step: int) -> tuple[dict[str, Any], list[np.ndarray]]:
        import orbax.checkpoint as ocp

        stored = self._open().restore(
            step,
            args=ocp.args.Composite(
                leaves=ocp.args.StandardRestore(), about=ocp.args.JsonRestore()
            ),
        )
        leaves = [np.asarray(leaf) for leaf in stored.leaves]
        if stored.about["digest"] != _digest(leaves):
            raise ValueError("its content is not what was written")
        return stored.about, leaves

    def _set_aside(self, step: int) -> Path:
        """Out of Orbax's sight, and not deleted with the others at the end."""
        self.close()
        kept = self.folder.parent / "set_aside" / f"checkpoint-{step}"
        while kept.exists():
            kept = kept.with_name(f"{kept.name}-again")
        make_folder(kept.parent)
        (self.folder / str(step)).replace(kept)
        return kept

    @property
    def due(self) -> bool:
        """Whether the last save is old enough for another."""
        return time.monotonic() - self._last >= self.seconds

    def save(self, step: int, tree: Any, attempts: Attempts | None = None) -> None:
        """Save what a training is after `step` updates, of these attempts at its runs."""
        import orbax.checkpoint as ocp

        # Leaves are stored as a flat list: Orbax need not know our trees.
        leaves = _stored_part(to_host(tree))
        about = {"owner": self.owner, "digest": _digest(leaves), "attempts": dict(attempts or {})}
        with ONE_AT_A_TIME:
            self._open().save(
                step,
                args=ocp.args.Composite(
                    leaves=ocp.args.StandardSave(leaves), about=ocp.args.JsonSave(about)
                ),
            )
        self._last = time.monotonic()

    def close(self) -> None:
        """Let go of what reads and writes."""
        if self._manager is not None:
            with ONE_AT_A_TIME:
                self._manager.close()
            self._manager = None

    def delete(self) -> None:
        """Remove the checkpoints: the finished run's snapshot holds the same state."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> Any:
        if self._manager is None:
            import orbax.checkpoint as ocp

            logging.getLogger("absl").setLevel(logging.ERROR)
            make_folder(self.folder)
            alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
            several = {"multiprocessing_options": alone} if jax.process_count() > 1 else {}
            options = ocp.CheckpointManagerOptions(
                max_to_keep=2, create=False, enable_async_checkpointing=False, **several
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager


def _is_of_the_machine(error: Exception) -> bool:
    """Whether it says nothing of what was written: another time, the same file may be read."""
    of_system = re.search(r"OS error (\d+)", str(error))  # as TensorStore has it in a ValueError
    number = int(of_system[1]) if of_system else getattr(error, "errno", None)
    of_now = isinstance(error, MemoryError | PermissionError)
    return of_now or number not in (None, *OF_THE_FILE)


def _begun_anew(now: Attempts, then: Attempts) -> str | None:
    """A run that is at another attempt now, or was in none of those that the checkpoint knows."""
    if not then:  # of an earlier version, which gave its runs none
        then = dict.fromkeys(now)
    return next((run for run, one in now.items() if run not in then or then[run] != one), None)


def _stored_part(leaves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Orbax does not take empty arrays."""
    return [leaf for leaf in leaves if leaf.size]


def _shapes(leaves: Sequence[np.ndarray]) -> list[str]:
    return [f"{leaf.dtype} {leaf.shape}" for leaf in leaves]


def _digest(leaves: Sequence[Any]) -> str:
    """SHA-256 of all arrays."""
    total = hashlib.sha256()
    for leaf in leaves:
        array = np.ascontiguousarray(leaf)
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
