"""Objective: the mean loss as a function of parameters, and its derivatives."""

from sharpflat.objective.losses import LOSSES, hit_rate
from sharpflat.objective.objective import BatchNormPolicy, Objective
from sharpflat.objective.sharing import sharing

__all__ = ["LOSSES", "BatchNormPolicy", "Objective", "hit_rate", "sharing"]
