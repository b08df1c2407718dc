"""Objective: the mean loss as a function of parameters, and its derivatives."""

from sharpflat.objective.losses import LOSSES, cross_entropy, hit_rate, squared_error
from sharpflat.objective.objective import BatchNormPolicy, Objective
from sharpflat.objective.sharing import sharing

__all__ = [
    "LOSSES",
    "BatchNormPolicy",
    "Objective",
    "cross_entropy",
    "hit_rate",
    "sharing",
    "squared_error",
]
