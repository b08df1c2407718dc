"""What is known of a study before any work: its runs, that they can be made, its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import yaml

from sharpflat import config as configs
from sharpflat.config import Config, RunConfig
from sharpflat.registry import metrics, trackers
from sharpflat.runs import files
from sharpflat.runs.build import build_recipe, check_fit, check_ghosts, shape_key
from sharpflat.runs.landscapes import check_landscapes
from sharpflat.runs.layout import check_layout
from sharpflat.runs.provenance import commit, training_digest
from sharpflat.runs.record import ENDED, Run
from sharpflat.runs.requests import check_measures, requests
from sharpflat.runs.setup import check_devices, keep_compiled_programs
from sharpflat.runs.tracking import check_tracks
from sharpflat.validation import InputError


def checked_cells(config: Config, root: str | Path) -> list[RunConfig]:
    """The runs, after every check that can be made without work."""
    check_devices()
    if jax.process_count() == 1:  # of several only the first writes
        files.check_folder(Path(root) / "runs")
    keep_compiled_programs()
    cells = configs.cells(config)
    # Those of one data set after each other: few are kept in memory.
    by_data = sorted(cells, key=lambda cell: repr(cell.dataset))
    for cell in by_data:
        _checked(build_recipe, cell.resolved())
    for cell in {repr((cell.dataset, cell.model)): cell for cell in by_data}.values():
        _checked(check_fit, cell.resolved())
    for cell in {shape_key(cell.resolved()): cell for cell in by_data}.values():
        _checked(check_measures, config, cell.resolved())
    for cell in by_data:
        _checked(check_ghosts, cell.resolved())
        _checked(check_tracks, cell.resolved())
    _checked(check_layout, config, cells)
    _checked(check_landscapes, config, cells)
    _read_code(config, cells)
    return cells


def _read_code(config: Config, cells: Sequence[RunConfig]) -> None:
    """The digests of what was loaded, before someone edits it while it works."""
    training_digest(), commit()
    for request in requests(config):
        metrics[request.metric].digest  # noqa: B018
    for name in {name for cell in cells for spec in cell.train["track"] for name in spec}:
        (trackers if name in trackers else metrics)[name].digest  # noqa: B018


def _checked(check: Callable[..., object], *arguments: object) -> None:
    try:
        check(*arguments)
    except InputError:
        raise
    except Exception:
        return  # someone's own model or data set raises: its runs fail later, and say so


def check_free(asked: Sequence[Run]) -> None:
    """Refuse, before any work, to train what another process trains."""
    for record in asked:
        if record.damage is None and record.status["status"] not in ENDED:
            files.check_free(record.folder)


def prepared(config: Config, cells: Sequence[RunConfig], root: Path) -> Path:
    """The study's folder, with what is known of it before any work."""
    for record in begun(cells, root):
        if record.damage is None:  # else it is refused alone
            _checked(record.check_data)
    files.make_folder(root / "runs")
    folder = files.make_folder(root / "studies" / config.study)
    content = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    files.write_text(folder / "config.yaml", content)
    files.write_json(folder / "runs.json", [cell.id for cell in cells])
    return folder


def begun(cells: Sequence[RunConfig], root: str | Path) -> list[Run]:
    """The study's runs that have a record, finished or not."""
    runs = [record_of(cell, root) for cell in cells]
    return [record for record in runs if record.exists]


def record_of(cell: RunConfig, root: str | Path) -> Run:
    """Its record, which may not be there yet."""
    return Run(Path(root) / "runs" / cell.id, cell.swept, cell.resolved())
