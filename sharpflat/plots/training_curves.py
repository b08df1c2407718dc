"""Test accuracy and train loss over the epochs of training, a line a setting."""

from __future__ import annotations

import collections
import itertools
import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sharpflat.plots import base
from sharpflat.plots.base import Plot, StudyRecords, Width
from sharpflat.plots.settings import Setting, left_out, seeds, settings
from sharpflat.registry import figure
from sharpflat.statistics import geometric_interval, mean_interval

QUANTITIES = {"test_accuracy": "test accuracy (%)", "train_loss": "train loss"}
LOG_FROM = 5  # a log axis of epochs once the longest setting is this many times the shortest
MARKED_UP_TO = 12  # points of a line, so that few of them show


@figure
def training_curves(study: StudyRecords, *, width: Width = "page") -> Plot | None:
    """Test accuracy and train loss by epoch, mean and sd over seeds (Keskar et al. 2017, figure 2).

    Args:
        study: its finished runs' histories are drawn; without any there is no figure.
        width: of a column or of a page.
    """
    found = settings(study)
    rows = curves(found)
    if not rows:
        return None
    return Plot(_draw(found, rows, width), rows, _caption(study, found, rows))


def curves(found: list[Setting]) -> list[dict[str, Any]]:
    """A row a quantity, setting and epoch in which every seed of the setting has a value.

    Train losses that are all positive get the geometric mean and sd, for a log axis.

    Returns:
        Rows of `quantity`, the setting's keys, `epoch`, `n` seeds, `statistic`, `value`, and `low`
        and `high` one sd from it (None for one seed).
    """
    rows = []
    for quantity in QUANTITIES:
        values = [_shared_epochs(setting, quantity) for setting in found]
        log = quantity == "train_loss" and all(
            value > 0 for setting in values for epoch in setting.values() for value in epoch
        )
        for setting, epochs in zip(found, values, strict=True):
            rows += [
                {"quantity": quantity, **setting.cells, "epoch": epoch, **_band(samples, log)}
                for epoch, samples in sorted(epochs.items())
            ]
    return rows


def _shared_epochs(setting: Setting, quantity: str) -> dict[int, list[float]]:
    samples: dict[int, list[float]] = collections.defaultdict(list)
    for run in setting.runs:
        for row in run.history:
            value = base.finite(row.get(quantity))
            if value is not None:
                samples[row["epoch"]].append(value)
    return {epoch: s for epoch, s in samples.items() if len(s) == len(setting.runs)}


def _band(samples: list[float], log: bool) -> dict[str, Any]:
    if log:
        mean, sd, *_ = geometric_interval(samples)
        name, low, high = "geometric mean", mean / sd, mean * sd
    else:
        mean, sd, *_ = mean_interval(samples)
        name, low, high = "mean", mean - sd, mean + sd
    ends = {"low": base.finite(low), "high": base.finite(high)}
    return {"n": len(samples), "statistic": name, "value": mean, **ends}


@base.style()
def _draw(found: list[Setting], rows: list[dict[str, Any]], width: Width) -> Figure:
    quantities = [q for q in QUANTITIES if any(row["quantity"] == q for row in rows)]
    plot, axes = base.panels(len(quantities), width, columns=2 if width == "page" else 1, height=2)
    handles = []
    for quantity, ax in zip(quantities, axes, strict=True):
        looks = zip(found, _looks(found), strict=True)
        handles = [_line(ax, setting, quantity, rows, *look) for setting, look in looks]
        ax.set_ylabel(QUANTITIES[quantity])
        ax.set_xlabel("epoch")
        if ax is not axes[0]:
            ax.sharex(axes[0])
        if quantity == "test_accuracy":
            base.percent_axis(ax.yaxis)
        elif rows[-1]["statistic"] == "geometric mean":
            ax.set_yscale("log")
            base.log_axis(ax.yaxis)
    if _log_epochs(found, rows):
        axes[0].set_xscale("log")
        base.log_axis(axes[0].xaxis, plain_over=math.inf)
    base.legend_above(plot, handles)
    return plot


def _looks(found: list[Setting]) -> list[tuple[Any, base.Dashes]]:
    """A colour a batch size and dashes for what else varies, as far as there are dashes."""
    sizes = list(dict.fromkeys(setting.batch_size for setting in found))
    series = list(dict.fromkeys(setting.series for setting in found))
    if 1 < len(series) <= len(base.DASHES):
        colours = dict(zip(sizes, base.colours(len(sizes)), strict=True))
        dashes = dict(zip(series, base.DASHES, strict=False))
        return [(colours[setting.batch_size], dashes[setting.series]) for setting in found]
    return list(zip(base.colours(len(found)), itertools.cycle(base.DASHES), strict=False))


def _line(
    ax: Axes,
    setting: Setting,
    quantity: str,
    rows: list[dict[str, Any]],
    colour: Any,
    dashes: base.Dashes,
) -> Any:
    drawn = _of(rows, setting, quantity)
    epochs = [row["epoch"] for row in drawn]
    means = [row["value"] for row in drawn]
    marker = "o" if len(drawn) <= MARKED_UP_TO else ""
    (line,) = ax.plot(epochs, means, dashes, color=colour, marker=marker, label=setting.label)
    banded = [row for row in drawn if row["low"] is not None]
    ax.fill_between(
        [row["epoch"] for row in banded], [row["low"] for row in banded],
        [row["high"] for row in banded], color=colour, alpha=0.2, linewidth=0,
    )  # fmt: skip
    return line


def _of(rows: list[dict[str, Any]], setting: Setting, quantity: str) -> list[dict[str, Any]]:
    cells = {"quantity": quantity, **setting.cells}
    return [row for row in rows if all(row[key] == value for key, value in cells.items())]


def _log_epochs(found: list[Setting], rows: list[dict[str, Any]]) -> bool:
    drawn = [_of(rows, setting, quantity) for setting in found for quantity in QUANTITIES]
    last = [points[-1]["epoch"] for points in drawn if points]
    return max(last) >= LOG_FROM * min(last)


def _caption(study: StudyRecords, found: list[Setting], rows: list[dict[str, Any]]) -> str:
    counts = [len(setting.runs) for setting in found]
    several = max(counts) > 1
    stops = any(
        len({run.history[-1]["epoch"] for run in setting.runs if run.history}) > 1
        for setting in found
    )
    geometric = any(row["statistic"] == "geometric mean" for row in rows)
    return base.sentences(
        [
            f"{study.name}: test accuracy and train loss (mean over an epoch's updates) by epoch,",
            f"{seeds(counts)} a setting.",
            "Lines are means over seeds, bands one standard deviation." if several else "",
            "Train loss: geometric mean and standard deviation." if several and geometric else "",
            "Seeds ended at different epochs: a line ends where the first of its seeds did."
            if stops
            else "",
            left_out(study),
            study.note,
        ]
    )
