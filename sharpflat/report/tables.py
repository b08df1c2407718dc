"""A study's table for the terminal: gap and sharpness first, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sharpflat import statistics
from sharpflat.config import read_yaml
from sharpflat.registry import metrics
from sharpflat.report.figures import note
from sharpflat.runs import study_folder
from sharpflat.runs.summary import Cell, Setting, large_batch_gap, summarise
from sharpflat.runs.table import measurement_columns, read_table
from sharpflat.statistics import Interval

PERCENT = ("generalization_gap", "test_accuracy", "train_accuracy")


def study_table(root: str | Path, study: str) -> Group:
    """What `sharpflat show` prints.

    Raises:
        InputError: no such study.
    """
    rows = read_table(study_folder(root, study) / "table.csv")
    settings = summarise(rows)
    table = Table(title=study, title_justify="left", header_style="bold")
    table.add_column("quantity", overflow="fold")
    for setting in settings:
        text = ", ".join(f"{k.rpartition('.')[2]}={v}" for k, v in setting.swept.items())
        table.add_column(f"{text}\n({len(setting.seeds)} seeds)", justify="right")
    compared = len(settings) == 2
    if compared:
        table.add_column("intervals")
    for name in _quantities(settings):
        cells = [setting.cells.get(name) for setting in settings]
        label = f"{name} (%)" if name in PERCENT else name
        shown = [_cell_text(name, cell) for cell in cells]
        table.add_row(label, *shown, *([_compared(cells)] if compared else []))
    data = note(root, study)
    notes = [*_notes(rows, settings), *_asked(root, study), *([f"data: {data}"] if data else [])]
    return Group(table, *[Text(line) for line in notes])


def _quantities(settings: Sequence[Setting]) -> list[str]:
    return list(dict.fromkeys(name for setting in settings for name in setting.cells))


def _cell_text(name: str, cell: Cell | None) -> str:
    if cell is None:
        return ""
    factor = 100 if name in PERCENT else 1
    mean, sd, low, high = (factor * number for number in cell.interval[:4])
    text = f"{mean:.4g} ± {sd:.2g}" if len(cell.values) > 1 else f"{mean:.4g}"
    lines = [text]
    if len(cell.values) > 1:
        lines.append(f"[{low:.4g}, {high:.4g}]")
    if cell.converged is not None:
        lines.append(f"converged {cell.converged}/{len(cell.values)}, bn {cell.batch_norm}")
    return "\n".join(lines)


def _compared(cells: Sequence[Cell | None]) -> str:
    if any(cell is None or len(cell.values) < 2 for cell in cells):
        return ""
    first, second = (cell.interval for cell in cells if cell is not None)
    return "overlap" if statistics.overlap(first, second) else "disjoint"


def _notes(rows: Sequence[dict[str, Any]], settings: Sequence[Setting]) -> list[str]:
    notes = ["mean ± standard deviation over seeds, [95 % Student-t interval of the mean]"]
    gap = large_batch_gap(rows)
    if gap is not None:
        notes.append(f"large_batch_gap, paired by seed: {_points(gap)}")
    if measurement_columns(rows):
        notes.append("converged: how many met their own criterion; bn: batch-norm policy")
        notes += _without_number(rows)
    for row in rows:
        if row["status"] != "finished":
            notes.append(f"run {row['run']} (seed {row['seed']}): {row['status']}")
    return notes


def _without_number(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What was measured and gave no number; `run` and the records say why."""
    lines = []
    for name in measurement_columns(rows):
        lost = [row for row in rows if row[name] is None and row[f"{name}_converged"] is not None]
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
    labels = [metrics[name].label(args) if name in metrics else name for name, args in given]
    return "; ".join([on, *(label for label in labels if "[" in label)])


def _points(gap: Interval) -> str:
    mean, low, high = (100 * number for number in (gap.mean, gap.low, gap.high))
    return f"{mean:.2f} points of test accuracy [{low:.2f}, {high:.2f}]"
