"""Checkpoints of unfinished trainings, by Orbax: a save is whole or not there."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpflat.runs.files import make_folder
from sharpflat.runs.snapshots import from_host, to_host

SECONDS_BETWEEN = 60.0
_DIGEST = np.zeros(32, np.uint8)


class Checkpoints:
    """The newest two states of one training, in `folder`, one a minute.

    Beside its arrays each holds their digest, by which a damaged one is known.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read or written before it is needed: Orbax takes a second to import."""
        self.folder = folder.absolute()
        self._manager: Any = None
        self._last = time.monotonic()

    def restore(self, like: Any, say: Callable[[str], None]) -> tuple[int, Any] | None:
        """The newest whole checkpoint as `(epoch, state)`, or None if there is none.

        A damaged one is named to `say` and set aside, and the one before it is taken.
        """
        if not self.folder.exists():
            return None
        for epoch in sorted(self._open().all_steps(), reverse=True):
            try:
                return epoch, from_host(self._stored(epoch, like), like)
            except Exception as error:
                kept = self._set_aside(epoch)
                reason = str(error).partition("\n")[0][:200]
                say(f"checkpoint {self.folder / str(epoch)}: damaged, kept as {kept}: {reason}")
        return None

    def _stored(self, epoch: int, like: Any) -> list[np.ndarray]:
        import orbax.checkpoint as ocp

        # Leaves are stored as a flat list: Orbax need not know our trees.
        wanted = to_host(like)
        stored = self._open().restore(epoch, args=ocp.args.StandardRestore([*wanted, _DIGEST]))
        *leaves, digest = stored
        if digest.tobytes() != _digest(leaves).tobytes():
            raise ValueError("its content is not what was written")
        for leaf, other in zip(leaves, wanted, strict=True):
            if (leaf.shape, leaf.dtype) != (other.shape, other.dtype):
                raise ValueError(f"holds an array {leaf.dtype} {leaf.shape} of another training")
        return leaves

    def _set_aside(self, epoch: int) -> Path:
        """Out of Orbax's sight, and not deleted with the others at the end."""
        self.close()
        kept = self.folder.parent / "damaged" / f"checkpoint-{epoch}"
        while kept.exists():
            kept = kept.with_name(f"{kept.name}-again")
        make_folder(kept.parent)
        (self.folder / str(epoch)).replace(kept)
        return kept

    @property
    def due(self) -> bool:
        """Whether the last save is old enough for another."""
        return time.monotonic() - self._last >= SECONDS_BETWEEN

    def save(self, epoch: int, state: Any) -> None:
        """Save the state after `epoch`."""
        import orbax.checkpoint as ocp

        leaves = to_host(state)
        self._open().save(epoch, args=ocp.args.StandardSave([*leaves, _digest(leaves)]))
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


def _digest(leaves: Sequence[Any]) -> np.ndarray:
    """SHA-256 of all arrays, as bytes in an array."""
    total = hashlib.sha256()
    for leaf in leaves:
        array = np.ascontiguousarray(leaf)
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(array.tobytes())
    return np.frombuffer(total.digest(), np.uint8)
