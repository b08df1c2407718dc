"""Networks: the adapter to any kind of model, and one file a family of architectures."""

from sharpflat.networks.adapter import Model
from sharpflat.networks.batch_norm import pooled, recalibrate
from sharpflat.registry import import_modules, models

__all__ = ["Model", "models", "pooled", "recalibrate"]

import_modules(__name__, __path__)
