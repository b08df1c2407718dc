"""Statistics: intervals and paired comparisons. Arrays in, numbers out."""

from sharpflat.statistics.intervals import Interval, geometric_interval, mean_interval, overlap
from sharpflat.statistics.multiple import holm
from sharpflat.statistics.paired import log_ratio_interval, paired_difference, sign_flip_p_value

__all__ = [
    "Interval",
    "geometric_interval",
    "holm",
    "log_ratio_interval",
    "mean_interval",
    "overlap",
    "paired_difference",
    "sign_flip_p_value",
]
