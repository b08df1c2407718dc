"""A study's figures, drawn from its records and written into its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sharpflat import plots
from sharpflat.config import Spec, resolve
from sharpflat.registry import figures
from sharpflat.report.state import readable
from sharpflat.runs import Run, load_runs, study_folder
from sharpflat.runs.landscapes import load_landscapes
from sharpflat.runs.record import DAMAGED
from sharpflat.runs.table import measurement_columns, read_table, swept_keys


def study_records(
    root: str | Path, study: str, say: Callable[[str], None] = print
) -> plots.StudyRecords:
    """Everything the figures of a study are drawn from, as plain data; `say` is told of damage."""
    folder = study_folder(root, study)
    rows = read_table(folder / "table.csv")
    pairs = zip(load_runs(root, study), rows, strict=True)
    runs = [_record(run, row) for run, row in pairs]
    landscapes = [
        plots.LandscapeRecord(settings["kind"], settings, arrays)
        for settings, arrays in load_landscapes(folder / "landscapes", say)
    ]
    return plots.StudyRecords(
        study, swept_keys(rows), runs, landscapes, measurement_columns(rows), note(root, study)
    )


def _record(run: Run, row: dict[str, Any]) -> plots.RunRecord:
    """Without what nobody can read, where it is damaged."""
    whole = row["status"] != DAMAGED
    history = (whole and readable(run, "history")) or []
    tracked = (whole and readable(run, "tracked")) or []
    return plots.RunRecord(run.id, row["seed"], row["status"], run.swept, history, row, tracked)


def note(root: str | Path, study: str) -> str:
    """What results on the study's data must carry, such as that they are lossy; or nothing."""
    runs = [run for run in load_runs(root, study) if run.damage is None]
    begun = [run for run in runs if (run.folder / "provenance.json").exists()]
    notes = dict.fromkeys(run.provenance.get("data_note", "") for run in begun)
    return "; ".join(filter(None, notes))


def draw(
    root: str | Path,
    study: str,
    asked: Sequence[Spec] | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Draw the figures asked for, or all that the study has what is needed for.

    A figure that raises leaves the others in place; `say` is told.

    Returns:
        The PNG files; beside each lie its PDF, its numbers (CSV) and its caption.

    Raises:
        InputError: no such study, figure or argument.
    """
    specs: Sequence[Spec] = list(figures) if asked is None else asked
    resolved = [resolve(figures, spec, "figures") for spec in specs]
    records = study_records(root, study, say)
    folder = study_folder(root, study) / "figures"
    drawn = []
    for name, arguments in resolved:
        try:
            path = _drawn(records, folder, name, arguments)
        except Exception as error:
            say(f"figure {name}: {type(error).__name__}: {error}")
        else:
            drawn += [path] if path is not None else []
    return drawn


def _drawn(
    records: plots.StudyRecords, folder: Path, name: str, arguments: dict[str, Any]
) -> Path | None:
    plot = figures[name](records, **arguments)
    if plot is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    plots.save(plot, folder, name)
    return folder / f"{name}.png"
