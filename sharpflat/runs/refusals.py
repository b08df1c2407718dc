"""What is refused of single runs while the others go on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from sharpflat.validation import InputError


class Refusals:
    """Runs whose record is damaged, or that another process works on: told at the end."""

    def __init__(self) -> None:
        """None yet."""
        self.errors: list[InputError] = []

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """What is refused inside is kept, and what follows goes on."""
        try:
            yield
        except InputError as error:
            self.errors.append(error)

    def tell(self, say: Callable[[str], None]) -> None:
        """Say all but the first.

        Raises:
            InputError: the first.
        """
        for another in self.errors[1:]:
            say(str(another))
        if self.errors:
            raise self.errors[0]
