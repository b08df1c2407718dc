"""Training: update rules, batching, compiled segments, stopping rules."""

from sharpflat.registry import import_modules, optimizers, schedules
from sharpflat.training.adversarial import Adversarial
from sharpflat.training.augmentation import Augmentation
from sharpflat.training.averages import evaluated
from sharpflat.training.batching import Batches
from sharpflat.training.feeding import prefetched
from sharpflat.training.label_noise import noisy_labels
from sharpflat.training.optimizer import (
    ScalingRule,
    make_optimizer,
    optimizer_of,
    rate_at,
    scaling,
)
from sharpflat.training.segments import (
    Epoch,
    Members,
    Moment,
    advance,
    beginning,
    epoch_of,
    epochs,
    start,
)
from sharpflat.training.sharding import agreed, data_mesh, own, shared, shares
from sharpflat.training.stability import stability_threshold
from sharpflat.training.stopping import Stopping
from sharpflat.training.threads import settings
from sharpflat.training.update import Recipe, TrainState, update

__all__ = [
    "Adversarial",
    "Augmentation",
    "Batches",
    "Epoch",
    "Members",
    "Moment",
    "Recipe",
    "ScalingRule",
    "Stopping",
    "TrainState",
    "advance",
    "agreed",
    "beginning",
    "data_mesh",
    "epoch_of",
    "epochs",
    "evaluated",
    "make_optimizer",
    "noisy_labels",
    "optimizer_of",
    "optimizers",
    "own",
    "prefetched",
    "rate_at",
    "scaling",
    "schedules",
    "settings",
    "shared",
    "shares",
    "stability_threshold",
    "start",
    "update",
]

import_modules(__name__, __path__)
