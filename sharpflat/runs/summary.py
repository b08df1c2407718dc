"""A table's rows compared: each setting over its seeds, and settings against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sharpflat import statistics
from sharpflat.runs.table import measurement_columns, swept_keys
from sharpflat.statistics import Interval


class Cell(NamedTuple):
    """One quantity of one setting, over its seeds.

    Attributes:
        interval: mean, standard deviation and 95 % Student-t interval over `values`.
        values: one a seed.
        converged: how many of them met their own criterion; None for what has none.
        batch_norm: the policy they were measured under; None for accuracies.
    """

    interval: Interval
    values: tuple[float, ...]
    converged: int | None = None
    batch_norm: str | None = None


class Setting(NamedTuple):
    """One cell of the sweep.

    Attributes:
        swept: its swept values.
        seeds: of its finished runs.
        cells: a `Cell` a quantity that at least one of them has.
        lost: in how many of them a measurement gave no number, where it did in any.
    """

    swept: dict[str, Any]
    seeds: tuple[int, ...]
    cells: dict[str, Cell]
    lost: dict[str, int]


def summarise(rows: Sequence[dict[str, Any]]) -> list[Setting]:
    """The settings of a table, with every quantity that was measured in a finished run."""
    keys, columns = swept_keys(rows), measurement_columns(rows)
    settings = []
    for swept in _distinct([{key: row[key] for key in keys} for row in rows]):
        group = [row for row in rows if {key: row[key] for key in keys} == swept]
        finished = [row for row in group if row["status"] == "finished"]
        cells = {name: _cell(finished, name) for name in quantities(rows)}
        known = {name: cell for name, cell in cells.items() if cell is not None}
        lost = {name: sum(without_number(row, name) for row in finished) for name in columns}
        lost = {name: count for name, count in lost.items() if count}
        settings.append(Setting(swept, tuple(row["seed"] for row in finished), known, lost))
    return settings


def quantities(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The quantities a table is summarised by, gap and measurements first."""
    accuracies = ("test_accuracy", "train_accuracy", "train_loss")
    return ["generalization_gap", *measurement_columns(rows), *accuracies]


def without_number(row: dict[str, Any], column: str) -> bool:
    """Whether a measurement was made and gave no number."""
    return row[column] is None and row[f"{column}_converged"] is not None


def paired(
    rows: Sequence[dict[str, Any]], column: str, first: dict[str, Any], second: dict[str, Any]
) -> tuple[list[float], list[float]]:
    """A column's values in two settings, for the seeds that both have."""
    by_seed = [
        {row["seed"]: row[column] for row in rows if swept.items() <= row.items()}
        for swept in (first, second)
    ]
    seeds = [
        seed for seed in by_seed[0]
        if by_seed[0][seed] is not None and by_seed[1].get(seed) is not None
    ]  # fmt: skip
    return [by_seed[0][seed] for seed in seeds], [by_seed[1][seed] for seed in seeds]


def large_batch_gap(rows: Sequence[dict[str, Any]]) -> Interval | None:
    """Test accuracy of the smallest batch − that of the largest, paired by seed.

    None unless each of the two has one setting and they share at least one seed.
    """
    settings = _distinct([{key: row[key] for key in swept_keys(rows)} for row in rows])
    sizes = sorted({setting["train.batch_size"] for setting in settings})
    extremes = (sizes[0], sizes[-1])
    ends = [[s for s in settings if s["train.batch_size"] == size] for size in extremes]
    if len(sizes) < 2 or any(len(end) != 1 for end in ends):
        return None
    small, large = paired(rows, "test_accuracy", ends[0][0], ends[1][0])
    return statistics.paired_difference(small, large) if small else None


def _cell(rows: Sequence[dict[str, Any]], name: str) -> Cell | None:
    present = [row for row in rows if row[name] is not None]
    if not present:
        return None
    values = tuple(float(row[name]) for row in present)
    flags = [row[f"{name}_converged"] for row in present if f"{name}_converged" in row]
    converged = sum(map(bool, flags)) if flags else None
    policies = {row.get(f"{name}_batch_norm") for row in present}
    policy = "/".join(sorted(str(p) for p in policies if p is not None)) or None
    return Cell(statistics.mean_interval(values), values, converged, policy)


def _distinct(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for i, item in enumerate(items) if item not in items[:i]]
