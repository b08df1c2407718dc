"""Sharpness by batch size: intervals, scales, skipped values, series."""

import dataclasses
import itertools
import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from sharpflat.plots import RunRecord
from sharpflat.plots.settings import settings
from sharpflat.plots.sharpness_by_batch_size import sharpness_by_batch_size, summaries

T4 = 2.7764451052  # t(0.975, 4), from printed tables


def run(batch_size, seed, accuracy, sharpness, converged=True):
    row = {"test_accuracy": accuracy, "sharp": sharpness, "sharp_converged": converged}
    swept = {"train.batch_size": batch_size}
    return RunRecord(f"{batch_size}-{seed}", seed, "finished", swept, [], row)


def by_hand(make, small=(1.0, 1.0, 10.0, 100.0, 100.0)):
    accuracies = [0.8, 0.8, 0.9, 1.0, 1.0]
    runs = [run(8, s, *pair) for s, pair in enumerate(zip(accuracies, small, strict=True))]
    runs += [run(64, seed, 0.5, 1000.0) for seed in range(2)]
    return make.study(runs, columns=["sharp"])


def summary(rows, quantity, batch_size):
    means = [row for row in rows if row["statistic"] != "run"]
    key = (quantity, batch_size)
    (row,) = [row for row in means if (row["quantity"], row["train.batch_size"]) == key]
    return row


def test_intervals_by_hand(make):
    rows = summaries(settings(by_hand(make)), ["sharp"])
    accuracy = summary(rows, "test_accuracy", 8)
    reach = T4 * 0.1 / math.sqrt(5)
    assert accuracy["statistic"] == "mean"
    assert [accuracy["low"], accuracy["value"], accuracy["high"]] == pytest.approx(
        [0.9 - reach, 0.9, 0.9 + reach]
    )
    sharp = summary(rows, "sharp", 8)
    factor = 10 ** (T4 / math.sqrt(5))  # log10: 0, 0, 1, 2, 2 has s = 1
    assert (sharp["statistic"], sharp["n"]) == ("geometric mean", 5)
    assert [sharp["low"], sharp["value"], sharp["high"]] == pytest.approx(
        [10 / factor, 10, 10 * factor]
    )
    singles = [r["value"] for r in rows if r["quantity"] == "sharp" and r["statistic"] == "run"]
    assert singles == [1.0, 1.0, 10.0, 100.0, 100.0, 1000.0, 1000.0]


def test_values_that_are_not_positive_get_plain_means_and_a_linear_axis(make):
    study = by_hand(make, small=(-1.0, 0.0, 1.0, 2.0, 3.0))
    plot = sharpness_by_batch_size(study)
    assert summary(plot.rows, "sharp", 8)["statistic"] == "mean"
    assert summary(plot.rows, "sharp", 8)["value"] == pytest.approx(1.0)
    assert plot.figure.axes[1].get_yscale() == "linear"
    assert "geometric" not in plot.caption


def test_log_axes_and_the_caption_names_the_log_scale(make):
    plot = sharpness_by_batch_size(by_hand(make))
    accuracy, sharp = plot.figure.axes
    assert (accuracy.get_yscale(), sharp.get_yscale()) == ("linear", "log")
    assert accuracy.get_xscale() == sharp.get_xscale() == "log"
    assert "mean is geometric" in plot.caption
    assert "2 to 5 seeds" in plot.caption


def test_missing_values_are_left_out(make):
    study = by_hand(make, small=(1.0, None, 10.0, math.nan, 100.0))
    rows = sharpness_by_batch_size(study).rows
    assert summary(rows, "sharp", 8)["n"] == 3
    assert summary(rows, "sharp", 8)["value"] == pytest.approx(10.0)
    assert summary(rows, "test_accuracy", 8)["n"] == 5


def test_a_column_without_values_has_no_panel(make):
    study = dataclasses.replace(by_hand(make), columns=["nothing", "sharp"])
    plot = sharpness_by_batch_size(study)
    assert [ax.get_ylabel() for ax in plot.figure.axes] == ["test accuracy (%)", "sharp"]


def test_everything_drawn_lies_inside_the_axes(study):
    for plot in (sharpness_by_batch_size(study), sharpness_by_batch_size(study, width="column")):
        for quantity, ax in zip(
            dict.fromkeys(r["quantity"] for r in plot.rows), plot.figure.axes, strict=True
        ):
            low, high = ax.get_ylim()
            drawn = [
                r[k]
                for r in plot.rows
                if r["quantity"] == quantity
                for k in ("value", "low", "high")
            ]
            assert low < min(y for y in drawn if y is not None)
            assert high > max(y for y in drawn if y is not None)


