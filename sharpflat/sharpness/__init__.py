"""Sharpness: `measure`, and one file a published family of measures."""

from sharpflat.registry import import_modules, metrics
from sharpflat.sharpness.base import Estimate, map_draws
from sharpflat.sharpness.measuring import Measured, check, measure, measure_each

__all__ = ["Estimate", "Measured", "check", "map_draws", "measure", "measure_each", "metrics"]

import_modules(__name__, __path__)
