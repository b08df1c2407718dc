"""The config: its types, loading from YAML, overrides and sweeps."""

from sharpflat.config.cells import LATER, RunConfig, cells, named, resolve
from sharpflat.config.keys import overridden
from sharpflat.config.loading import check, load
from sharpflat.config.reading import read_yaml
from sharpflat.config.schema import Config, Every, InitFrom, Line, Looked, Measure, Policy, Spec

__all__ = [
    "LATER",
    "Config",
    "Every",
    "InitFrom",
    "Line",
    "Looked",
    "Measure",
    "Policy",
    "RunConfig",
    "Spec",
    "cells",
    "check",
    "load",
    "named",
    "overridden",
    "read_yaml",
    "resolve",
]
