"""The figure of what was tracked: its numbers, thresholds and certificates."""

from sharpflat.plots import RunRecord
from sharpflat.plots.tracked import SHARED, tracked


def look(step, value, track="top_eigenvalue", **changes):
    row = {
        "track": track, "arguments": {}, "epoch": step / 5, "step": step, "examples": 40,
        "batch_norm": "batch", "value": value, "standard_error": 0.0, "converged": True,
        "error": None, "seconds": 0.1, "details": {}, "stability_threshold": 20.0,
    }  # fmt: skip
    return {**row, **changes}


def run(seed, rows, batch_size=8):
    swept = {"train.batch_size": batch_size}
    return RunRecord(str(seed), seed, "finished", swept, [], {}, rows)


def dashes(ax):
    return [line for line in ax.lines if line.get_linestyle() == "--" and len(line.get_ydata())]


def test_nothing_watched_nothing_drawn(make):
    assert tracked(make.study([run(0, [])])) is None


def test_a_panel_a_track_with_its_threshold(make):
    rows = [look(0, 1.0), look(5, 30.0, converged=False), look(10, None, error="failed")]
    losses = [
        look(s, 1.0, "batch_losses", details={"losses": [1.0], "standard_deviation": 0.5},
             stability_threshold=None)
        for s in (0, 5)
    ]  # fmt: skip
    plot = tracked(make.study([run(0, rows + losses), run(1, [look(0, 2.0)], batch_size=40)]))
    assert [ax.get_ylabel() for ax in plot.figure.axes] == ["top eigenvalue", "batch losses"]
    drawn = [(r["track"], r["train.batch_size"], r["step"], r["value"]) for r in plot.rows]
    assert drawn == [
        ("top_eigenvalue", 8, 0, 1.0), ("top_eigenvalue", 8, 5, 30.0),
        ("batch_losses", 8, 0, 1.0), ("batch_losses", 8, 5, 1.0), ("top_eigenvalue", 40, 0, 2.0),
    ]  # fmt: skip
    assert plot.figure.axes[0].get_yscale() == "log"
    (dashed,) = dashes(plot.figure.axes[0])
    assert (list(dashed.get_xdata()), list(dashed.get_ydata())) == ([0, 1], [20, 20])
    assert dashed.get_color() == SHARED
    (legend,) = plot.figure.legends
    assert [text.get_text() for text in legend.get_texts()][-1] == "largest stable curvature"
    for said in ("Dashed", "Bands", "Open dots", "batch norm batch"):
        assert said in plot.caption


def test_thresholds_of_their_own_have_their_settings_colours(make):
    """Those that settings share hide none."""
    falling = [look(5 * e, 1.0, stability_threshold=edge) for e, edge in enumerate((20.0, 30.0))]
    runs = [run(0, falling), run(1, falling), run(2, [look(0, 1.0), look(5, 1.0)], batch_size=40)]
    (ax,) = tracked(make.study(runs)).figure.axes
    assert [list(line.get_ydata()) for line in dashes(ax)] == [[20, 30], [20, 20]]
    curves = {line.get_label(): line.get_color() for line in ax.lines}
    colours = [curves["batch size 8"], curves["batch size 40"]]
    assert [line.get_color() for line in dashes(ax)] == colours


def test_a_threshold_far_above_asks_for_a_log_axis(make):
    """Else the curvature is a line at zero."""
    rows = [look(s, 1.0 + s / 10, stability_threshold=380.0) for s in (0, 5)]
    (ax,) = tracked(make.study([run(0, rows)])).figure.axes
    assert ax.get_yscale() == "log"


def test_two_looks_of_one_name_are_told_apart(make):
    rows = [look(0, 1.0), look(0, 2.0, batch_norm="running")]
    plot = tracked(make.study([run(0, rows)]))
    names = [row["track"] for row in plot.rows]
    assert names == ["top_eigenvalue[batch_norm=batch]", "top_eigenvalue[batch_norm=running]"]
