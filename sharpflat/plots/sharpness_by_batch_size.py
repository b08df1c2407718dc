"""Test accuracy and each measurement against batch size."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import Transform, offset_copy

from sharpflat.plots import base
from sharpflat.plots.base import Plot, RunRecord, StudyRecords, Width
from sharpflat.plots.settings import BATCH_SIZE, Setting, left_out, seeds, settings
from sharpflat.registry import figure
from sharpflat.statistics import geometric_interval, mean_interval

ACCURACY = "test_accuracy"
TIMES = {"seconds_per_update": "time per update (s)", "seconds_per_epoch": "time per epoch (s)"}
COLUMNS: dict[Width, int] = {"column": 2, "page": 3}
# In points: from the smallest to the largest batch size, roughly; a digit; between series.
SPAN: dict[Width, float] = {"column": 52, "page": 88}
DIGIT, SERIES_STEP = 4.5, 9.0


@figure
def sharpness_by_batch_size(
    study: StudyRecords, *, width: Width = "page", times: bool = False
) -> Plot | None:
    """Test accuracy and sharpness by batch size, 95 % intervals (Keskar et al. 2017, figure 4).

    Args:
        study: without finished runs at two batch sizes or more, or without a measured value, there
            is no figure.
        width: of a column or of a page.
        times: the wall-clock time of an update and of an epoch's updates as well.
    """
    found = settings(study)
    rows = summaries(found, [*study.columns, *(TIMES if times else ())])
    measured = [row for row in rows if row["quantity"] in study.columns]
    if not measured or len({row[BATCH_SIZE] for row in rows}) < 2:
        return None
    several = len({setting.series for setting in found}) > 1
    return Plot(_draw(found, rows, width), rows, _caption(study, rows, several))


def summaries(found: list[Setting], columns: Sequence[str]) -> list[dict[str, Any]]:
    """A row a run (`statistic` "run") and a row a setting, for test accuracy and each measurement.

    Measurements that are all positive get geometric means and intervals, for a log axis.

    Returns:
        Rows of `quantity`, the setting's keys, `statistic`, `seed`, `value`, `converged` (of a
        setting: in every run) and `low`, `high` (95 % t interval over seeds; None for one seed),
        `n` (of a setting).
    """
    rows = []
    for quantity in (ACCURACY, *columns):
        runs = [_runs(setting, quantity) for setting in found]
        log = quantity != ACCURACY and all(row["value"] > 0 for group in runs for row in group)
        for setting, group in zip(found, runs, strict=True):
            if group:
                rows += [*group, _summary(setting, quantity, group, log)]
    return rows


def _runs(setting: Setting, quantity: str) -> list[dict[str, Any]]:
    values = [(run, _value(run, quantity)) for run in setting.runs]
    return [
        {
            "quantity": quantity, **setting.cells, "statistic": "run", "seed": run.seed,
            "value": value, "converged": run.row.get(f"{quantity}_converged"),
            "low": None, "high": None, "n": None,
        }
        for run, value in values if value is not None
    ]  # fmt: skip


def _value(run: RunRecord, quantity: str) -> float | None:
    """From the table, or from the history: a time is the median over the epochs.

    The first epoch, which compiles, counts only where there is no other.
    """
    if quantity not in TIMES:
        return base.finite(run.row.get(quantity))
    steps = [0, *(row["step"] for row in run.history)]
    whole = quantity == "seconds_per_epoch"
    seconds = [
        row["seconds"] / (1 if whole else after - before)
        for row, before, after in zip(run.history, steps, steps[1:], strict=False)
    ]
    return float(np.median(seconds[1:] or seconds)) if seconds else None


def _summary(
    setting: Setting, quantity: str, group: list[dict[str, Any]], log: bool
) -> dict[str, Any]:
    values, flags = ([row[key] for row in group] for key in ("value", "converged"))
    interval = geometric_interval(values) if log else mean_interval(values)
    ends = (interval.low, interval.high)
    drawn = all(map(math.isfinite, ends)) and (interval.low > 0 or not log)  # exp overflows at 709
    low, high = ends if drawn else (None, None)
    return {
        "quantity": quantity, **setting.cells, "statistic": "geometric mean" if log else "mean",
        "seed": None, "value": interval.mean,
        "converged": None if None in flags else all(flags),
        "low": low, "high": high, "n": interval.n,
    }  # fmt: skip


@base.style()
def _draw(found: list[Setting], rows: list[dict[str, Any]], width: Width) -> Figure:
    quantities = list(dict.fromkeys(row["quantity"] for row in rows))
    series = list(dict.fromkeys(setting.series for setting in found))
    looks = list(zip(base.colours(len(series)), itertools.cycle(base.MARKERS)))
    plot, axes = base.panels(len(quantities), width, COLUMNS[width], height=1.9)
    points = _points(rows, width)
    room = float(np.diff(list(points.values())).min())
    step = min(SERIES_STEP, 0.7 * room / len(series))
    for quantity, ax in zip(quantities, axes, strict=True):
        _prepare(ax, quantity, rows, points)
        for index, (name, look) in enumerate(zip(series, looks, strict=True)):
            members = [setting for setting in found if setting.series == name]
            drawn = [r for setting in members for r in rows if _belongs(r, setting, quantity)]
            if drawn:
                _series(ax, drawn, *look, step * (index - (len(series) - 1) / 2), 0.45 * step)
    if len(series) > 1:
        handles = [
            Line2D([], [], color=colour, marker=marker, linewidth=0.8, label=name)
            for name, (colour, marker) in zip(series, looks, strict=True)
        ]
        base.legend_above(plot, handles)
    return plot


def _points(rows: list[dict[str, Any]], width: Width) -> dict[int, float]:
    """Each batch size and where it stands on the axis, in points from the smallest."""
    sizes = sorted({row[BATCH_SIZE] for row in rows})
    span = math.log(sizes[-1] / sizes[0])
    return {size: SPAN[width] * math.log(size / sizes[0]) / span for size in sizes}


def _labelled(points: dict[int, float]) -> list[int]:
    """The batch sizes that have room for their number: the ends, then from the smallest on."""
    *inner, largest = points
    chosen = [inner[0]]
    for size in inner[1:]:
        room = min(points[size] - points[chosen[-1]], points[largest] - points[size])
        if room >= DIGIT * (len(str(largest)) + 0.5):
            chosen.append(size)
    return [*chosen, largest]


def _prepare(ax: Axes, quantity: str, rows: list[dict[str, Any]], points: dict[int, float]) -> None:
    sizes = list(points)
    margin = (sizes[-1] / sizes[0]) ** 0.2
    ax.set_xscale("log")
    ax.set_xlim(sizes[0] / margin, sizes[-1] * margin)
    ax.set_xlabel("batch size")
    ax.xaxis.set_major_locator(FixedLocator(_labelled(points)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    ax.xaxis.set_minor_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_formatter(NullFormatter())
    drawn = [row for row in rows if row["quantity"] == quantity]
    ax.set_ylim(*_limits(drawn))
    if quantity == ACCURACY:
        ax.set_ylabel("test accuracy (%)")
        base.percent_axis(ax.yaxis)
        return
    name, bracket, arguments = TIMES.get(quantity, quantity).partition("[")
    ax.set_ylabel(textwrap.fill(name.replace("_", " "), 24))
    if bracket:
        # Above the panel, where it has the panel's width: beside it, it runs into the next one.
        words = arguments.removesuffix("]").replace(",", ", ").replace("=", " = ")
        ax.set_title(textwrap.fill(words, 34), fontsize=6.5)
    if _is_log(drawn):
        ax.set_yscale("log")
        base.log_axis(ax.yaxis)


def _is_log(rows: list[dict[str, Any]]) -> bool:
    return any(row["statistic"] == "geometric mean" for row in rows)


def _limits(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Ends of the y axis: all values, and intervals up to the values' own range beyond them.

    The interval of two seeds can be a hundred times as long as they are apart.
    """
    values = np.array([row["value"] for row in rows])
    ends = np.array([row[key] for row in rows for key in ("low", "high") if row[key] is not None])
    log = _is_log(rows)
    if log:
        values, ends = np.log(values), np.log(ends)
    low, high = values.min(), values.max()
    within = np.clip(ends, 2 * low - high, 2 * high - low)
    low, high = min([low, *within]), max([high, *within])
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    limits = low - margin, high + margin
    return (math.exp(limits[0]), math.exp(limits[1])) if log else limits


