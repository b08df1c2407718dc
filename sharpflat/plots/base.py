"""What a figure is given, what it returns, how it looks and how it is written.

A figure is `def name(study: StudyRecords, *, width: Width = "page") -> Plot | None`, registered
with `@figure`. It returns None where the study lacks what it draws (no landscape, no measurement).
It computes nothing but statistics, and does not choose where it is written.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

Width = Literal["column", "page"]
INCHES: dict[Width, float] = {"column": 3.35, "page": 6.9}

# Okabe and Ito's palette, without its yellow, which is too light for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
Dashes = Literal["-", "--", "-.", ":"]
DASHES: tuple[Dashes, ...] = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LEGEND_ROW = 0.16  # inches
PERCENT_TICKS = 6  # at most one more than this
NARROW = 5  # ratio of a log axis's ends from which on it holds two of 1, 2, 5, 10, ...

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same on every machine
    "font.size": 7.5,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 1.7,
    "ytick.minor.size": 1.7,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "pdf.fonttype": 42,  # real text
    "savefig.dpi": 300,
}


@dataclass(frozen=True)
class RunRecord:
    """One training.

    Attributes:
        id: the run's id.
        seed: its seed.
        status: running, finished, diverged or failed.
        swept: its value of each swept key.
        history: a row an epoch, as in `history.jsonl`.
        row: its row of the study's table.
        tracked: a row a look of what was watched meanwhile, as in `tracked.jsonl`.
    """

    id: str
    seed: int
    status: str
    swept: dict[str, Any]
    history: list[dict[str, Any]]
    row: dict[str, Any]
    tracked: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class LandscapeRecord:
    """One landscape: its kind (`line`, ...), what was asked for, and the arrays by name."""

    kind: str
    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class StudyRecords:
    """All that figures know of a study.

    Attributes:
        name: the study's name.
        swept: the swept keys by dotted name; the first is always `train.batch_size`.
        runs: its runs, whatever their status.
        landscapes: its landscapes.
        columns: the table's measurement columns (`keskar_sharpness[epsilon=0.001]`); beside each
            stand `<column>_standard_error` and `<column>_converged`.
        note: a sentence that ends every caption.
    """

    name: str
    swept: list[str]
    runs: list[RunRecord]
    landscapes: list[LandscapeRecord]
    columns: list[str]
    note: str = ""


class Plot(NamedTuple):
    """A figure with the numbers it draws (they become its CSV) and its caption."""

    figure: Figure
    rows: list[dict[str, Any]]
    caption: str


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure, whatever the user's own matplotlib settings are.

    What is built inside (and `save`) has it: `with style(): ...`, or a function under `@style()`.
    """
    with matplotlib.style.context(["default", STYLE]):
        yield


def save(plot: Plot, folder: str | Path, name: str) -> list[Path]:
    """Write `<name>.png`, `.pdf`, `.csv` and `.txt` (the caption); equal plots, equal bytes.

    Args:
        plot: what a figure returned.
        folder: where; it is made if missing.
        name: the files' name, without ending.

    Returns:
        The four files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png, pdf, table, caption = (folder / f"{name}.{end}" for end in ("png", "pdf", "csv", "txt"))
    with style():
        plot.figure.savefig(png, metadata={"Software": None})
        nothing = dict.fromkeys(("CreationDate", "Creator", "Producer"))
        plot.figure.savefig(pdf, metadata=nothing)
    with table.open("w", newline="", encoding="utf-8") as file:
        names = list(dict.fromkeys(key for row in plot.rows for key in row))
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(plot.rows)
    caption.write_text(plot.caption + "\n", encoding="utf-8")
    return [png, pdf, table, caption]


def finite(value: Any) -> float | None:
    """`value` as a float, or None where it is missing or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None


def panels(count: int, width: Width, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most `columns` a row, each `height` inches high."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(INCHES[width], rows * height), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    return figure, [figure.add_subplot(grid[divmod(index, columns)]) for index in range(count)]


def colours(count: int) -> list[Any]:
    """`count` colours that the colour-blind can tell apart; above seven, steps of one ramp."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.92, count)))


def legend_above(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend above all panels, in room of its own: it covers no data."""
    widest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, int(figure.get_figwidth() / (0.5 + 0.062 * widest)))
    columns = min(len(handles), columns)
    rows = math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + rows * LEGEND_ROW)
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, borderpad=0, columnspacing=1.5
    )


def percent_axis(axis: Axis) -> None:
    """Fractions, labelled in percent."""

    def label(value: float, _: int) -> str:
        low, high = axis.get_view_interval()
        decimals = max(0, -math.floor(math.log10(100 * (high - low) / PERCENT_TICKS)))
        return f"{100 * value:.{decimals}f}"

    axis.set_major_locator(MaxNLocator(PERCENT_TICKS, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(label))


class _LogTicks(LogLocator):
    """Decades; on a narrow axis, which may hold none, round numbers at even distances."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        if vmax / vmin >= NARROW:
            return super().tick_values(vmin, vmax)
        ticks: Any = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(vmin, vmax)
        return ticks[ticks > 0]


def log_axis(axis: Axis, plain_over: float = 100) -> None:
    """Plain numbers (1, 2, 5, 10) up to a ratio of `plain_over` between the ends, else powers."""

    def span() -> float:
        low, high = axis.get_view_interval()
        return high / low

    def major(value: float, _: int) -> str:
        return _number(value) if span() < plain_over else f"$10^{{{math.log10(value):.0f}}}$"

    def minor(value: float, _: int) -> str:
        named = NARROW <= span() < min(plain_over, 100) and f"{value:e}"[0] in "25"
        return _number(value) if named else ""

    axis.set_major_locator(_LogTicks())
    axis.set_major_formatter(FuncFormatter(major))
    axis.set_minor_formatter(FuncFormatter(minor))


def _number(value: float) -> str:
    if 1e-3 <= value < 1e6:
        return f"{value:.10g}"
    digits, exponent = f"{value:.9e}".split("e")
    digits, power = digits.rstrip("0").rstrip("."), f"10^{{{int(exponent)}}}"
    return f"${power}$" if digits == "1" else f"${digits}\\cdot{power}$"


def sentences(parts: Iterable[str]) -> str:
    """A caption of the parts that say something."""
    return " ".join(part for part in parts if part)
