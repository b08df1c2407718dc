"""Training: update rules, batching, compiled segments, stopping rules."""

from sharpflat.registry import import_modules, optimizers, schedules
from sharpflat.training.averages import evaluated
from sharpflat.training.optimizer import ScalingRule, make_optimizer, scaling
from sharpflat.training.segments import Epoch, epochs, start, updates_per_epoch
from sharpflat.training.stopping import Stopping
from sharpflat.training.update import Recipe, TrainState

__all__ = [
    "Epoch",
    "Recipe",
    "ScalingRule",
    "Stopping",
    "TrainState",
    "epochs",
    "evaluated",
    "make_optimizer",
    "optimizers",
    "scaling",
    "schedules",
    "start",
    "updates_per_epoch",
]

import_modules(__name__, __path__)
