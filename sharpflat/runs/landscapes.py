"""The landscapes of a study, computed between its runs and kept in its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpflat.config import Config, Line
from sharpflat.landscape import line
from sharpflat.registry import InputError, closest
from sharpflat.runs import files
from sharpflat.runs.progress import Reporter
from sharpflat.runs.record import Run


def compute_landscapes(
    config: Config, runs: Sequence[Run], folder: Path, reporter: Reporter
) -> None:
    """Compute each landscape of `config` that is not there yet: `<digest>.npz` and `.json`."""
    for landscape in config.landscape:
        pair = endpoints(landscape.line, runs)
        if pair is None:
            reporter.say("line: needs two finished runs of that seed; left out")
            continue
        settings = _settings(landscape.line, *pair)
        text = json.dumps(settings, sort_keys=True).encode()
        path = folder / f"{hashlib.sha256(text).hexdigest()[:16]}.npz"
        if not path.with_suffix(".json").exists():
            arrays = _line(landscape.line, *pair, reporter)
            files.make_folder(folder)
            with files.replacing(path) as temporary:
                np.savez(temporary, **arrays)  # type: ignore[arg-type]
            files.write_json(path.with_suffix(".json"), settings)


def load_landscapes(folder: Path) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Settings and arrays of every landscape in `folder`."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
            found.append((files.read_json(path), dict(file)))
    return found


def endpoints(settings: Line, runs: Sequence[Run]) -> tuple[Run, Run] | None:
    """The finished runs of one seed with the smallest and the largest value of the swept key."""
    if runs and settings.key not in runs[0].swept:
        hint = closest(settings.key, runs[0].swept)
        raise InputError(f"landscape.line.key: {settings.key!r} is not swept{hint}")
    finished = [run for run in runs if run.finished and run.seed == settings.seed]
    finished.sort(key=lambda run: run.swept[settings.key])
    if not finished or finished[0].swept[settings.key] == finished[-1].swept[settings.key]:
        return None
    return finished[0], finished[-1]


def _settings(settings: Line, start: Run, end: Run) -> dict[str, Any]:
    return {
        "kind": "line",
        **settings.model_dump(),
        "start": start.swept[settings.key],
        "end": end.swept[settings.key],
        "runs": [start.id, end.id],
        "data_digest": start.provenance["data_digest"],
    }


def _line(settings: Line, start: Run, end: Run, reporter: Reporter) -> dict[str, np.ndarray]:
    task = reporter.task("line", settings.points)
    train, test = (
        start.objective(split, settings.batch_norm, settings.chunk) for split in ("train", "test")
    )
    first, last = settings.alpha
    alphas = np.linspace(first, last, settings.points).tolist()
    arrays = line(train, test, start.params, end.params, alphas, task.update)
    task.finish()
    return arrays
