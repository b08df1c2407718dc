"""Training: update rules, batching, compiled segments, stopping rules."""

from sharpflat.registry import optimizers
from sharpflat.training.segments import Epoch, Recipe, TrainState, epochs, start
from sharpflat.training.stopping import Stopping
from sharpflat.training.update_rules import make_optimizer

__all__ = [
    "Epoch",
    "Recipe",
    "Stopping",
    "TrainState",
    "epochs",
    "make_optimizer",
    "optimizers",
    "start",
]
