"""Studies whose runs are trained together."""

from runs.studies import write

import sharpflat as sf

RATES = {"train.optimizer.learning_rate": [0.01, 0.02, 0.1]}
SGD = {"batch_size": 8, "epochs": 4, "optimizer": {"name": "gradient_descent"}}


def config(folder, *overrides, together=True, **changes):
    changes = {"sweep": RATES, "train": SGD, **changes}
    return sf.load_config(write(folder, together=together, **changes), overrides)