@pytest.mark.parametrize("apart", [1.0, 2.0, 1e6, 1e200])
def test_two_seeds_do_not_blow_up_the_axis(make, apart):
    runs = [run(8, 0, 0.9, 1.0), run(8, 1, 0.9, apart), run(64, 0, 0.8, apart)]
    plot = sharpness_by_batch_size(make.study(runs, columns=["sharp"]))
    low, high = plot.figure.axes[1].get_ylim()
    assert low < 1.0 <= apart < high
    assert math.log(high / low) <= 3.5 * math.log(apart) + 0.2
    # The interval reaches 12.7/2 - 1/2 ranges beyond; at 1e200 no float holds its ends.
    assert ("goes on beyond" in plot.caption) is (1 < apart < 1e100)
    assert "goes on beyond" not in sharpness_by_batch_size(by_hand(make)).caption


def test_unconverged_measurements_are_open_dots_and_named(make):
    runs = [run(8, 0, 0.9, 1.0), run(8, 1, 0.9, 2.0, converged=False), run(64, 0, 0.8, 5.0)]
    plot = sharpness_by_batch_size(make.study(runs, columns=["sharp"]))
    hollow = [dot for dot in plot.figure.axes[1].lines if dot.get_fillstyle() == "none"]
    assert [dot.get_ydata()[0] for dot in hollow] == [2.0]
    assert "Open marks" in plot.caption
    assert "Open marks" not in sharpness_by_batch_size(by_hand(make)).caption


def test_a_mean_is_open_where_a_seed_lacks_its_certificate(make):
    runs = [run(8, 0, 0.9, 1.0), run(8, 1, 0.9, 2.0, converged=False), run(64, 0, 0.8, 5.0)]
    plot = sharpness_by_batch_size(make.study(runs, columns=["sharp"]))
    accuracy, sharp = plot.figure.axes
    white = [mark.get_ydata()[0] for mark in sharp.lines if mark.get_markerfacecolor() == "white"]
    assert white == [pytest.approx(2**0.5)]
    assert all(mark.get_markerfacecolor() != "white" for mark in accuracy.lines)
    assert [summary(plot.rows, "sharp", size)["converged"] for size in (8, 64)] == [False, True]


def test_other_swept_keys_are_series_of_their_own(make):
    runs = [
        make.run(size, seed, 5, **{"train.momentum": momentum})
        for size in (8, 64) for momentum in (0.0, 0.9) for seed in (0, 1)
    ]  # fmt: skip
    plot = sharpness_by_batch_size(make.study(runs))
    labels = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert labels == ["momentum 0", "momentum 0.9"]
    assert {row["train.momentum"] for row in plot.rows} == {0.0, 0.9}
    assert "side by side" in plot.caption
    assert "side by side" not in sharpness_by_batch_size(by_hand(make)).caption


def test_dense_batch_sizes_do_not_label_each_other_over(make):
    sizes = (100, 200, 500, 1000, 2000, 5000, 10000, 15000, 20000, 30000)
    plot = sharpness_by_batch_size(make.study([make.run(s, 0, 5) for s in sizes]), width="column")
    plot.figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in plot.figure.axes[0].get_xticklabels() if t.get_text()]
    assert len(boxes) >= 2
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_no_figure_without_measurements_or_with_one_batch_size(make):
    study = by_hand(make)
    assert sharpness_by_batch_size(dataclasses.replace(study, columns=[])) is None
    assert sharpness_by_batch_size(dataclasses.replace(study, runs=study.runs[:5])) is None
    assert sharpness_by_batch_size(dataclasses.replace(study, runs=[])) is None


def test_long_arguments_do_not_run_into_other_panels(make):
    columns = [
        f"keskar_sharpness[epsilon={e},subspace={s},examples=12000]"
        for e in (0.001, 0.0005)
        for s in ("null", 100)
    ]
    runs = [make.run(size, seed, columns=columns) for size in (256, 6000) for seed in range(3)]
    plot = sharpness_by_batch_size(make.study(runs, columns=columns), width="page")
    FigureCanvasAgg(plot.figure).draw()
    texts = [t for ax in plot.figure.axes for t in (ax.title, ax.yaxis.label) if t.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == 5 + 4
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def timed(batch_size, seed, seconds):
    record = run(batch_size, seed, 0.9, 1.0)
    history = [{"step": 4 * (i + 1), "seconds": taken} for i, taken in enumerate(seconds)]
    return dataclasses.replace(record, history=history)


def test_times_are_medians_over_the_epochs_after_the_first(make):
    runs = [timed(8, 0, [9.0, 1.0, 2.0, 6.0]), timed(64, 0, [0.8])]
    study = make.study(runs, columns=["sharp"])
    assert not any("seconds" in row["quantity"] for row in sharpness_by_batch_size(study).rows)
    plot = sharpness_by_batch_size(study, times=True)
    values = {
        (row["quantity"], row["train.batch_size"]): row["value"]
        for row in plot.rows if row["statistic"] == "run"
    }  # fmt: skip
    assert values["seconds_per_epoch", 8] == 2.0
    assert values["seconds_per_update", 8] == 0.5
    assert values["seconds_per_epoch", 64] == 0.8
    assert values["seconds_per_update", 64] == pytest.approx(0.2)
    labels = [ax.get_ylabel().replace("\n", " ") for ax in plot.figure.axes]
    assert labels[2:] == ["time per update (s)", "time per epoch (s)"]
    assert "medians over the epochs" in plot.caption
