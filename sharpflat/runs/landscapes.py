"""The landscapes of a study, computed between its runs and kept in its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sharpflat.config import Config, Line, RunConfig
from sharpflat.landscape import line
from sharpflat.runs import files
from sharpflat.runs.build import check_chunk
from sharpflat.runs.progress import Reporter
from sharpflat.runs.record import Run
from sharpflat.runs.refusals import Refusals
from sharpflat.runs.snapshots import load_arrays
from sharpflat.validation import InputError, closest


def compute_landscapes(
    config: Config, runs: Sequence[Run], folder: Path, reporter: Reporter
) -> None:
    """Compute each landscape of `config` that is not there yet: `<digest>.npz` and `.json`.

    `index.json` lists those of this config: earlier ones stay on disk and out of the figures.
    """
    index = []
    for landscape in config.landscape:
        pair = endpoints(landscape.line, runs)
        if pair is None:
            reporter.say("line: needs two finished runs of that seed; left out")
            continue
        settings = _settings(landscape.line, *pair)
        text = json.dumps(settings, sort_keys=True).encode()
        path = folder / f"{hashlib.sha256(text).hexdigest()[:16]}.npz"
        index.append(path.stem)
        if not (path.exists() and path.with_suffix(".json").exists()):
            arrays = _line(landscape.line, *pair, reporter)
            files.make_folder(folder)
            with files.replacing(path) as temporary:
                np.savez(temporary, **arrays)  # type: ignore[arg-type]
            files.write_json(path.with_suffix(".json"), settings)
    if index or folder.exists():
        files.write_json(files.make_folder(folder) / "index.json", index)


def load_landscapes(
    folder: Path, say: Callable[[str], None]
) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Settings and arrays of those that the study's config asks for; `say` is told of damage."""
    damaged, found, names = Refusals(say), [], list[str]()
    with damaged.kept():
        names = _listed(folder / "index.json")
    for name in names:
        with damaged.kept():
            arrays = load_arrays(folder / f"{name}.npz")
            found.append((files.read_fields(folder / f"{name}.json", "kind"), arrays))
    for damage in damaged.lines:
        say(f"{damage}; or move {folder} away, and `sharpflat run` computes it anew")
    return found


def _listed(index: Path) -> list[str]:
    found = files.read_json(index) if index.exists() else []
    if not isinstance(found, list):
        raise InputError(f"{index}: is damaged: expected a list, got {found!r}")
    return found


def endpoints(settings: Line, runs: Sequence[Run]) -> tuple[Run, Run] | None:
    """The finished runs of one seed with the smallest and the largest value of the swept key.

    None where the two have the same value, or are of different networks or data.
    """
    ends = _extremes(settings, [run for run in runs if run.finished and run.seed == settings.seed])
    if ends is None or _differing(ends[0].config, ends[1].config):
        return None
    return ends


def check_landscapes(config: Config, cells: Sequence[RunConfig]) -> None:
    """Refuse, before any work, a line that cannot be drawn between this study's runs.

    Raises:
        InputError: a key that is not swept, has no order, or whose ends are of different networks
            or data; a chunk that `batch` does not allow.
    """
    for landscape in config.landscape:
        line = landscape.line
        if line.key not in config.swept_keys:
            hint = closest(line.key, config.swept_keys)
            raise InputError(f"landscape.line.key: {line.key!r} is not swept{hint}")
        for key in line.where:
            if key not in config.swept_keys:
                hint = closest(key, config.swept_keys)
                raise InputError(f"landscape.line.where: {key!r} is not swept{hint}")
        ends = _extremes(line, [cell for cell in cells if cell.seed == line.seed])
        if ends is None:
            continue
        part = _differing(ends[0].resolved(), ends[1].resolved())
        if part:
            raise InputError(
                f"landscape.line.key: the runs with the smallest and the largest {line.key} "
                f"differ in {part!r}, so that there is no line between them"
            )
        for end in ends:
            for split in ("train", "test"):
                where = f"landscape.line.chunk: {line.chunk}"
                check_chunk(end.resolved(), split, None, line.chunk, line.batch_norm, where)


T = TypeVar("T", Run, RunConfig)


def _extremes(settings: Line, runs: Sequence[T]) -> tuple[T, T] | None:
    """Those with the smallest and the largest value of the key, if it has two values.

    Raises:
        InputError: the values have no order, or several runs have one of the two.
    """
    runs = [run for run in runs if settings.where.items() <= run.swept.items()]
    values = [run.swept[settings.key] for run in runs]
    try:
        ordered = sorted(range(len(runs)), key=values.__getitem__)
    except TypeError:
        raise InputError(
            f"landscape.line.key: the values of {settings.key!r} have no order"
        ) from None
    if not runs or values[ordered[0]] == values[ordered[-1]]:
        return None
    for end in (values[ordered[0]], values[ordered[-1]]):
        if values.count(end) > 1:
            other = [key for key in runs[0].swept if key != settings.key]
            raise InputError(
                f"landscape.line.where: {values.count(end)} runs of seed {settings.seed} have "
                f"{settings.key}={end}; pick one of each, as {{{other[0]}: ...}}"
            )
    return runs[ordered[0]], runs[ordered[-1]]


def _differing(start: dict[str, Any], end: dict[str, Any]) -> str | None:
    return next((part for part in ("dataset", "model") if start[part] != end[part]), None)


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
