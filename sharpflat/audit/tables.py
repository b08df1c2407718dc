"""Tables as plain text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

Cells = Sequence[Sequence[str]]


def text(cells: Cells, notes: Sequence[str]) -> str:
    """The cells in columns, the first row their head, and the notes a line each."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:], "", *notes])


def markdown(cells: Cells, notes: Sequence[str]) -> str:
    """The same for a page of documentation."""
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    rule = "|" + "---|" * len(cells[0])
    return "\n".join([lines[0], rule, *lines[1:], "", *(f"- {note}" for note in notes), ""])
