"""Finished runs of which something was lost: named, kept, and no number without it."""

import shutil

import pytest
from runs.studies import folders, sharpflat

import sharpflat as sf
from sharpflat.runs import files
from sharpflat.runs.table import read_table


@pytest.fixture
def root(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "results")


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


@pytest.mark.parametrize("spoil", [lambda file: file.write_bytes(file.read_bytes()[:50]),
                                   lambda file: file.unlink()])  # fmt: skip
def test_figures_are_drawn_without_a_landscape_that_nobody_can_read(root, spoil):
    folder = root / "studies" / "tiny" / "landscapes"
    (file,) = folder.glob("*.npz")
    spoil(file)
    (root / "studies" / "tiny" / "figures" / "training_curves.png").unlink()
    for asked in (("plot", "tiny"), ("run", config_of(root))):
        said = sharpflat(*asked, "--root", root)
        assert said.code == 1
        assert f"sharpflat: {file}: " in said.err
        assert f"or move {folder} away, and `sharpflat run` computes it anew" in said.err
        assert "training_curves.png" in said.out or "table.csv and figures in" in said.out
    assert (root / "studies" / "tiny" / "figures" / "training_curves.png").exists()
    folder.rename(root / "away")
    assert sharpflat("run", config_of(root), "--root", root).code == 0
    assert len([*folder.glob("*.npz")]) == 1
