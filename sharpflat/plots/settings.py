"""A study's settings: which swept keys tell runs apart, and what they are called in a figure."""

from __future__ import annotations

import collections
import json
from typing import Any, NamedTuple

from sharpflat.plots.base import RunRecord, StudyRecords

BATCH_SIZE = "train.batch_size"


class Setting(NamedTuple):
    """One setting of the sweep and its finished runs, one a seed.

    Attributes:
        batch_size: its batch size.
        others: the swept keys that tell settings of equal batch size apart, with their values.
        runs: the finished runs.
    """

    batch_size: int
    others: dict[str, Any]
    runs: list[RunRecord]

    @property
    def label(self) -> str:
        """`batch size 256, learning rate 0.1`."""
        return ", ".join([f"batch size {self.batch_size}", *map(named, self.others.items())])

    @property
    def series(self) -> str:
        """What it is called beside settings of other batch sizes; empty if nothing else varies."""
        return ", ".join(map(named, self.others.items()))

    @property
    def cells(self) -> dict[str, Any]:
        """Its columns of a figure's rows."""
        others = {key: _plain(value) for key, value in self.others.items()}
        return {BATCH_SIZE: self.batch_size, **others}


def settings(study: StudyRecords) -> list[Setting]:
    """The study's settings that have finished runs, smallest batch first.

    A swept key that follows from the batch size (its epochs, say) tells nothing apart: left out.
    """
    keys = _independent_keys(study)
    groups: dict[str, list[RunRecord]] = collections.defaultdict(list)
    for run in study.runs:
        if run.status == "finished":
            groups[_text([run.swept.get(key) for key in (BATCH_SIZE, *keys)])].append(run)
    found = [
        Setting(runs[0].swept[BATCH_SIZE], {key: runs[0].swept.get(key) for key in keys}, runs)
        for runs in groups.values()
    ]
    return sorted(found, key=lambda s: (s.batch_size, *map(_order, s.others.values())))


def left_out(study: StudyRecords) -> str:
    """The sentence on runs that are not drawn because they did not finish; empty if all did."""
    counts = collections.Counter(run.status for run in study.runs if run.status != "finished")
    if not counts:
        return ""
    listed = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return f"Not drawn, of {len(study.runs)} runs: {listed}."


def seeds(counts: list[int]) -> str:
    """`5 seeds`, `1 seed` or `3 to 5 seeds`."""
    low, high = min(counts), max(counts)
    if low != high:
        return f"{low} to {high} seeds"
    return "1 seed" if low == 1 else f"{low} seeds"


def named(item: tuple[str, Any]) -> str:
    """A dotted key and its value in words: `learning rate 0.1`, `optimizer sgd`, `no swa`."""
    key, value = item
    parts = key.split(".")
    name = parts[-2] if parts[-1] == "name" and len(parts) > 1 else parts[-1]
    words = name.replace("_", " ")
    return f"no {words}" if value is None else f"{words} {_words(value)}"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        rest = (named(item) for item in value.items() if item[0] != "name")
        return " ".join([*([str(value["name"])] if "name" in value else []), *rest])
    return f"{value:g}" if isinstance(value, float) else str(value)


def _independent_keys(study: StudyRecords) -> list[str]:
    """Swept keys with several values at some batch size."""
    values: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    for run in study.runs:
        for key in study.swept:
            values[key, _text(run.swept[BATCH_SIZE])].add(_text(run.swept.get(key)))
    several = {key for (key, _), found in values.items() if len(found) > 1}
    return [key for key in study.swept if key in several]


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return not number, value if number else 0.0, "" if number else _text(value)


def _plain(value: Any) -> Any:
    return _text(value) if isinstance(value, dict | list | tuple) else value


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
