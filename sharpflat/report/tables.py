"""A study's table for the terminal: gap and sharpness first, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from sharpflat.config import read_yaml
from sharpflat.registry import metrics
from sharpflat.report.figures import note
from sharpflat.report.layout import arranged
from sharpflat.report.names import entry_text, setting_text
from sharpflat.report.state import begun_study, fate, state, state_without_table
from sharpflat.runs import Run, study_folder
from sharpflat.runs.record import DAMAGED
from sharpflat.runs.summary import (
    Setting,
    large_batch_gap,
    quantities,
    summarise,
    without_number,
)
from sharpflat.runs.table import measurement_columns, read_table
from sharpflat.statistics import Interval


def study_table(root: str | Path, study: str, width: int = 110) -> Group:
    """What `sharpflat show` prints: a column a setting, or a row where columns do not fit.

    Args:
        root: folder of all results.
        study: its name.
        width: characters a line.

    Raises:
        InputError: no such study, or its table is damaged.
    """
    folder = begun_study(root, study)
    if not (folder / "table.csv").exists():
        return Group(*map(Text, state_without_table(folder)))
    rows = read_table(folder / "table.csv")
    settings = summarise(rows)
    shown = [
        name for name in quantities(rows)
        if any(name in setting.cells or name in setting.lost for setting in settings)
    ]  # fmt: skip
    table = arranged(study, settings, shown, width)
    data = note(root, study)
    notes = [
        *_notes(rows, settings, Path(root) / "runs"),
        *_asked(root, study),
        *([f"data: {data}"] if data else []),
    ]
    return Group(table, *map(Text, [*notes, *state(folder, rows), *_run_ids(rows, settings)]))


def _notes(rows: Sequence[dict[str, Any]], settings: Sequence[Setting], runs: Path) -> list[str]:
    notes = [
        "mean ± standard deviation over seeds, [95 % Student-t interval of the mean]; intervals: "
        "row by row, not corrected for how many there are"
    ]
    gap = large_batch_gap(rows)
    if gap is not None:
        notes.append(f"large_batch_gap, paired by seed: {_points(gap)}")
    if measurement_columns(rows):
        notes.append(
            "converged: how many met their own criterion; an interval covers the seeds, not what a "
            "method that did not fell short by; bn: batch-norm policy"
        )
        notes += _without_number(rows)
    for row in rows:
        if row["status"] != "finished":
            run = Run(runs / row["run"])
            state = DAMAGED if row["status"] == DAMAGED else fate(run)
            notes.append(f"run {run.id} (seed {row['seed']}): {state}")
    return notes


def _without_number(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What was measured and gave no number; `run` and the records say why."""
    lines = []
    for name in measurement_columns(rows):
        lost = [row for row in rows if without_number(row, name)]
        if lost:
            where = ", ".join(row["run"][:6] for row in lost)
            lines.append(f"{name}: failed, or not finite, in {len(lost)} runs ({where})")
    return lines


def _asked(root: str | Path, study: str) -> list[str]:
    """What was measured on, and with which arguments that are not the defaults."""
    path = study_folder(root, study) / "config.yaml"
    blocks = read_yaml(path).get("measure") if path.exists() else None
    blocks = [blocks] if isinstance(blocks, dict) else blocks or []
    return [_block(block) for block in blocks if block.get("metrics")]


def _block(block: dict[str, Any]) -> str:
    policies = ", ".join(block["batch_norm"])
    on = f"measured on {block['examples'] or 'all'} {block['split']} examples, bn {policies}, "
    on += f"chunk {block['chunk']}"
    if block["seeds"] is not None:
        on += f", seeds {', '.join(map(str, block['seeds']))}"
    asked = [spec for spec in block["metrics"] if isinstance(spec, dict)]
    given = [(name, arguments or {}) for spec in asked for name, arguments in spec.items()]
    labels = [entry_text(metrics, name, arguments) for name, arguments in given]
    told = ", ".join(label for label in labels if "[" in label)
    return f"{on}; with {told}" if told else on


def _run_ids(rows: Sequence[dict[str, Any]], settings: Sequence[Setting]) -> list[str]:
    rows = [row for row in rows if row["status"] == "finished"]
    lines = ["runs in the order of their seeds, as `sharpflat audit RUN` takes them:"]
    ids = [row["run"] for row in rows]
    length = next(n for n in range(6, 99) if len({name[:n] for name in ids}) == len(set(ids)))
    for setting in settings:
        own = [row for row in rows if setting.swept.items() <= row.items()]
        ids = [row["run"][:length] for row in sorted(own, key=lambda row: row["seed"])]
        if ids:
            lines.append(f"  {setting_text(setting.swept)}: {', '.join(ids)}")
    return lines if rows else []


def _points(gap: Interval) -> str:
    mean, low, high = (100 * number for number in (gap.mean, gap.low, gap.high))
    interval = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else ", of one seed"
    return f"{mean:.2f} points of test accuracy{interval}"
