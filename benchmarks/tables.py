"""Markdown tables of the scripts that compare with peers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def header(*names: str) -> None:
    row(*names)
    print("|" + "---|" * len(names), flush=True)


def row(*cells: Any) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def spread(values: Sequence[float]) -> str:
    """Median (lowest–highest)."""
    low, middle, high = (f"{f(values):.4g}" for f in (min, statistics.median, max))
    return middle if low == high else f"{middle} ({low}–{high})"


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Ratio of the medians (range over neighbouring repeats)."""
    pairs = [a / b for a, b in zip(theirs, ours, strict=True)]
    of_medians = statistics.median(theirs) / statistics.median(ours)
    return f"{of_medians:.2f} ({min(pairs):.2f}–{max(pairs):.2f})"
