"""What is refused of single runs while the others go on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType

from sharpflat.validation import InputError


class Refused(InputError):
    """Of some runs, whose record is damaged or that are at work elsewhere: the others are done."""


class Refusals:
    """A block in which runs are refused alone; its end raises what was, or says it if it fails."""

    def __init__(self, say: Callable[[str], None], kind: type[InputError] = InputError) -> None:
        """What is of `kind` is refused of one run; `say` is told of all but the first."""
        self.say, self.kind = say, kind
        self.lines: list[str] = []

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """What is refused inside is kept, and what follows goes on."""
        try:
            yield
        except self.kind as error:
            self.lines.append(str(error))

    def __enter__(self) -> Refusals:
        """The block begins."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Tell, once each.

        Raises:
            Refused: the first, where nothing else was raised.
        """
        lines = list(dict.fromkeys(self.lines))
        for line in lines if error is not None else lines[1:]:
            self.say(line)
        if lines and error is None:
            raise Refused(lines[0])
