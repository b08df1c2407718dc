"""The table of a study: one row a run, as `table.csv` holds it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharpflat.runs import files
from sharpflat.runs.record import DAMAGED, Run, measurement_key
from sharpflat.runs.requests import Request
from sharpflat.validation import InputError

FINALS = ("train_accuracy", "test_accuracy", "train_loss", "test_loss", "generalization_gap")
SUFFIXES = ("", "_standard_error", "_converged", "_batch_norm")
ANEW = "`sharpflat measure` writes it anew from the runs' records"


def column_names(asked: Sequence[Request]) -> list[str]:
    """`metric[argument=value,...]` for each request: the arguments by which it differs."""
    names = []
    for request in asked:
        others = [r.variant() for r in asked if r.metric == request.metric]
        variant = request.variant()
        differing = [key for key in variant if any(o[key] != variant[key] for o in others)]
        inside = ",".join(f"{key}={_text(variant[key]) or 'null'}" for key in differing)
        names.append(f"{request.metric}[{inside}]" if inside else request.metric)
    return names


def table_rows(
    runs: Sequence[Run], asked: Sequence[Request]
) -> tuple[list[dict[str, Any]], InputError | None]:
    """A row a run; what is not there, or not finite, is None.

    Where a record is damaged its row has the status `damaged` and no numbers; where measurements
    cannot be read, none of them. What is wrong with the first comes with the rows.
    """
    named = list(zip(column_names(asked), asked, strict=True))
    rows, errors = [], []
    for run in runs:
        row = _trained(run, DAMAGED) | dict.fromkeys(FINALS)
        measured = dict.fromkeys(f"{name}{suffix}" for name, _ in named for suffix in SUFFIXES)
        try:
            if (damage := run.damage) is not None:
                raise damage
            row = _trained(run, run.status["status"]) | _finals(run)
            measured = _measured(run, named)
        except InputError as error:
            errors.append(error)
        rows.append(row | measured)
    return rows, errors[0] if errors else None


def _trained(run: Run, status: str) -> dict[str, Any]:
    return {"run": run.id, "seed": run.seed, "status": status, **run.swept}


def _measured(run: Run, named: Sequence[tuple[str, Request]]) -> dict[str, Any]:
    row = dict[str, Any]()
    done = {measurement_key(line): line for line in run.measurements}
    for name, request in named:
        known = run.finished and request.wants(run)
        line = done.get(measurement_key(request.row(run)), {}) if known else {}
        row[name] = line.get("value")
        row[f"{name}_standard_error"] = line.get("standard_error")
        row[f"{name}_converged"] = line.get("converged")
        row[f"{name}_batch_norm"] = line.get("batch_norm")
    return row


def _finals(run: Run) -> dict[str, float | None]:
    """What the last epoch's evaluation over all of both splits gave."""
    last = run.last_epoch if run.finished else {}
    row: dict[str, float | None] = {
        "train_accuracy": last.get("full_train_accuracy"),
        "test_accuracy": last.get("test_accuracy"),
        "train_loss": last.get("full_train_loss"),
        "test_loss": last.get("test_loss"),
    }
    train, test = row["train_accuracy"], row["test_accuracy"]
    row["generalization_gap"] = None if train is None or test is None else train - test
    return row


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write `table.csv`; what is missing is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    exact = swept_keys(rows)
    for row in rows:
        writer.writerow({key: _text(value, key in exact) for key, value in row.items()})
    files.write_text(path, text.getvalue())


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a `table.csv`, numbers as numbers and empty fields as None.

    Raises:
        InputError: the file is not there, or damaged.
    """
    if not path.exists():
        raise InputError(f"{path}: no such table")
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        header, *lines = list(csv.reader(file)) or [[]]
    if not lines or not {"run", "seed", "status", *FINALS} <= set(header):
        raise InputError(f"{path}: is damaged: it is cut off, or no study's table; {ANEW}")
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            found = f"row {number} has {len(line)} fields, not {len(header)}"
            raise InputError(f"{path}: is damaged: {found}; {ANEW}")
    return [
        {key: text if key in ("run", "status") else _value(text) for key, text in pairs}
        for pairs in (zip(header, line, strict=True) for line in lines)
    ]


def swept_keys(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The swept keys among a table's columns."""
    names = list(rows[0])
    return names[names.index("status") + 1 : names.index("train_accuracy")]


def measurement_columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The columns that hold a measurement's value."""
    return [name for name in rows[0] if f"{name}_converged" in rows[0]]


def _text(value: Any, exact: bool = False) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value)
    short = f"{value:.9g}" if isinstance(value, float) else str(value)
    return repr(value) if exact and isinstance(value, float) and float(short) != value else short


def _value(text: str) -> Any:
    if text == "":
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
