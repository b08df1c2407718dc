"""Signals that ask a training to stop: it first keeps what it has."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

ASKED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A training that was asked to stop has kept what it had."""


class Interrupts:
    """What was asked for while signals are held."""

    def __init__(self, handlers: dict[signal.Signals, Any]) -> None:
        """`handlers` are those of before, which have the last word."""
        self.received: signal.Signals | None = None
        self.stopped = False
        self._handlers = handlers

    def stop(self) -> None:
        """Let all trainings keep what they have and end, without a signal."""
        self.stopped = True

    @property
    def reason(self) -> str | None:
        """Why a training has to stop; None where it need not."""
        if self.received is not None:
            return self.received.name
        return "stopped with the others" if self.stopped else None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Take note of the first signal; at the second one nothing more is kept."""
        if self.received is not None:
            self.deliver()
        self.received = signal.Signals(number)
        said = "stops as soon as the work in hand is kept; again: without that"
        line = f"{self.received.name}: {said}\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())

    def deliver(self) -> None:
        """What the signal would have done, now; nothing if there was none.

        Raises:
            KeyboardInterrupt: after SIGINT, by Python's own handler.
            SystemExit: after SIGTERM where nothing else handles it, with the status that shells
                give such an end.
        """
        number, self.received = self.received, None
        if number is None:
            return
        for name, handler in self._handlers.items():
            signal.signal(name, handler)
        if self._handlers[number] is signal.SIG_DFL:
            raise SystemExit(128 + number)
        signal.raise_signal(number)


@contextlib.contextmanager
def held() -> Iterator[Interrupts]:
    """Signals wait until the body delivers them, or ends; only the main thread can hold them.

    Those that were ignored before still are.
    """
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in ASKED}
        handlers = {n: h for n, h in found.items() if h not in (signal.SIG_IGN, None)}
    interrupts = Interrupts(handlers)
    for number in handlers:
        signal.signal(number, interrupts.receive)
    try:
        yield interrupts
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        interrupts.deliver()
