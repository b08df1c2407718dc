"""Signals that ask a training to stop: it first keeps what it has."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

ASKED = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """What was asked for while signals are held."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.received: signal.Signals | None = None
        self._delivered = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Take note of the first signal; the second one stops at once."""
        if self.received is not None:
            self._delivered = True
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def deliver(self) -> None:
        """What the signal would have done, now; once, and nothing if there was none.

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: after SIGTERM, with the status that shells give such an end.
        """
        if self.received is None or self._delivered:
            return
        self._delivered = True
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)


@contextlib.contextmanager
def held() -> Iterator[Interrupts]:
    """Signals wait until the body delivers them, or ends; only the main thread can hold them."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts.receive) for number in ASKED}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        interrupts.deliver()
