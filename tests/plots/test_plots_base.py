"""Base and settings: saving, style, import rules, which keys tell settings apart."""

import csv
import itertools
import subprocess
import sys
from typing import get_args

import matplotlib
import pytest

from sharpflat.plots import Plot, Width, base, figures, save, style
from sharpflat.plots.settings import left_out, settings

BUILT_IN = [name for name, entry in figures.items() if entry.built_in]


@pytest.fixture
def plot():
    with style():
        figure, (ax,) = base.panels(1, "column", 1, 2)
        (line,) = ax.plot([1, 2], [3, 4], label="a line")
        base.legend_above(figure, [line])
    rows = [{"x": 1, "y": 1 / 3}, {"x": 2, "y": None, "z": "a, b"}]
    return Plot(figure, rows, "A caption: α.")


def test_importing_plots_imports_no_jax():
    modules = "{'jax', 'matplotlib.pyplot'} & set(sys.modules)"
    code = f"import sys, sharpflat.plots; sys.exit(bool({modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_figure_has_the_two_widths():
    assert {"line", "sharpness_by_batch_size", "training_curves"} <= set(BUILT_IN)
    for name in BUILT_IN:
        assert figures[name].arguments({"width": "column"})["width"] == "column"


def test_save_writes_four_files_without_losing_a_digit(plot, tmp_path):
    files = save(plot, tmp_path / "new" / "folder", "name")
    assert [file.name for file in files] == ["name.png", "name.pdf", "name.csv", "name.txt"]
    assert files[3].read_text() == "A caption: α.\n"
    with files[2].open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {"x": "2", "y": "", "z": "a, b"}
    assert float(rows[0]["y"]) == 1 / 3