def _cut(rows: list[dict[str, Any]]) -> bool:
    """Whether some interval is longer than its panel."""
    for quantity in {row["quantity"] for row in rows}:
        drawn = [row for row in rows if row["quantity"] == quantity]
        bottom, top = _limits(drawn)
        if any(r["low"] is not None and (r["low"] < bottom or r["high"] > top) for r in drawn):
            return True
    return False


def _belongs(row: dict[str, Any], setting: Setting, quantity: str) -> bool:
    cells = {"quantity": quantity, **setting.cells}
    return all(row[key] == value for key, value in cells.items())


def _series(
    ax: Axes, rows: list[dict[str, Any]], colour: Any, marker: str, shift: float, beside: float
) -> None:
    """Means joined by a line, with their intervals; the runs as faint dots `beside` them.

    `shift` keeps series apart that have the same batch sizes; both are in points.
    """
    means = [row for row in rows if row["statistic"] != "run"]
    at = _shifted(ax, shift)
    sizes = [row[BATCH_SIZE] for row in means]
    values = [row["value"] for row in means]
    ax.plot(sizes, values, color=colour, linewidth=0.8, transform=at)
    for row in means:
        face = "white" if row["converged"] is False else colour
        ax.plot(
            row[BATCH_SIZE], row["value"], marker, color=colour, markerfacecolor=face, zorder=3,
            transform=at,
        )  # fmt: skip
        if row["low"] is not None:
            x, ends = [row[BATCH_SIZE]] * 2, [row["low"], row["high"]]
            ax.plot(x, ends, color=colour, marker="_", linewidth=1, transform=at)
    for row in rows:
        if row["statistic"] == "run":
            ax.plot(
                row[BATCH_SIZE], row["value"], "o", color=colour, alpha=0.5, markersize=2.6,
                markeredgewidth=0.6, transform=_shifted(ax, shift - beside),
                fillstyle="none" if row["converged"] is False else "full",
            )  # fmt: skip


def _shifted(ax: Axes, points: float) -> Transform:
    return offset_copy(ax.transData, ax.get_figure(root=True), x=points, units="points")


def _caption(study: StudyRecords, rows: list[dict[str, Any]], several: bool) -> str:
    counts = [row["n"] for row in rows if row["n"]]
    geometric = _is_log(rows)
    timed = any(row["quantity"] in TIMES for row in rows)
    unconverged = any(row["converged"] is False for row in rows)
    return base.sentences(
        [
            f"{study.name}: test accuracy and sharpness by batch size, {seeds(counts)} a setting.",
            "Times are medians over the epochs, evaluation apart." if timed else "",
            "Means over seeds, bars their 95 % Student-t intervals; the faint dots beside them are"
            " single seeds."
            if max(counts) > 1
            else "",
            "Settings of one batch size are drawn side by side." if several else "",
            "On log axes the mean is geometric and the interval that of the logarithms."
            if max(counts) > 1 and geometric
            else "",
            "An interval cut off by a panel's edge goes on beyond it." if _cut(rows) else "",
            "Open marks: the measure's own criterion of convergence did not hold, for a mean in at"
            " least one of its seeds."
            if unconverged
            else "",
            left_out(study),
            study.note,
        ]
    )
