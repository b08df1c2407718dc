"""Sharpness: `measure`, and one file a published family of measures."""

from sharpflat.registry import import_modules, metrics
from sharpflat.sharpness.base import Estimate, check, map_draws, measure, measure_each

__all__ = ["Estimate", "check", "map_draws", "measure", "measure_each", "metrics"]

import_modules(__name__, __path__)
