"""When a training ends before its last epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Stopping:
    """Two rules on the epoch's mean train loss; either ends the training.

    Attributes:
        train_loss: end once the loss is at most this.
        patience: end once the loss has ceased to improve: this many epochs in a row without a
            new best.
        improvement: a new best lies below the old one by more than this fraction of it.
    """

    train_loss: float | None = None
    patience: int | None = None
    improvement: float = 0.0

    best: float = math.inf
    waited: int = 0

    def take(self, loss: float) -> str | None:
        """Take note of an epoch's loss; the reason to stop, or None."""
        if loss < self.best * (1 - self.improvement):
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        if self.train_loss is not None and loss <= self.train_loss:
            return f"train loss reached {self.train_loss:g}"
        if self.patience is not None and self.waited >= self.patience:
            return f"train loss ceased to improve for {self.patience} epochs"
        return None
