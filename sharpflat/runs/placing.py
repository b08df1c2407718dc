"""Work placed on the local devices: one piece at a time on each."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

import jax

from sharpflat.training import settings

Piece = TypeVar("Piece")


def placed(
    work: Callable[[Piece], None],
    pieces: Sequence[Piece],
    devices: Sequence[Any],
    stop: Callable[[], None],
) -> Iterator[None]:
    """Do `work` on every piece, on whichever device is free; yields as often as one is done.

    With one device, or one piece, it is done here and in order; else in a thread a device.

    Args:
        work: done under `jax.default_device`, and what else of JAX is set here.
        pieces: of work.
        devices: local ones.
        stop: asks the pieces under way to end; called once one of them raises, or the caller wants
            no more. What was raised is raised here when all have ended.
    """
    if min(len(devices), len(pieces)) < 2:
        for piece in pieces:
            work(piece)
            yield
        return
    free: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for device in devices:
        free.put(device)

    same = settings()

    def one(piece: Piece) -> None:
        device = free.get()
        try:
            with same(), jax.default_device(device):
                work(piece)
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        futures = [pool.submit(one, piece) for piece in pieces]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BaseException:
            stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
