"""A study that watches while it trains."""

from runs.studies import write

import sharpflat as sf

MOMENTUM = {"name": "momentum", "learning_rate": 0.05, "decay": 0.9}


def study(folder, track, optimizer=MOMENTUM, **changes):
    train = {"batch_size": 8, "epochs": 4, "optimizer": optimizer, "track": track}
    train |= changes.pop("train", {})
    given = {"sweep": None, "seeds": 1, "train": train, **changes}
    return sf.load_config(write(folder, **given))


def seen(run, name):
    return [row for row in run.tracked if row["track"] == name]
