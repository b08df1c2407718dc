"""What was watched during training, a panel each, a line a run."""

from __future__ import annotations

import collections
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpflat.plots import base
from sharpflat.plots.base import Plot, RunRecord, StudyRecords, Width
from sharpflat.plots.settings import Setting, left_out, settings
from sharpflat.registry import figure

EDGE = "largest stable curvature"
SHARED = "0.3"
LOG_FROM = 20  # a log axis of values once the largest is this many times the smallest


@figure
def tracked(study: StudyRecords, *, width: Width = "page") -> Plot | None:
    """Everything tracked, by epoch; λmax beside the largest curvature that is stable (dashed).

    Args:
        study: what its finished runs were watched for is drawn; without any there is no figure.
        width: of a column or of a page.

    Source: Cohen et al. (2021), figure 1, for λmax and its threshold.
    """
    found = settings(study)
    rows = [row for setting in found for run in setting.runs for row in looks(setting, run)]
    if not rows:
        return None
    return Plot(_draw(found, rows, width), rows, _caption(study, rows, len(found)))


def looks(setting: Setting, run: RunRecord) -> list[dict[str, Any]]:
    """A row a look that gave a finite number: what was seen, where, and how surely."""
    labels = _labels(run.tracked)
    return [
        {
            "track": label, **setting.cells, "seed": run.seed, "epoch": row["epoch"],
            "step": row["step"], "value": row["value"], "standard_error": row["standard_error"],
            "converged": row["converged"], "batch_norm": row["batch_norm"],
            "over_batches": row["details"].get("standard_deviation"),
            "stability_threshold": row.get("stability_threshold"),
        }
        for label, row in zip(labels, run.tracked, strict=True)
        if base.finite(row["value"]) is not None
    ]  # fmt: skip


def _labels(rows: list[dict[str, Any]]) -> list[str]:
    """Each row's name, with what tells two looks of one name apart."""
    variants: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    every = [{**r["arguments"], **{k: r[k] for k in ("examples", "batch_norm")}} for r in rows]
    for row, variant in zip(rows, every, strict=True):
        if variant not in variants[row["track"]]:
            variants[row["track"]].append(variant)
    names = []
    for row, variant in zip(rows, every, strict=True):
        others = variants[row["track"]]
        differ = [key for key in variant if any(other[key] != variant[key] for other in others)]
        told = ", ".join(f"{key}={variant[key]}" for key in differ)
        names.append(row["track"] + (f"[{told}]" if told else ""))
    return names


@base.style()
def _draw(found: list[Setting], rows: list[dict[str, Any]], width: Width) -> Figure:
    names = list(dict.fromkeys(row["track"] for row in rows))
    plot, axes = base.panels(len(names), width, columns=2 if width == "page" else 1, height=2)
    handles: dict[str, Any] = {}
    for name, ax in zip(names, axes, strict=True):
        drawn = [row for row in rows if row["track"] == name]
        lines = list[tuple[Line2D, list[dict[str, Any]]]]()
        for setting, colour in zip(found, base.colours(len(found)), strict=True):
            for run in setting.runs:
                own = [row for row in drawn if _is_of(row, setting, run)]
                if own:
                    lines.append((_line(ax, own, colour, setting.label), own))
                    handles.setdefault(setting.label, lines[-1][0])
        _thresholds(ax, lines)
        ax.set_xlabel("epoch")
        ax.set_ylabel(name.replace("_", " "))
        _scale(ax, drawn)
    shown = list(handles.values()) if len(found) > 1 else []
    if any(row["stability_threshold"] is not None for row in rows):
        colour = SHARED if len(found) > 1 else base.colours(1)[0]
        shown.append(Line2D([], [], linestyle="--", color=colour, linewidth=0.8, label=EDGE))
    if shown:
        base.legend_above(plot, shown)
    return plot


def _is_of(row: dict[str, Any], setting: Setting, run: RunRecord) -> bool:
    cells = {"seed": run.seed, **setting.cells}
    return all(row[key] == value for key, value in cells.items())


def _line(ax: Axes, rows: list[dict[str, Any]], colour: Any, label: str) -> Line2D:
    epochs, values = ([row[key] for row in rows] for key in ("epoch", "value"))
    (line,) = ax.plot(epochs, values, color=colour, label=label)
    bands = [row for row in rows if row["over_batches"] is not None]
    low, high = ([r["value"] + sign * r["over_batches"] for r in bands] for sign in (-1, 1))
    ax.fill_between([r["epoch"] for r in bands], low, high, color=colour, alpha=0.2, linewidth=0)
    unsure = [row for row in rows if not row["converged"]]
    ax.plot(
        [row["epoch"] for row in unsure], [row["value"] for row in unsure], "o", color=colour,
        markerfacecolor="white",
    )  # fmt: skip
    return line


def _thresholds(ax: Axes, lines: list[tuple[Line2D, list[dict[str, Any]]]]) -> None:
    """Each is drawn once, in its setting's colour unless settings share it."""
    shared: dict[Any, list[tuple[Line2D, dict[float, float]]]] = collections.defaultdict(list)
    for line, rows in lines:
        edges = {r["epoch"]: r["stability_threshold"] for r in rows}
        edges = {epoch: edge for epoch, edge in edges.items() if base.finite(edge) is not None}
        constant = len(set(edges.values())) == 1
        shared[max(edges.values()) if constant else tuple(edges.items())].append((line, edges))
    for members in shared.values():
        course = dict(sorted(pair for _, edges in members for pair in edges.items()))
        alone = len({line.get_label() for line, _ in members}) == 1
        colour = members[0][0].get_color() if alone else SHARED
        ax.plot(list(course), list(course.values()), "--", color=colour, linewidth=0.8)


def _scale(ax: Axes, rows: list[dict[str, Any]]) -> None:
    """A log axis where the numbers, thresholds among them, ask for it and bands allow it."""
    edges = [base.finite(row["stability_threshold"]) for row in rows]
    values = [row["value"] for row in rows] + [edge for edge in edges if edge is not None]
    lowest = min(values + [row["value"] - (row["over_batches"] or 0.0) for row in rows])
    if lowest > 0 and max(values) >= LOG_FROM * min(values):
        ax.set_yscale("log")
        base.log_axis(ax.yaxis)


def _caption(study: StudyRecords, rows: list[dict[str, Any]], count: int) -> str:
    policies = sorted({row["batch_norm"] for row in rows})
    return base.sentences(
        [
            f"{study.name}: watched during training, a line a run;",
            f"batch norm {', '.join(policies)}.",
            "Dashed: the largest curvature at which the optimizer is stable on the whole batch (on "
            f"small batches less is){', grey where settings share it' if count > 1 else ''}."
            if any(row["stability_threshold"] is not None for row in rows)
            else "",
            "Bands: one standard deviation over the batches."
            if any(row["over_batches"] is not None for row in rows)
            else "",
            "Open dots: the solver's own criterion did not hold."
            if not all(row["converged"] for row in rows)
            else "",
            left_out(study),
            study.note,
        ]
    )
