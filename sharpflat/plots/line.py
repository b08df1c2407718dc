"""Loss and accuracy on the straight line between two minima."""

from __future__ import annotations

import json
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpflat.plots import base
from sharpflat.plots.base import LandscapeRecord, Plot, StudyRecords, Width
from sharpflat.plots.settings import named
from sharpflat.registry import figure

LOSS, ACCURACY = base.PALETTE[:2]
CURVES: dict[str, tuple[str, str, base.Dashes]] = {
    "train_loss": ("train loss", LOSS, "-"),
    "test_loss": ("test loss", LOSS, "--"),
    "train_accuracy": ("train accuracy", ACCURACY, "-"),
    "test_accuracy": ("test accuracy", ACCURACY, "--"),
}


@figure
def line(study: StudyRecords, *, width: Width = "page") -> Plot | None:
    """f((1 − α) start + α end): loss and accuracy between minima (Keskar et al. 2017, figure 3).

    Args:
        study: each landscape of kind `line` is a panel; without any there is no figure.
        width: of a column or of a page.
    """
    lines = [landscape for landscape in study.landscapes if landscape.kind == "line"]
    rows = points(lines)
    if not rows:
        return None
    return Plot(_draw(lines, width), rows, _caption(study, lines))


def points(lines: list[LandscapeRecord]) -> list[dict[str, Any]]:
    """A row a line and α: the line's settings, `alpha`, and each curve (None where not finite)."""
    rows = []
    for landscape in lines:
        plain = {k: v for k, v in landscape.settings.items() if not isinstance(v, dict | list)}
        drawn = [name for name in CURVES if name in landscape.arrays]
        for index, alpha in enumerate(landscape.arrays["alpha"]):
            values = {name: base.finite(landscape.arrays[name][index]) for name in drawn}
            if any(value is not None for value in values.values()):
                rows.append({**plain, "alpha": float(alpha), **values})
    return rows


@base.style()
def _draw(lines: list[LandscapeRecord], width: Width) -> Figure:
    columns = 2 if width == "page" else 1
    plot, axes = base.panels(len(lines), width, columns, height=2.2)
    right = [_panel(ax, landscape, lines) for ax, landscape in zip(axes, lines, strict=True)]
    for index, (ax, twin) in enumerate(zip(axes, right, strict=True)):
        first, last = index % columns == 0, index % columns == columns - 1 or ax is axes[-1]
        ax.set_ylabel("loss" if first else "", color=LOSS)
        if twin is not None:
            twin.set_ylabel("accuracy (%)" if last else "", color=ACCURACY)
    _share_limits(axes)
    _share_limits([twin for twin in right if twin is not None])
    drawn = [style for name, style in CURVES.items() if any(name in one.arrays for one in lines)]
    base.legend_above(
        plot, [Line2D([], [], color=c, linestyle=dashes, label=label) for label, c, dashes in drawn]
    )
    return plot


def _panel(ax: Axes, landscape: LandscapeRecord, lines: list[LandscapeRecord]) -> Axes | None:
    rows = points([landscape])
    twin = ax.twinx() if any("accuracy" in name for name in landscape.arrays) else None
    for name, (_, colour, dashes) in CURVES.items():
        if name in landscape.arrays:
            drawn = [(row["alpha"], row[name]) for row in rows if row[name] is not None]
            target = twin if twin is not None and "accuracy" in name else ax
            target.plot(*zip(*drawn, strict=True), dashes, color=colour)
    _scale_losses(ax, rows)
    if twin is not None:
        twin.spines["right"].set_visible(True)
        base.percent_axis(twin.yaxis)
    ax.set_xlabel("α")
    _mark_ends(ax, landscape)
    title = ", ".join(named((key, landscape.settings.get(key))) for key in _differing(lines))
    ax.set_title(title, pad=14)
    return twin


def _scale_losses(ax: Axes, rows: list[dict[str, Any]]) -> None:
    """Log; with zeros among the losses, linear below the smallest that is positive."""
    losses = [value for row in rows for key, value in row.items() if key.endswith("_loss")]
    positive = [value for value in losses if value is not None and value > 0]
    if positive and all(value is None or value > 0 for value in losses):
        ax.set_yscale("log")
        base.log_axis(ax.yaxis)
    elif positive:
        ax.set_yscale("symlog", linthresh=min(positive))


def _mark_ends(ax: Axes, landscape: LandscapeRecord) -> None:
    """A thin line at α = 0 and α = 1, named above the panel."""
    alphas = landscape.arrays["alpha"]
    room = {"start": float(-min(alphas)), "end": float(max(alphas) - 1)}
    for end, alpha, outward, inward in (("start", 0, "right", "left"), ("end", 1, "left", "right")):
        ax.axvline(alpha, color="0.6", linewidth=0.6, zorder=0)
        label = named((landscape.settings["key"], landscape.settings[end]))
        align = outward if room[end] > 0.4 else inward
        ax.text(alpha, 1.02, label, transform=ax.get_xaxis_transform(), ha=align, va="bottom")


def _differing(lines: list[LandscapeRecord]) -> list[str]:
    """The settings that tell the panels apart; the ends of a line are named at its ends."""
    keys = dict.fromkeys(key for landscape in lines for key in landscape.settings)
    texts = {key: {json.dumps(one.settings.get(key), default=str) for one in lines} for key in keys}
    return [key for key in keys if len(texts[key]) > 1 and key not in ("key", "start", "end")]


def _share_limits(axes: list[Axes]) -> None:
    """The same limits in every panel, so that panels can be compared."""
    if axes:
        low = min(ax.get_ylim()[0] for ax in axes)
        high = max(ax.get_ylim()[1] for ax in axes)
        for ax in axes:
            ax.set_ylim(low, high)


def _caption(study: StudyRecords, lines: list[LandscapeRecord]) -> str:
    given = [one.settings["batch_norm"] for one in lines if "batch_norm" in one.settings]
    policies = sorted(set(map(str, given)))
    seeds = sorted({str(one.settings["seed"]) for one in lines if "seed" in one.settings})
    return base.sentences(
        [
            f"{study.name}: loss (left axis) and accuracy (right axis) on the line",
            "(1 − α) start + α end between the parameters of two trained networks, named at their",
            "ends; train solid, test dashed.",
            "The same axes in every panel." if len(lines) > 1 else "",
            f"Seed {', '.join(seeds)}." if seeds else "",
            f"Batch norm: {', '.join(policies)}." if policies else "",
            study.note,
        ]
    )
