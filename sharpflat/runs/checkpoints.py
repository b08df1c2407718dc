"""Checkpoints of unfinished trainings, by Orbax: a save is whole or not there."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from sharpflat.runs.snapshots import from_host, to_host

SECONDS_BETWEEN = 60.0


class Checkpoints:
    """The newest two states of one training, in `folder`, one a minute."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read or written before it is needed: Orbax takes a second to import."""
        self.folder = folder.absolute()
        self._manager: Any = None
        self._last = time.monotonic()

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest whole checkpoint as `(epoch, state)`, or None if there is none."""
        if not self.folder.exists():
            return None
        import orbax.checkpoint as ocp

        manager = self._open()
        epoch = manager.latest_step()
        if epoch is None:
            return None
        # Leaves are stored as a flat list: Orbax need not know our trees.
        stored = manager.restore(epoch, args=ocp.args.StandardRestore(to_host(like)))
        return epoch, from_host(stored, like)

    @property
    def due(self) -> bool:
        """Whether the last save is old enough for another."""
        return time.monotonic() - self._last >= SECONDS_BETWEEN

    def save(self, epoch: int, state: Any) -> None:
        """Save the state after `epoch`."""
        import orbax.checkpoint as ocp

        self._open().save(epoch, args=ocp.args.StandardSave(to_host(state)))
        self._last = time.monotonic()

    def close(self) -> None:
        """Wait for a save under way."""
        if self._manager is not None:
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
            options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager
