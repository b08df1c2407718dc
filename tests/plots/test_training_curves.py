"""Training curves: the numbers, where lines end, axes."""

import math

import pytest

from sharpflat.plots import RunRecord
from sharpflat.plots.settings import settings
from sharpflat.plots.training_curves import curves, training_curves


def run(seed, losses, accuracies=(), batch_size=8):
    history = [
        {"epoch": epoch, "train_loss": loss, "test_accuracy": dict(accuracies).get(epoch)}
        for epoch, loss in enumerate(losses, start=1)
    ]
    return RunRecord(str(seed), seed, "finished", {"train.batch_size": batch_size}, history, {})


def values(rows, quantity):
    return {row["epoch"]: row["value"] for row in rows if row["quantity"] == quantity}


def test_bands_by_hand(make):
    runs = [run(0, [1.0], {1: 0.5}), run(1, [100.0], {1: 0.7})]
    accuracy, loss = curves(settings(make.study(runs)))
    assert accuracy == {
        "quantity": "test_accuracy", "train.batch_size": 8, "epoch": 1, "n": 2, "statistic": "mean",
        "value": pytest.approx(0.6), "low": pytest.approx(0.6 - math.sqrt(0.02)),
        "high": pytest.approx(0.6 + math.sqrt(0.02)),
    }  # fmt: skip
    factor = math.exp(math.log(100) / math.sqrt(2))
    assert loss["statistic"] == "geometric mean"
    assert [loss["low"], loss["value"], loss["high"]] == pytest.approx(
        [10 / factor, 10, 10 * factor]
    )


def test_a_loss_of_zero_makes_plain_means(make):
    rows = curves(settings(make.study([run(0, [2.0, 0.0]), run(1, [4.0, 0.0])])))
    assert values(rows, "train_loss") == {1: 3.0, 2: 0.0}
    assert rows[0]["statistic"] == "mean"
    assert training_curves(make.study([run(0, [2.0, 0.0])])).figure.axes[0].get_yscale() == "linear"


def test_lines_end_where_the_first_seed_ends_and_the_caption_says_so(make):
    study = make.study([run(0, [4.0, 2.0, 1.0]), run(1, [4.0, 2.0])])
    assert set(values(curves(settings(study)), "train_loss")) == {1, 2}
    assert "ended at different epochs" in training_curves(study).caption
    same = make.study([run(0, [4.0, 2.0]), run(1, [4.0, 2.0])])
    assert "ended at different epochs" not in training_curves(same).caption


def test_missing_values_are_skipped(make):
    runs = [run(0, [4.0, None, 1.0], {3: 0.9}), run(1, [4.0, 2.0, math.nan], {3: 0.8})]
    rows = curves(settings(make.study(runs)))
    assert values(rows, "train_loss") == {1: pytest.approx(4.0)}
    assert values(rows, "test_accuracy") == {3: pytest.approx(0.85)}


def test_one_seed_has_no_band(make):
    study = make.study([run(0, [2.0, 1.0], {2: 0.5})])
    assert all(row["low"] is row["high"] is None for row in curves(settings(study)))
    plot = training_curves(study)
    assert "band" not in plot.caption
    assert "1 seed a setting" in plot.caption


def test_epochs_are_on_a_log_axis_only_where_settings_differ_much(make, study):
    assert training_curves(study).figure.axes[0].get_xscale() == "log"
    near = make.study([run(0, [2.0] * 30), run(0, [2.0] * 50, batch_size=64)])
    assert training_curves(near).figure.axes[0].get_xscale() == "linear"


def test_what_is_drawn_is_what_is_in_the_rows(study):
    plot = training_curves(study)
    line = plot.figure.axes[1].lines[1]
    rows = [r for r in plot.rows if (r["quantity"], r["train.batch_size"]) == ("train_loss", 1000)]
    assert line.get_label() == "batch size 1000"
    assert list(line.get_xdata()) == [row["epoch"] for row in rows]
    assert list(line.get_ydata()) == [row["value"] for row in rows]


def test_settings_of_one_batch_size_share_a_colour_and_differ_in_dashes(make):
    runs = [
        make.run(size, 0, 20, **{"train.momentum": momentum})
        for size in (8, 64) for momentum in (0.0, 0.9)
    ]  # fmt: skip
    lines = training_curves(make.study(runs)).figure.axes[0].lines
    assert [line.get_color() for line in lines[:2]] == [lines[0].get_color()] * 2
    assert lines[2].get_color() != lines[0].get_color()
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "--"]


def test_no_figure_without_finished_runs(make):
    assert training_curves(make.study([make.run(8, 0, 5, status="failed")])) is None
    assert training_curves(make.study([run(0, [])])) is None
