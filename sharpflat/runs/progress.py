"""Progress: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, markup=False)


class Task:
    """One piece of long work of `total` steps."""

    def __init__(self, name: str, total: int, bars: Progress | None) -> None:
        """With `bars`, a bar of its own; without, a line now and one at the end."""
        self.name, self.total, self._bars = name, total, bars
        self._began, self._spoken, self._done = time.monotonic(), time.monotonic(), 0.0
        self._bar = bars.add_task(name, total=total) if bars else None
        self._note = ""

    def update(self, done: float, note: str | None = None) -> None:
        """`done` of `total` steps; plain lines half a minute apart; no note keeps the last."""
        self._done = done
        note = self._note = self._note if note is None else note
        if self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, completed=done, description=f"{self.name}  {note}")
        elif time.monotonic() - self._spoken > 30:
            self._say()

    def note(self, note: str) -> None:
        """What is at work from now on; a plain line at once."""
        self.update(self._done, note)
        if self._bars is None:
            self._say()

    def _say(self) -> None:
        self._spoken = time.monotonic()
        line = f"{self.name}: {int(self._done)} of {self.total}  {self._note}"
        console.print(line.rstrip(), soft_wrap=True)

    def finish(self, note: str = "") -> None:
        """The work is done."""
        seconds = time.monotonic() - self._began
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
        console.print(f"{self.name}: {note or 'done'} ({seconds:.1f} s)", soft_wrap=True)


class Reporter:
    """Makes tasks; silent unless it is shown."""

    def __init__(self, bars: Progress | None, quiet: bool) -> None:
        """`bars` where there is a terminal."""
        self._bars, self._quiet = bars, quiet

    def task(self, name: str, total: int) -> Task:
        """A task of `total` steps."""
        return _SilentTask(name, total) if self._quiet else Task(name, total, self._bars)

    def say(self, line: str) -> None:
        """One plain line."""
        if not self._quiet:
            console.print(line, soft_wrap=True)


class _SilentTask(Task):
    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self._done = name, total, 0.0

    def update(self, done: float, note: str | None = None) -> None:
        pass

    def note(self, note: str) -> None:
        pass

    def finish(self, note: str = "") -> None:
        pass


SILENT = Reporter(None, quiet=True)


@contextlib.contextmanager
def shown() -> Iterator[Reporter]:
    """A reporter that shows: bars on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield Reporter(None, quiet=False)
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
        yield Reporter(bars, quiet=False)
