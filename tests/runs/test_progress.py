"""Progress without a terminal."""

import io

import pytest
from rich.console import Console

from sharpflat.runs import progress


@pytest.fixture
def lines(monkeypatch):
    """What is printed."""
    found = []
    monkeypatch.setattr(progress.console, "print", lambda text, **how: found.append(text))
    return found


def test_the_work_that_begins_is_named_when_it_begins(lines):
    """And not when the next half minute is over, by which time it may be another's turn."""
    task = progress.Reporter(None, quiet=False).task("measure", 2)
    task.note("short")
    task.update(1)
    task.note("long")
    assert lines == ["measure: 0 of 2  short", "measure: 1 of 2  long"]


def test_updates_are_half_a_minute_apart(lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    task = progress.Reporter(None, quiet=False).task("train", 100)
    for now[0] in range(0, 100, 10):
        task.update(now[0])
    assert lines == ["train: 40 of 100", "train: 80 of 100"]


def test_steps_are_whole_numbers(lines):
    task = progress.Reporter(None, quiet=False).task("train", 40000)
    task.update(13389.9)
    task.note("on")
    assert lines == ["train: 13389 of 40000  on"]


def test_a_bar_names_the_work_and_goes_when_it_is_done(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(progress, "console", terminal)
    with progress.shown() as reporter:
        task = reporter.task("measure", 2)
        task.note("hessian_trace")
        (bar,) = reporter._bars.tasks
        assert (bar.description, bar.completed, bar.total) == ("measure  hessian_trace", 0, 2)
        task.update(1)
        assert (bar.description, bar.completed) == ("measure  hessian_trace", 1)
        task.finish("2 measured")
        assert not reporter._bars.tasks
    assert "measure: 2 measured (" in terminal.file.getvalue()


def test_quiet_is_quiet(lines):
    task = progress.SILENT.task("measure", 2)
    task.note("anything")
    task.update(1)
    task.finish()
    assert lines == []
