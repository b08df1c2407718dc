"""Runs: where training, measuring and landscapes meet, and records are kept."""

from sharpflat.runs.record import Run
from sharpflat.runs.study import (
    failures,
    load_config,
    load_runs,
    measure,
    plan,
    run,
    study_folder,
    train,
)

__all__ = [
    "Run",
    "failures",
    "load_config",
    "load_runs",
    "measure",
    "plan",
    "run",
    "study_folder",
    "train",
]
