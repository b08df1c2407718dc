"""A study: train, measure, compute landscapes, and write the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharpflat import config as configs
from sharpflat.config import Config
from sharpflat.registry import InputError
from sharpflat.runs.progress import SILENT, Reporter
from sharpflat.runs.record import Run
from sharpflat.runs.setup import fill_registries, keep_compiled_programs
from sharpflat.runs.train_run import train_run


def load_config(
    path: str | Path, overrides: Sequence[str] = (), plugins: Sequence[str] = ()
) -> Config:
    """Read and check a config.

    Args:
        path: a YAML file.
        overrides: `train.batch_size=64` and the like, the value read as YAML.
        plugins: plugin files beside those the config names.

    Raises:
        InputError: one line that names the file or key and the closest valid name.
    """
    fill_registries()
    return configs.load(path, overrides, plugins)


def train(config: Config, root: str | Path = "results", reporter: Reporter = SILENT) -> list[Run]:
    """Train every run of a study that is not trained yet, and load the others."""
    keep_compiled_programs()
    root = Path(root)
    return [train_run(cell, root, reporter) for cell in configs.cells(config)]
