"""Records that are damaged, cut short or missing: named, repaired, never lost."""

import json
import shutil

import pytest
import yaml
from runs.studies import contents, equal, folders, lines, sharpflat, write

import sharpflat as sf
from sharpflat.runs import files


def test_a_temporary_file_left_by_a_kill_is_no_snapshot(tiny, tmp_path):
    run = sf.Run(shutil.copytree(folders(tiny)[0], tmp_path / "run"))
    (run.folder / "snapshots" / ".9999-abc.npz").write_bytes(b"half")
    assert equal(run.params, sf.Run(folders(tiny)[0]).params)


def test_a_damaged_snapshot_is_named(tiny, tmp_path):
    run = sf.Run(shutil.copytree(folders(tiny)[0], tmp_path / "run"))
    last = max((run.folder / "snapshots").iterdir(), key=lambda path: int(path.stem))
    last.write_bytes(last.read_bytes()[:-200])
    with pytest.raises(sf.InputError, match=rf"snapshot .*{last.name}"):
        _ = run.params


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("measurements.jsonl", "value"),
        ("measurements.jsonl", "standard_error"),
        ("history.jsonl", "train_loss"),
        ("history.jsonl", "test_accuracy"),
    ],
)
@pytest.mark.parametrize("value", ["abc", True, [1.0]])
def test_a_line_with_something_else_for_a_number_is_named(tiny, tmp_path, file, field, value):
    root = shutil.copytree(tiny, tmp_path / "results")
    path = sf.load_runs(root, "tiny")[0].folder / file
    rows = lines(path)
    rows[1][field] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = sharpflat("measure", root / "studies" / "tiny" / "config.yaml", "--root", root).complaint
    assert (
        said
        == f"{path}: line 2 is damaged; mend or remove it: {field!r} is no number, but {value!r}"
    )


def test_a_damaged_record_keeps_no_other_run_from_being_measured(tiny, tmp_path):
    root = shutil.copytree(tiny, tmp_path / "results")
    first, *others, last = sf.load_runs(root, "tiny")
    first.measurements_file.write_text("{\n")
    (last.folder / "status.json").write_text("{")
    config = root / "studies" / "tiny" / "config.yaml"
    asked = "measure={metrics: [parameter_norm]}"
    said = sharpflat("measure", config, asked, "--root", root)
    assert said.code == 2
    assert f"{first.measurements_file}: line 1 is damaged" in said.err
    assert f"{last.folder / 'status.json'}: is damaged" in said.err
    for run in others:
        assert run.measurements[-1]["metric"] == "parameter_norm"


def test_a_measure_of_runs_that_have_not_finished_says_so(tiny, tmp_path):
    root = shutil.copytree(tiny, tmp_path / "results")
    run = sf.load_runs(root, "tiny")[0]
    (run.folder / "status.json").write_text('{"status": "running", "reason": null}')
    said = sharpflat("measure", root / "studies" / "tiny" / "config.yaml", "--root", root)
    assert said.code == 0
    assert "3 of 4 runs are finished; others are not measured" in said.err


def test_a_line_cut_short_is_ignored_and_repaired(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert files.read_lines(path) == []
    files.append_lines(path, [{"a": 1}, {"a": float("nan")}])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"a": 3, "b": [1, 2')
    assert files.read_lines(path) == [{"a": 1}, {"a": None}]
    files.append_lines(path, [{"a": 4}])
    assert path.read_bytes() == whole + b'{"a": 4}\n'


def test_a_measurement_cut_short_is_made_again(tiny, tmp_path):
    root = shutil.copytree(tiny, tmp_path / "results")
    run = sf.load_runs(root, "tiny")[1]
    before, table = run.measurements_file.read_bytes(), root / "studies" / "tiny" / "table.csv"
    expected = table.read_bytes()
    run.measurements_file.write_bytes(before[:-30])
    assert len(run.measurements) == 2
    config = yaml.safe_load((root / "studies" / "tiny" / "config.yaml").read_text())
    sf.run(sf.load_config(write(tmp_path, **config)), root)
    again, first = lines(run.measurements_file), before.decode().splitlines()
    assert len(again) == 3
    assert [row["value"] for row in again] == [json.loads(row)["value"] for row in first]
    assert table.read_bytes() == expected


def test_only_what_is_asked_for_is_read(tiny):
    """Reading records changes nothing on the disk."""
    before = contents(tiny)
    for run in sf.load_runs(tiny, "tiny"):
        _ = run.config, run.history, run.measurements, run.params, run.model_state, run.status
    assert sharpflat("show", "tiny", "--root", tiny).code == 0
    assert contents(tiny) == before


def test_the_end_is_where_the_history_ends(tiny, tmp_path):
    """An attempt that was given up may have gone further, and left its snapshot."""
    (folder, *_) = folders(tiny)
    shutil.copytree(folder, tmp_path / folder.name)
    run = sf.Run(tmp_path / folder.name)
    snapshots = run.folder / "snapshots"
    last = run.history[-1]["step"]
    shutil.copy(snapshots / "0.npz", snapshots / f"{last + 10 * run.updates_an_epoch}.npz")
    assert run.step_of(None) == last
    assert equal(run.params, sf.Run(folder).params)
    with pytest.raises(sf.InputError, match="has no snapshot after epoch 13"):
        run.snapshot(13)


def test_a_run_without_its_history_says_what_is_missing(tmp_path):
    (run,) = sf.train(sf.load_config(write(tmp_path, sweep=None, seeds=1)), tmp_path / "results")
    file = run.folder / "history.jsonl"
    for spoil in (lambda file: file.write_text(""), lambda file: file.unlink()):
        spoil(file)
        with pytest.raises(sf.InputError, match=r"history.jsonl: holds no epoch of a run that has"):
            _ = sf.Run(run.folder).params
