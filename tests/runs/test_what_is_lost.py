"""Finished runs of which something was lost: named, kept, and no number without it."""

import shutil

import pytest
from runs.kills import history, same
from runs.studies import NORM, equal, folders, sharpflat, write

import sharpflat as sf
from sharpflat.runs import files, member
from sharpflat.runs.snapshots import load_arrays
from sharpflat.runs.table import read_table


@pytest.fixture
def root(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "results")


PICKY = NORM.replace("weight_norm", "picky").replace(
    "    return", "    raise ValueError('not today')\n    return"
)


def config_of(root):
    return root / "studies" / "tiny" / "config.yaml"


@pytest.mark.parametrize("torn", ["", '{"epoch": 3, "st'])
def test_a_history_cut_short_gives_no_numbers(root, torn):
    """One of four runs keeps two of its three epochs."""
    first, *_ = sf.load_runs(root, "tiny")
    file = first.folder / "history.jsonl"
    cut = "".join(file.read_text().splitlines(keepends=True)[:2]) + torn
    file.write_text(cut)
    line = f"{file}: has 2 of the 3 epochs of a run that has ended; bring the others back, or move"
    assert line in "".join(sharpflat("show", "tiny", "--root", root).out.split("\n"))
    drawn = sharpflat("plot", "tiny", "--root", root)
    assert f"sharpflat: drawn without it: {line}" in drawn.err
    said = sharpflat("run", config_of(root), "--root", root)
    assert said.code == 2
    assert said.err.splitlines()[-1].startswith(f"sharpflat: {line}")
    rows = {row["run"]: row for row in read_table(root / "studies" / "tiny" / "table.csv")}
    assert rows[first.id]["status"] == "damaged"
    assert rows.pop(first.id)["test_accuracy"] is None
    assert [row["status"] for row in rows.values()] == ["finished"] * 3
    assert file.read_text() == cut


def test_a_record_of_before_says_at_least_that_its_history_is_empty(root):
    run, *_ = sf.load_runs(root, "tiny")
    record = run.provenance
    assert record.pop("epochs") == 3
    files.write_json(run.folder / "provenance.json", record)
    assert len(run.history) == 3
    (run.folder / "history.jsonl").write_text("")
    with pytest.raises(sf.InputError, match=r"history.jsonl: holds no epoch of a run that has"):
        _ = run.params


def test_a_final_snapshot_that_is_gone_is_named(root):
    run = sf.Run(folders(root)[0])
    file = run.folder / "snapshots" / f"{run.history[-1]['step']}.npz"
    file.unlink()
    with pytest.raises(sf.InputError, match=f"{file}: is not there; bring it back"):
        _ = run.params


SPOILT = [
    ("*.npz", lambda file: file.write_bytes(file.read_bytes()[:50])),
    ("[!i]*.json", lambda file: file.write_text("[]")),
    ("index.json", lambda file: file.write_text("5")),
]


@pytest.mark.parametrize(("name", "spoil"), SPOILT, ids=["arrays", "settings", "index"])
def test_figures_are_drawn_without_a_landscape_that_nobody_can_read(root, name, spoil):
    folder = root / "studies" / "tiny" / "landscapes"
    picture = root / "studies" / "tiny" / "figures" / "training_curves.png"
    (file,) = folder.glob(name)
    spoil(file)
    picture.unlink()
    said = sharpflat("plot", "tiny", "--root", root)
    assert said.code == 1
    assert f"sharpflat: {file}: " in said.err
    assert f"or move {folder} away, and `sharpflat run` computes it anew" in said.err
    assert picture.exists()
    folder.rename(root / "away")
    assert sharpflat("run", config_of(root), "--root", root).code == 0
    assert len([*folder.glob("*.npz")]) == 1


def test_a_landscape_whose_numbers_are_gone_is_computed_anew(root):
    (file,) = (root / "studies" / "tiny" / "landscapes").glob("*.npz")
    before = load_arrays(file)
    file.unlink()
    assert sharpflat("plot", "tiny", "--root", root).code == 1
    assert sharpflat("run", config_of(root), "--root", root).code == 0
    assert equal(load_arrays(file), before)


def test_a_metric_that_fails_is_told_beside_what_is_refused(root, tmp_path):
    """And of a run whose config is gone, too; the refusal has the exit status."""
    (tmp_path / "picky.py").write_text(PICKY)
    asked = ["plugins=[picky.py]", "measure.metrics=[picky]", "--root", root]
    config = shutil.copy(config_of(root), tmp_path / "study.yaml")
    first, second, *_ = sf.load_runs(root, "tiny")
    (second.folder / "config.yaml").unlink()
    said = sharpflat("run", config, *asked)
    assert said.code == 1
    for run in (first, second):
        assert f"run {run.id}: picky: ValueError: not today" in said.err
    file = first.folder / "history.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    measured = first.measurements_file.read_bytes()
    said = sharpflat("run", config, *asked)
    assert said.code == 2
    assert said.err.splitlines()[-1].startswith(f"sharpflat: {file}: has 2 of the 3 epochs")
    assert f"run {second.id}: picky: ValueError: not today" in said.err
    assert first.measurements_file.read_bytes() == measured, "no line of what was refused"


def test_a_kill_before_its_status_says_that_it_ended(tmp_path, monkeypatch):
    """Its history and provenance do; it is begun anew, and ends as it would have."""
    config = sf.load_config(write(tmp_path, sweep=None, seeds=1))
    (unbroken,) = sf.train(config, tmp_path / "unbroken")

    write_status = member.Member._write_status

    def killed(self, status, reason):
        if status == "finished":
            raise KeyboardInterrupt
        write_status(self, status, reason)

    with monkeypatch.context() as patch:
        patch.setattr(member.Member, "_write_status", killed)
        with pytest.raises(KeyboardInterrupt):
            sf.train(config, tmp_path / "killed")
    (run,) = sf.load_runs(tmp_path / "killed")
    assert run.provenance["epochs"] == 3
    (run,) = sf.train(config, tmp_path / "killed")
    assert run.finished
    assert same(run, unbroken)
    assert history(run) == history(unbroken)
