"""Plots: records in, figures out. One file a figure; none of them imports JAX."""

from sharpflat.plots.base import (
    LandscapeRecord,
    Plot,
    RunRecord,
    StudyRecords,
    Width,
    save,
    style,
)
from sharpflat.registry import figures, import_modules

__all__ = [
    "LandscapeRecord",
    "Plot",
    "RunRecord",
    "StudyRecords",
    "Width",
    "figures",
    "save",
    "style",
]

import_modules(__name__, __path__)
