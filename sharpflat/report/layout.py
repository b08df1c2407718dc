"""How a study's numbers stand on the screen: a column a setting, or a row a setting."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sharpflat import statistics
from sharpflat.report.names import setting_text, short_names, value_text
from sharpflat.runs.summary import Setting

PERCENT = ("generalization_gap", "test_accuracy", "train_accuracy")
GAP = 2  # characters between columns of numbers
NARROWEST = 12  # characters of a setting's values, whatever they leave of the line


def arranged(
    study: str, settings: Sequence[Setting], shown: Sequence[str], width: int
) -> Table | Group:
    """The quantities `shown`, a column a setting; a row a setting where columns do not fit."""
    table = _a_column_each(study, settings, shown)
    if Console(width=10_000).measure(table).maximum <= width:
        return table
    return _a_row_each(study, settings, shown, width)


def _a_column_each(study: str, settings: Sequence[Setting], shown: Sequence[str]) -> Table:
    table = Table(title=study, title_justify="left", header_style="bold")
    table.add_column("quantity", overflow="fold")
    for setting in settings:
        seeds = _count(len(setting.seeds), "seed")
        table.add_column(f"{setting_text(setting.swept)}\n({seeds})", justify="right")
    compared = len(settings) == 2
    if compared:
        table.add_column("intervals")
    for name in shown:
        cells = ["\n".join(filter(None, _texts(name, setting))) for setting in settings]
        table.add_row(_label(name), *cells, *([_compared(name, settings)] if compared else []))
    return table


def _a_row_each(study: str, settings: Sequence[Setting], shown: Sequence[str], width: int) -> Group:
    """A block a quantity, in it a row a setting: its values in the order of the swept keys."""
    keys = ", ".join(short_names(settings[0].swept).values())
    head = [keys, "seeds", "mean ± sd", "95 % interval", "converged, bn"]
    blocks = {name: [_row(name, setting) for setting in settings] for name in shown}
    every = [head, *(row for block in blocks.values() for row in block)]
    widths = [max(_width(row[column]) for row in every) for column in range(len(head))]
    room = width - sum(widths[1:]) - GAP * len(widths)
    widths[0] = min(widths[0], max(room, NARROWEST))
    parts: list[Text | Table] = [Text(study, style="italic"), _grid([head], widths, "bold")]
    for name, block in blocks.items():
        compared = _compared(name, settings) if len(settings) == 2 else ""
        beside = f"  (intervals: {compared})" if compared else ""
        parts += [Text(f"\n{_label(name)}{beside}", style="bold"), _grid(block, widths)]
    return Group(*parts, Text())


def _row(name: str, setting: Setting) -> list[str]:
    values = ", ".join(value_text(key, value) for key, value in setting.swept.items())
    mean, interval, known, lost = _texts(name, setting)
    known = known.removeprefix("converged ").replace("bn ", "")
    beside = "\n".join(filter(None, [known, lost])) if mean else ""
    return [values, str(len(setting.seeds)), mean or lost, interval, beside]


def _grid(rows: Sequence[Sequence[str]], widths: Sequence[int], style: str = "") -> Table:
    table = Table.grid()
    for column, width in enumerate(widths):
        table.add_column(width=GAP + width, justify="right" if column else "left", overflow="fold")
    for first, *others in rows:
        table.add_row(Padding(first, (0, 0, 0, GAP)), *others, style=style)
    return table


def _width(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def _label(name: str) -> str:
    return f"{name} (%)" if name in PERCENT else name


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _texts(name: str, setting: Setting) -> tuple[str, str, str, str]:
    """Mean ± sd, interval, how many converged, how many failed; empty what there is not."""
    lost = f"failed {setting.lost[name]}/{len(setting.seeds)}" if name in setting.lost else ""
    cell = setting.cells.get(name)
    if cell is None:
        return "", "", "", lost
    factor, count = 100 if name in PERCENT else 1, len(cell.values)
    mean, sd, low, high = (factor * number for number in cell.interval[:4])
    known = "" if cell.converged is None else f"converged {cell.converged}/{count}, "
    return (
        f"{mean:.4g} ± {sd:.2g}" if count > 1 else f"{mean:.4g}",
        f"[{low:.4g}, {high:.4g}]" if count > 1 else "",
        known and f"{known}bn {cell.batch_norm}",
        lost,
    )


def _compared(name: str, settings: Sequence[Setting]) -> str:
    cells = [setting.cells.get(name) for setting in settings]
    if any(cell is None or len(cell.values) < 2 for cell in cells):
        return ""
    first, second = (cell.interval for cell in cells if cell is not None)
    return "overlap" if statistics.overlap(first, second) else "disjoint"
