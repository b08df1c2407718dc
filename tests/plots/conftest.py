"""A synthetic study: two batch sizes, five seeds, one line between them."""

import math

import numpy as np
import pytest

from sharpflat.plots import LandscapeRecord, RunRecord, StudyRecords

COLUMNS = ["keskar_sharpness[epsilon=0.001]", "hessian_top_eigenvalues"]


def history(batch_size, seed, epochs, every):
    """Loss falls as a power of the epoch; accuracy at every so many epochs, and at the last."""
    generator = np.random.default_rng([batch_size, seed])
    final = 0.97 - 0.005 * math.log10(batch_size) + 0.004 * generator.normal()
    pace = 0.4 * math.exp(0.15 * generator.normal()) * 8 / batch_size**0.5
    rows = []
    for epoch in range(1, epochs + 1):
        loss = 2.3 / (1 + pace * epoch) ** 1.6 * math.exp(0.05 * generator.normal())
        row = {"epoch": epoch, "step": epoch, "seconds": 0.1}
        row |= {"train_loss": loss, "train_accuracy": min(1.0, 1 - loss / 5)}
        if epoch % every == 0 or epoch == epochs:
            rise = 1 - 0.8 / (1 + pace * epoch) ** 1.2
            row |= {"full_train_loss": loss, "test_loss": loss + 0.1}
            row |= {"full_train_accuracy": 1 - loss / 5, "test_accuracy": final * rise}
        rows.append(row)
    return rows


def looks(history):
    """λmax and the losses of batches, at every tenth epoch."""
    common = {"arguments": {}, "examples": 100, "batch_norm": "batch", "standard_error": 0.0}
    tracked = []
    for row in history[::10]:
        look = {**common, "epoch": row["epoch"], "step": row["step"], "error": None}
        edge = {"value": 10 / row["train_loss"], "stability_threshold": 20.0, "details": {}}
        tracked.append({**look, **edge, "track": "top_eigenvalue", "converged": row["epoch"] > 1})
        spread = {"standard_deviation": 0.1 * row["train_loss"]}
        losses = {"value": row["train_loss"], "details": spread, "converged": True}
        tracked.append({**look, **losses, "track": "batch_losses"})
    return tracked


def run(batch_size, seed, epochs=60, columns=COLUMNS, status="finished", **swept):
    generator = np.random.default_rng([batch_size, seed, 1])
    rows = history(batch_size, seed, epochs, max(1, epochs // 30))
    swept = {"train.batch_size": batch_size, **swept}
    end = rows[-1]
    row = {"run": f"{batch_size}-{seed}", "seed": seed, "status": status, **swept}
    row |= {key: end[key] for key in ("train_accuracy", "train_loss", "test_accuracy", "test_loss")}
    for index, column in enumerate(columns):
        row[column] = 0.3 * batch_size ** (0.5 + 0.1 * index) * math.exp(0.3 * generator.normal())
        row |= {f"{column}_standard_error": 0.0, f"{column}_converged": seed != 3}
    return RunRecord(f"{batch_size}-{seed}", seed, status, swept, rows, row, looks(rows))


def line_record(seed=0, start=8, end=1000, **settings):
    alpha = np.linspace(-1, 2, 25)
    generator = np.random.default_rng(seed)
    walls = 3 * np.abs(alpha) ** 2.2 * np.where(alpha < 0, 0.3, 1) * np.abs(alpha - 1) ** 1.5
    train = 1e-3 + walls * (1 + 0.5 * np.abs(alpha - 1) * (alpha > 1) * 8)
    test = train * 1.1 + 0.1 + 0.005 * generator.normal(size=25)
    arrays = {
        "alpha": alpha, "train_loss": train, "test_loss": test,
        "train_accuracy": np.exp(-train / 2), "test_accuracy": 0.97 * np.exp(-test / 2),
    }  # fmt: skip
    given = {"key": "train.batch_size", "start": start, "end": end, "seed": seed, "points": 25,
             "alpha": [-1.0, 2.0], "batch_norm": "recalibrated", **settings}  # fmt: skip
    return LandscapeRecord("line", given, arrays)


def study_of(runs, landscapes=(), columns=COLUMNS, note=""):
    return StudyRecords(
        "synthetic", list(runs[0].swept), list(runs), list(landscapes), columns, note
    )


def quickstart():
    runs = [
        run(batch_size, seed, epochs, **{"train.epochs": epochs})
        for batch_size, epochs in ((8, 60), (1000, 2000))
        for seed in range(5)
    ]
    return study_of(runs, [line_record()])


@pytest.fixture(scope="session")
def study():
    return quickstart()


@pytest.fixture
def make():
    """The builders above, for studies by hand."""
    import types

    return types.SimpleNamespace(run=run, study=study_of, line=line_record)
