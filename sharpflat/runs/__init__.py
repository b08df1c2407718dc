"""Runs: where training, measuring and landscapes meet, and records are kept."""

from sharpflat.runs.checkpoints import Checkpoints
from sharpflat.runs.record import Run
from sharpflat.runs.refusals import Refusals, Refused
from sharpflat.runs.study import (
    costs,
    failures,
    load_config,
    load_runs,
    measure,
    plan,
    records,
    run,
    study_folder,
    train,
)

__all__ = [
    "Checkpoints",
    "Refusals",
    "Refused",
    "Run",
    "costs",
    "failures",
    "load_config",
    "load_runs",
    "measure",
    "plan",
    "records",
    "run",
    "study_folder",
    "train",
]