def test_pdf_has_real_text_and_no_dates_and_png_no_version(plot, tmp_path):
    png, pdf, *_ = save(plot, tmp_path, "name")
    assert b"/CreationDate" not in pdf.read_bytes()
    assert b"/Type0" in pdf.read_bytes()  # fonttype 42; Type 3 draws glyphs as pictures
    assert b"/Type3" not in pdf.read_bytes()
    assert b"Software" not in png.read_bytes()


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("width", get_args(Width))
def test_figures_draw_finite_rows_and_save_the_same_bytes_twice(name, width, study, tmp_path):
    first, second = (figures[name](study, width=width) for _ in range(2))
    assert first.figure.get_figwidth() == {"column": 3.35, "page": 6.9}[width]
    assert first.caption.startswith("synthetic: ")
    for row in first.rows:
        assert any(isinstance(value, float) for value in row.values())
        for value in row.values():
            assert not isinstance(value, float) or abs(value) < float("inf")
    for a, b in zip(save(first, tmp_path, "a"), save(second, tmp_path, "b"), strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_the_users_own_style_changes_nothing(study, tmp_path):
    plain = save(figures["line"](study, width="column"), tmp_path, "plain")
    mine = {"font.size": 20, "axes.grid": True, "savefig.dpi": 50, "lines.linewidth": 9}
    with matplotlib.rc_context(mine):
        styled = save(figures["line"](study, width="column"), tmp_path, "styled")
    assert plain[0].read_bytes() == styled[0].read_bytes()


def test_a_note_ends_every_caption(make, study):
    noted = make.study(study.runs, study.landscapes, note="Seeds 0 to 4.")
    for name in BUILT_IN:
        assert figures[name](noted).caption.endswith(" Seeds 0 to 4.")


def test_drawn_text_stays_inside_the_figure(study):
    for name in BUILT_IN:
        for width in get_args(Width):
            figure = figures[name](study, width=width).figure
            with style():
                figure.draw_without_rendering()
                tight = figure.get_tightbbox()
            assert tight.x0 >= -0.01
            assert tight.x1 <= figure.get_figwidth() + 0.01
            assert tight.y1 <= figure.get_figheight() + 0.01


def test_legend_lies_above_the_panels(study):
    for name in ("line", "training_curves"):
        figure = figures[name](study, width="column").figure
        with style():
            figure.draw_without_rendering()
        legend = figure.legends[0].get_window_extent()
        assert all(ax.get_window_extent().y1 <= legend.y0 for ax in figure.axes)


def test_ticks_in_percent_keep_the_decimals_they_need():
    with style():
        figure, (ax,) = base.panels(1, "column", 1, 2)
        ax.plot([0, 1], [0.9505, 0.9635])
        base.percent_axis(ax.yaxis)
        figure.draw_without_rendering()
        labels = [label.get_text() for label in ax.get_yticklabels()]
    assert {"95.5", "96.0"} <= set(labels)
    assert len({float(label) for label in labels}) == len(labels)


def test_log_ticks_are_plain_numbers_or_powers():
    def labels(low, high):
        with style():
            figure, (ax,) = base.panels(1, "column", 1, 2)
            ax.set_yscale("log")
            ax.set_ylim(low, high)
            base.log_axis(ax.yaxis)
            figure.draw_without_rendering()
            return {t.get_text() for t in (*ax.get_yticklabels(), *ax.get_yticklabels(minor=True))}

    assert {"1", "2", "5", "10"} <= labels(0.9, 12)
    assert "3" not in labels(0.9, 12)
    assert {"$10^{-3}$", "$10^{2}$"} <= labels(1e-3, 1e2)
    assert r"$2\cdot10^{-5}$" in labels(1e-5, 9e-5)


@pytest.mark.parametrize(
    ("low", "high"),
    [(5.5, 9.5), (2.1, 4.9), (0.61, 0.63), (2.1, 10.4), (1.2e-5, 1.9e-5), (3e6, 8e6), (97, 102)],
)
def test_narrow_log_axes_have_labels_with_room_between_them(low, high):
    with style():
        figure, (ax,) = base.panels(1, "column", 1, 1.9)
        ax.set_yscale("log")
        ax.set_ylim(low, high)
        base.log_axis(ax.yaxis)
        figure.draw_without_rendering()
        ticks = [*ax.yaxis.get_major_ticks(), *ax.yaxis.get_minor_ticks()]
        drawn = [t.label1 for t in ticks if low <= t.get_loc() <= high and t.label1.get_text()]
        boxes = sorted((t.get_window_extent() for t in drawn), key=lambda box: box.y0)
    assert len({text.get_text() for text in drawn}) == len(drawn) >= 2
    assert all(below.y1 < above.y0 for below, above in itertools.pairwise(boxes))


def test_settings_are_ordered_and_leave_out_keys_that_follow_the_batch_size(make):
    key = "train.optimizer.learning_rate"
    runs = [
        make.run(size, seed, 5, **{"train.epochs": 10 * size, key: rate})
        for size in (1000, 8) for rate in (0.1, 0.01) for seed in (0, 1)
    ]  # fmt: skip
    found = settings(make.study(runs))
    assert [setting.label for setting in found] == [
        "batch size 8, learning rate 0.01",
        "batch size 8, learning rate 0.1",
        "batch size 1000, learning rate 0.01",
        "batch size 1000, learning rate 0.1",
    ]
    assert [len(setting.runs) for setting in found] == [2] * 4


def test_settings_that_are_mappings_or_missing_have_words_and_plain_cells(make):
    adam, sam = {"name": "adam", "learning_rate": 0.001}, {"name": "sam", "rho": 0.05}
    runs = [make.run(8, 0, 5, **{"train.optimizer": rule}) for rule in (sam, adam, None)]
    found = settings(make.study(runs))
    assert [s.series for s in found] == [
        "no optimizer",
        "optimizer adam learning rate 0.001",
        "optimizer sam rho 0.05",
    ]
    assert found[1].cells["train.optimizer"] == '{"learning_rate": 0.001, "name": "adam"}'


def test_only_finished_runs_are_drawn_and_the_caption_counts_the_others(make):
    runs = [make.run(8, seed, 5) for seed in range(3)] + [make.run(1000, 0, 5)]
    runs += [make.run(8, 3, 2, status="diverged"), make.run(8, 4, 2, status="running")]
    study = make.study(runs)
    assert [len(setting.runs) for setting in settings(study)] == [3, 1]
    assert left_out(study) == "Not drawn, of 6 runs: 1 diverged, 1 running."
    for name in ("training_curves", "sharpness_by_batch_size"):
        assert left_out(study) in figures[name](study).caption
    assert left_out(make.study(runs[:3])) == ""
