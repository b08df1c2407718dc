"""How far a study has come: what is trained, what is measured, and which records are damaged."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sharpflat.config import Config, read_yaml
from sharpflat.runs.files import read_json
from sharpflat.runs.record import DAMAGED, Run
from sharpflat.runs.requests import Request, requests
from sharpflat.runs.table import column_names, measurement_columns
from sharpflat.validation import InputError, closest, validate

BEGUN = ("runs.json", "table.csv")
ENDED = {"finished", "diverged", "failed"}


def begun_studies(root: str | Path) -> dict[str, Path]:
    """The folders of all studies that were begun, by name, whether they have a table or not."""
    folders = sorted(Path(root).glob("studies/*"))
    return {path.name: path for path in folders if any((path / name).exists() for name in BEGUN)}


def begun_study(root: str | Path, study: str) -> Path:
    """The folder of one study.

    Raises:
        InputError: there is none; the closest name.
    """
    known = begun_studies(root)
    if study not in known:
        hint = closest(study, known) if known else f"; {root} holds no studies yet"
        raise InputError(f"study: unknown {study!r}{hint}")
    return known[study]


def state_without_table(folder: Path) -> list[str]:
    """What there is of a study that has no table yet."""
    runs, damaged = _runs(folder, [])
    statuses = _statuses(runs)
    measured = sum(bool(readable(run, "measurements")) for run in runs)
    return [
        f"study {folder.name}: begun, {_counts(statuses)}, {measured or 'none'} measured so far",
        *damaged,
        *damages(runs),
    ]


def state(folder: Path, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a study's table does not hold yet, and its damaged records; nothing if all is well."""
    runs, damaged = _runs(folder, [row["run"] for row in rows])
    statuses = _statuses(runs)
    trained = [] if set(statuses) <= ENDED else [_counts(statuses)]
    return [*trained, *_unmeasured(folder, rows), *damaged, *damages(runs)]


def _runs(folder: Path, tabled: Iterable[str]) -> tuple[list[Run], list[str]]:
    """The runs the study consists of, as far as `runs.json` can tell, and what is wrong with it."""
    path, ids = folder / "runs.json", list(tabled)
    damaged = []
    try:
        found = read_json(path) if path.exists() else ids
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise InputError(f"{path}: is damaged: expected a list of run ids, got {found!r}")
        ids = found
    except InputError as error:
        damaged.append(str(error))
    return [Run(folder.parents[1] / "runs" / name) for name in ids], damaged


def _statuses(runs: Iterable[Run]) -> collections.Counter[str]:
    return collections.Counter(map(status, runs))


def status(run: Run) -> str:
    """What has become of a run, in a word."""
    if not run.exists:
        return "not begun"
    return DAMAGED if run.damage is not None else run.state


def fate(run: Run) -> str:
    """Its status, and why where its training came to no good end."""
    word = status(run)
    reason = run.status["reason"] if word in ("diverged", "failed") else None
    return f"{word}: {reason}" if reason else word


def _counts(statuses: collections.Counter[str]) -> str:
    others = [f"{n} {name}" for name, n in sorted(statuses.items()) if name != "finished"]
    beside = f" ({', '.join(others)})" if others else ""
    return f"{statuses['finished']} of {statuses.total()} runs trained{beside}"


def _unmeasured(folder: Path, rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for the columns that as many of the trained runs hold, where some lack them."""
    trained = [row for row in rows if row["status"] == "finished"]
    columns, asked = measurement_columns(rows), _asked(folder)
    begun = any(_measured(row, name) for row in trained for name in columns)
    lacking: dict[tuple[int, int], list[str]] = {}
    for name in columns:
        request = asked.get(name)
        wanted = [row for row in trained if request is None or _of_its_seeds(request, row)]
        held = sum(_measured(row, name) for row in wanted)
        # What no run holds after `metrics: all` may be what none of them can give.
        left_out = begun and not held and request is not None and request.if_possible
        if held < len(wanted) and not left_out:
            lacking.setdefault((held, len(wanted)), []).append(name)
    return [
        f"measured on {held} of {of} trained runs so far: {', '.join(names)}"
        for (held, of), names in lacking.items()
    ]


def _measured(row: dict[str, Any], name: str) -> bool:
    return row[f"{name}_converged"] is not None


def _of_its_seeds(request: Request, row: dict[str, Any]) -> bool:
    return request.seeds is None or row["seed"] in request.seeds


def _asked(folder: Path) -> dict[str, Request]:
    """Each column's request; none where the config names what is not registered now."""
    try:
        config = validate(Config, read_yaml(folder / "config.yaml"), "")
        assert isinstance(config, Config)
        asked = requests(config)
    except InputError:
        return {}
    return dict(zip(column_names(asked), asked, strict=True))


PARTS = ("damage", "history", "tracked", "measurements")


def damages(runs: Iterable[Run]) -> list[str]:
    """A line for each part of their records that nobody can read."""
    found = [_read(run, part) for run in runs for part in PARTS]
    return [str(content) for content in found if isinstance(content, InputError)]


def readable(run: Run, part: str) -> Any:
    """A part of a run's record; None where it is damaged."""
    content = _read(run, part)
    return None if isinstance(content, InputError) else content


def _read(run: Run, part: str) -> Any:
    """A part of a run's record, or what is wrong with it."""
    try:
        return getattr(run, part)
    except InputError as error:
        return error
