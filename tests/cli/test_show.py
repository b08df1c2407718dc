"""What `show` says of studies large, half done, failed or damaged; and what `--dry-run` lists."""

import json
import shutil

import pytest
from runs.studies import NORM, sharpflat, write

import sharpflat as sf
from sharpflat import registry
from sharpflat.report.names import entry_text, setting_text
from sharpflat.runs import files
from sharpflat.runs.table import read_table, write_table

FAULTY = (
    NORM
    + '''

@sf.metric
def faulty(objective, key) -> sf.Estimate:
    """Raises."""
    raise RuntimeError("out of luck")
'''
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sweep of six settings, one of whose two measures always fails."""
    folder = tmp_path_factory.mktemp("show")
    (folder / "own.py").write_text(FAULTY)
    sweep = {"train.batch_size": [8, 20, 40], "train.optimizer.learning_rate": [0.01, 0.02]}
    measure = {"metrics": ["weight_norm", "faulty"]}
    path = write(folder, plugins=["own.py"], sweep=sweep, measure=measure)
    entries = dict(registry.metrics._entries)
    assert sharpflat("run", path, "--root", folder / "results").code == 1
    registry.metrics._entries = entries
    return folder / "results"


@pytest.fixture
def root(made, tmp_path):
    """A copy to damage."""
    return shutil.copytree(made, tmp_path / "results")


def show(root):
    outcome = sharpflat("show", "tiny", "--root", root)
    assert outcome.code == 0, outcome
    return outcome.out


def rewrite(root, change):
    """The table again, after `change(index, row)` of each row."""
    path = root / "studies" / "tiny" / "table.csv"
    rows = read_table(path)
    for index, row in enumerate(rows):
        change(index, row)
    write_table(path, rows)


@pytest.mark.parametrize("width", [80, 110])
def test_many_settings_are_rows_and_nothing_is_cut(root, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = show(root).splitlines()
    assert "…" not in "".join(lines)
    start = lines.index("weight_norm")
    block = lines[start + 1 : start + 7]
    assert [line.split()[:2] for line in block] == [
        [f"{size},", rate] for size in (8, 20, 40) for rate in ("0.01", "0.02")
    ]
    for line in block:
        assert " ± " in line
        assert line.count("[") == line.count("]") == 1
        assert line.rstrip().endswith("2/2, running")
    assert all(len(line) <= max(width, 110) for line in lines[: start + 7])


def test_settings_are_columns_where_they_fit(root):
    from rich.console import Console

    from sharpflat.report import study_table

    def turned(width):
        console = Console(width=width)
        with console.capture() as capture:
            console.print(study_table(root, "tiny", width))
        return capture.get()

    rewrite(root, lambda index, row: row.update({"train.optimizer.learning_rate": 0.01}))
    assert "│" in turned(200)
    narrow = turned(80)
    assert "│" not in narrow
    assert "batch_size," in narrow


def test_a_measure_that_failed_everywhere_keeps_its_row(root):
    lines = show(root).splitlines()
    start = lines.index("faulty")
    assert [line.split()[-2:] for line in lines[start + 1 : start + 7]] == [["failed", "2/2"]] * 6


def test_runs_are_named_as_audit_takes_them(root):
    out = show(root)
    runs = sf.load_runs(root, "tiny")
    ids = ", ".join(run.id[:6] for run in runs[:2])
    assert f"  batch_size=8, learning_rate=0.01: {ids}\n" in out
    assert "sharpflat audit RUN" in out
    assert "runs trained" not in out
    assert "so far" not in out


def test_one_seed_is_no_seeds(tmp_path):
    assert "(1 seed)" in sharpflat("run", write(tmp_path, seeds=1), "--root", tmp_path / "r").out


def test_a_study_that_was_interrupted_before_its_table(root):
    folder = root / "studies" / "tiny"
    (folder / "table.csv").unlink()
    first, *others = json.loads((folder / "runs.json").read_text())
    for name in others[1:]:
        shutil.rmtree(root / "runs" / name)
    for name in (first, others[0]):
        (root / "runs" / name / "measurements.jsonl").unlink()
    (root / "runs" / others[0] / "status.json").write_text('{"status": "running", "reason": null}')
    assert " ".join(show(root).split()) == (
        "study tiny: begun, 1 of 12 runs trained (1 interrupted, 10 not begun), none "
        "measured so far"
    )
    assert sharpflat("show", "--root", root).out == show(root)


def test_a_run_that_is_at_work_is_not_taken_for_an_interrupted_one(root):
    rows = read_table(root / "studies" / "tiny" / "table.csv")
    rows[0]["status"] = "running"
    write_table(root / "studies" / "tiny" / "table.csv", rows)
    run = sf.load_runs(root, "tiny")[0]
    (run.folder / "status.json").write_text('{"status": "running", "reason": null}')
    assert f"run {run.id} (seed 0): interrupted" in show(root)
    with files.claimed(run.folder):
        assert f"run {run.id} (seed 0): running" in show(root)
        assert run.state == "running"
    (run.folder / "status.json").write_text("{")
    assert f"run {run.id} (seed 0): damaged" in show(root)


def test_a_study_that_is_partly_trained_and_partly_measured(root):
    ids = json.loads((root / "studies" / "tiny" / "runs.json").read_text())
    shutil.rmtree(root / "runs" / ids[-1])

    def forget(index, row):
        if index >= 4:
            row.update(weight_norm=None, weight_norm_converged=None)

    rewrite(root, forget)
    out = show(root)
    assert "11 of 12 runs trained (1 not begun)" in out
    assert "measured on 4 of 12 trained runs so far: weight_norm" in out


def test_measurements_asked_of_some_seeds_are_not_missed_in_others(tmp_path):
    measure = {"metrics": ["path_norm"], "seeds": [1]}
    path = write(tmp_path, measure={**measure, "chunk": 40})
    outcome = sharpflat("run", path, "--root", tmp_path / "results")
    assert "so far" not in outcome.out


def test_damaged_records_are_said(root):
    run = sf.load_runs(root, "tiny")[0]
    with run.measurements_file.open("a") as file:
        file.write("{broken\n")
    (root / "studies" / "tiny" / "runs.json").write_text("[")
    out = "".join(show(root).split())
    assert f"{run.measurements_file}:line3isdamaged".replace(" ", "") in out
    assert "runs.json:isdamaged" in out
    (root / "studies" / "tiny" / "table.csv").write_text("run,seed\n")
    assert "table.csv: is damaged" in sharpflat("show", "tiny", "--root", root).complaint


def test_a_dry_run_names_seeds_and_entries(tmp_path):
    optimizers = [{"name": "sam", "rho": 0.1}, {"name": "adam", "learning_rate": 0.01}]
    path = write(tmp_path, sweep={"train.optimizer": optimizers})
    lines = sharpflat("run", path, "--root", tmp_path, "--dry-run").out.splitlines()[:4]
    assert [line.split("  ")[1] for line in lines] == [
        f"batch_size=8, optimizer={entry}, seed={seed}"
        for entry in ("sam[rho=0.1]", "adam[learning_rate=0.01]") for seed in (0, 1)
    ]  # fmt: skip


def test_settings_have_short_names_that_tell_them_apart():
    assert setting_text({"train.batch_size": 8, "model.name": "mlp", "dataset.name": "digits"}) == (
        "batch_size=8, model=mlp, dataset=digits"
    )
    assert setting_text({"model.width": 8, "dataset.width": 4}) == "model.width=8, dataset.width=4"
    assert setting_text({"train.optimizer": {"name": "own", "x": 1}}) == "optimizer=own[x=1]"
    assert entry_text({}, "own", {}) == "own"
