"""Training: update rules, batching, compiled segments, stopping rules."""

from sharpflat.registry import import_modules, optimizers, schedules
from sharpflat.training.averages import evaluated
from sharpflat.training.batching import Batches
from sharpflat.training.optimizer import ScalingRule, make_optimizer, scaling
from sharpflat.training.segments import Epoch, Moment, advance, beginning, epochs, start
from sharpflat.training.stopping import Stopping
from sharpflat.training.update import Recipe, TrainState

__all__ = [
    "Batches",
    "Epoch",
    "Moment",
    "Recipe",
    "ScalingRule",
    "Stopping",
    "TrainState",
    "advance",
    "beginning",
    "epochs",
    "evaluated",
    "make_optimizer",
    "optimizers",
    "scaling",
    "schedules",
    "start",
]

import_modules(__name__, __path__)
