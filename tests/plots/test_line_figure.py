"""The line between minima: rows, gaps, scales, panels."""

import numpy as np
import pytest

from sharpflat.plots import LandscapeRecord
from sharpflat.plots.line import line, points


def record(**arrays):
    settings = {
        "key": "train.batch_size",
        "start": 256,
        "end": 6000,
        "seed": 0,
        "alpha": [0.0, 1.0],
    }
    return LandscapeRecord("line", settings, {k: np.array(v, float) for k, v in arrays.items()})


def study_with(make, *landscapes):
    return make.study([make.run(8, 0, 3)], landscapes)


def test_rows_hold_the_plain_settings_and_every_curve():
    rows = points([record(alpha=[0, 1], train_loss=[0.1, 0.2], test_loss=[0.3, 0.4])])
    assert rows[1] == {
        "key": "train.batch_size", "start": 256, "end": 6000, "seed": 0,
        "alpha": 1.0, "train_loss": 0.2, "test_loss": 0.4,
    }  # fmt: skip


def test_points_that_are_not_finite_are_gaps_not_numbers(make):
    landscape = record(
        alpha=[0, 0.5, 1], train_loss=[0.1, np.nan, 0.2], test_loss=[0.3, np.inf, np.nan]
    )
    rows = points([landscape])
    assert [row["alpha"] for row in rows] == [0.0, 1.0]
    assert rows[1]["test_loss"] is None
    drawn = line(study_with(make, landscape)).figure.axes[0].lines
    assert list(drawn[1].get_xdata()) == [0.0]


def test_train_is_solid_test_dashed_and_accuracy_on_the_right(study):
    left, right = line(study).figure.axes
    assert [curve.get_linestyle() for curve in left.lines[:2]] == ["-", "--"]
    assert [curve.get_linestyle() for curve in right.lines] == ["-", "--"]
    assert right.yaxis.get_label_position() == "right"
    assert (left.get_ylabel(), right.get_ylabel()) == ("loss", "accuracy (%)")


def test_both_ends_are_marked_with_what_they_are(study):
    ax = line(study).figure.axes[0]
    texts = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert texts == {"batch size 8": 0, "batch size 1000": 1}
    vertical = [curve.get_xdata()[0] for curve in ax.lines if len(set(curve.get_xdata())) == 1]
    assert vertical == [0, 1]


@pytest.mark.parametrize(
    ("losses", "scale"), [([0.1, 0.2], "log"), ([0.0, 0.2], "symlog"), ([0.0, 0.0], "linear")]
)
def test_loss_scale(make, losses, scale):
    plot = line(study_with(make, record(alpha=[0, 1], train_loss=losses)))
    (ax,) = plot.figure.axes  # no accuracy, no right axis
    assert ax.get_yscale() == scale


def test_several_lines_are_panels_named_by_what_differs_on_the_same_axes(make):
    plot = line(study_with(make, make.line(0), make.line(1), make.line(2)))
    left = [ax for ax in plot.figure.axes if ax.get_yscale() == "log"]
    assert [ax.get_title() for ax in left] == ["seed 0", "seed 1", "seed 2"]
    assert len({ax.get_ylim() for ax in left}) == 1
    assert "same axes" in plot.caption


def test_no_figure_without_a_line(make):
    plane = LandscapeRecord("plane", {}, {"alpha": np.zeros(2)})
    assert line(study_with(make)) is None
    assert line(study_with(make, plane)) is None
    assert line(study_with(make, record(alpha=[0, 1], train_loss=[np.nan, np.nan]))) is None
