"""Records that are damaged, cut short or missing: named, repaired, never lost."""

import json
import shutil

import pytest
import yaml
from runs.interrupted import interrupted
from runs.studies import contents, equal, folders, lines, sharpflat, write

import sharpflat as sf
from sharpflat.runs import Refused, files, study
from sharpflat.runs.progress import Reporter
from sharpflat.runs.table import read_table


def test_a_temporary_file_left_by_a_kill_is_no_snapshot(tiny, tmp_path):
    run = sf.Run(shutil.copytree(folders(tiny)[0], tmp_path / "run"))
    (run.folder / "snapshots" / ".9999-abc.npz").write_bytes(b"half")
    assert equal(run.params, sf.Run(folders(tiny)[0]).params)


def test_a_damaged_snapshot_is_named(tiny, tmp_path):
    run = sf.Run(shutil.copytree(folders(tiny)[0], tmp_path / "run"))
    last = max((run.folder / "snapshots").iterdir(), key=lambda path: int(path.stem))
    last.write_bytes(last.read_bytes()[:-200])
    with pytest.raises(sf.InputError, match=f"{last}: cannot be read"):
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
    with files.claimed(sf.load_runs(root, "tiny")[1].folder):
        said = sharpflat("measure", root / "studies" / "tiny" / "config.yaml", "--root", root)
    assert "another process works on it" in said.err
    assert "3 of 4 runs are finished; others are not measured" in said.err


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
        with pytest.raises(sf.InputError, match=r"history.jsonl: has 0 of the 3 epochs of a run "):
            _ = sf.Run(run.folder).params


def cells_of(tmp_path, *overrides):
    """Four runs that `sf.train` trains one after another."""
    return sf.load_config(write(tmp_path), ["together=false", *overrides])


def test_a_damaged_record_keeps_no_other_run_from_being_trained(tmp_path):
    root = tmp_path / "results"
    (first,) = sf.train(cells_of(tmp_path, "seeds=1", "train.batch_size=8"), root)
    first.measurements_file.write_text("{\n")
    with pytest.raises(sf.InputError, match=r"measurements.jsonl: line 1 is damaged"):
        sf.train(cells_of(tmp_path), root)
    assert [run.finished for run in sf.load_runs(root)] == [True] * 4


DAMAGE = [("status.json", "{"), ("provenance.json", "{"), ("provenance.json", "[]")]
DAMAGE += [("provenance.json", None), ("provenance.json", '{"data_digest": null}')]
DAMAGE += [("provenance.json", '{"data_digest": "x", "together": {"numbers": {}}}')]
DAMAGE += [("status.json", None), ("status.json", '{"status": null, "reason": null}')]


def kept(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spoil(path, content):
    path.unlink()
    if content is not None:
        path.write_text(content)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("file", "content"), [*DAMAGE, ("history.jsonl", '{"epoch": 1}\n')])
def test_a_damaged_run_is_refused_alone_and_nothing_of_it_is_lost(
    tmp_path, monkeypatch, file, content, together
):
    """Stopped on its way, and asked for with three others."""
    root = tmp_path / "results"
    first = cells_of(tmp_path, "seeds=1", "train.batch_size=8", "train.epochs=6")
    interrupted(first, root, monkeypatch, 4)
    (run,) = sf.load_runs(root)
    spoil(run.folder / file, content)
    before = kept(run.folder)
    with pytest.raises(sf.InputError, match=rf"{run.id}/{file}: (is|has|line 1 is) "):
        sf.train(cells_of(tmp_path, "train.epochs=6", f"together={str(together).lower()}"), root)
    assert kept(run.folder) == before
    others = [one for one in sf.load_runs(root) if one.id != run.id]
    assert [one.finished for one in others] == [True] * 3


TORN = [("history.jsonl", "{\n"), ("tracked.jsonl", "{\n")]


@pytest.mark.parametrize(("file", "content"), [*DAMAGE, *TORN])
def test_those_that_were_stopped_with_a_damaged_run_wait_for_it(
    tmp_path, monkeypatch, file, content
):
    root = tmp_path / "results"
    asked = ["seeds=3", "train.batch_size=8", "train.epochs=6", "together=true"]
    three = cells_of(tmp_path, *asked)
    interrupted(three, root, monkeypatch, 4)
    *others, run = sf.load_runs(root)
    (run.folder / file).touch()
    (run.folder / file).rename(tmp_path / "kept")
    if content is not None:
        (run.folder / file).write_text(content)
    before = [kept(other.folder) for other in others]
    with pytest.raises(sf.InputError, match=rf"{run.id}/{file}: (is|line 1 is) ") as refused:
        sf.train(three, root)
    assert "away" not in str(refused.value), "the others cannot go on without it"
    assert [kept(other.folder) for other in others] == before
    (tmp_path / "kept").replace(run.folder / file)
    for one in sf.train(three, root):
        assert one.finished
        assert len(one.provenance["resumed"]) == 1


def test_those_that_would_begin_anew_with_a_torn_history_wait_for_it(tmp_path, monkeypatch):
    """Stopped together, and none of their checkpoints can be gone on from."""
    root = tmp_path / "results"
    three = cells_of(tmp_path, "seeds=3", "train.batch_size=8", "together=true")
    interrupted(three, root, monkeypatch, 2)
    *others, run = sf.load_runs(root, "tiny")
    (run.folder / "history.jsonl").write_text("{\n")
    for file in root.glob("runs/*/provenance.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "attempt": "another"}))
    before = [kept(other.folder) for other in others]
    with pytest.raises(sf.InputError, match=rf"{run.id}/history.jsonl: line 1 is damaged"):
        sf.train(three, root)
    assert [kept(other.folder) for other in others] == before


def test_a_damaged_history_holds_up_none_that_would_begin_with_it(tmp_path, monkeypatch):
    root = tmp_path / "results"
    three = cells_of(tmp_path, "seeds=3", "train.batch_size=8", "together=true")
    interrupted(three, root, monkeypatch, 2)
    shutil.rmtree(next(root.glob("groups/*")))
    first, run, last = sf.load_runs(root, "tiny")
    (run.folder / "history.jsonl").write_text("{\n")
    with pytest.raises(sf.InputError, match=rf"{run.id}/history.jsonl: line 1 is damaged"):
        sf.train(three, root)
    assert first.finished
    assert last.finished


def test_what_was_stopped_with_a_run_that_is_gone_is_not_begun_anew(tmp_path, monkeypatch):
    root = tmp_path / "results"
    three = cells_of(tmp_path, "seeds=3", "train.batch_size=8", "together=true")
    interrupted(three, root, monkeypatch, 2)
    first, *_ = sf.load_runs(root)
    first.folder.rename(tmp_path / "away")
    before = kept(root)
    with pytest.raises(sf.InputError, match=rf"not there any more: {first.id}; bring them back"):
        sf.train(three, root)
    assert kept(root) == before


@pytest.mark.parametrize("name", ["measurements.jsonl", "history.jsonl"])
def test_a_file_that_cannot_be_read_is_named(tiny, tmp_path, name):
    root = shutil.copytree(tiny, tmp_path / "results")
    first, *others = sf.load_runs(root, "tiny")
    (first.folder / name).unlink()
    (first.folder / name).mkdir()
    config = root / "studies" / "tiny" / "config.yaml"
    said = sharpflat("measure", config, "measure={metrics: [parameter_norm]}", "--root", root)
    assert f"{first.folder / name}: cannot be read: is a directory" in said.err
    assert all(run.measurements[-1]["metric"] == "parameter_norm" for run in others)


def test_a_line_of_a_damaged_run_is_left_as_it_is(tmp_path, monkeypatch):
    root = tmp_path / "results"
    line = ["landscape=[{line: {key: train.batch_size, points: 3}}]", "seeds=1"]
    study = cells_of(tmp_path, "sweep={train.batch_size: [8, 20, 40]}", *line)
    *_, last = sf.run(study, root)
    folder = root / "studies" / "tiny" / "landscapes"
    before = kept(folder)
    assert before
    (last.folder / "provenance.json").write_text("{")
    said, reporter = [], Reporter(None, quiet=True)
    monkeypatch.setattr(reporter, "say", said.append)
    with pytest.raises(Refused, match=r"provenance.json: is damaged"):
        sf.run(study, root, reporter)
    assert kept(folder) == before
    assert "landscapes are left as they are while a run is damaged" in said


@pytest.mark.parametrize(("file", "content"), DAMAGE)
def test_a_study_goes_on_around_a_damaged_run(tiny, tmp_path, file, content):
    """Trained, measured, planned and shown; also where nothing is measured."""
    root = shutil.copytree(tiny, tmp_path / "results")
    first, *others = sf.load_runs(root, "tiny")
    spoil(first.folder / file, content)
    config = root / "studies" / "tiny" / "config.yaml"
    for asked in ([], ["parameter_norm"]):
        more = ["seeds=3", f"measure={{metrics: {asked}}}", "--root", root]
        planned = sharpflat("run", config, *more, "--dry-run")
        assert planned.code == 0
        assert "damaged" in planned.out
        said = sharpflat("run", config, *more)
        assert said.code == 2
        assert said.err.splitlines()[-1].startswith(f"sharpflat: {first.folder / file}: is ")
        assert f"run {first.id} (seed 0): damaged" in said.out
        assert f"table.csv and figures in {root / 'studies' / 'tiny'}" in said.out
        rows = read_table(root / "studies" / "tiny" / "table.csv")
        statuses = {row["run"]: row["status"] for row in rows}
        assert statuses.pop(first.id) == "damaged"
        assert list(statuses.values()) == ["finished"] * 5
        for name in asked:
            assert sum(row[name] is not None for row in rows) == 5
    assert all(run.measurements[-1]["metric"] == "parameter_norm" for run in others)
    shown = sharpflat("show", "tiny", "--root", root)
    assert shown.code == 0
    assert f"run {first.id} (seed 0): damaged" in shown.out
    assert sharpflat("plot", "tiny", "--root", root).code == 0


@pytest.mark.parametrize("status", ["running", "diverged"])
@pytest.mark.parametrize("file", ["history.jsonl", "tracked.jsonl"])
def test_figures_are_drawn_around_what_nobody_can_read(tiny, tmp_path, file, status):
    root = shutil.copytree(tiny, tmp_path / "results")
    first, *_ = sf.load_runs(root, "tiny")
    files.write_status(first.folder, {"status": status, "reason": "x"})
    (first.folder / file).write_text("{\n")
    line = f"{first.folder / file}: line 1 is damaged"
    drawn = sharpflat("plot", "tiny", "--root", root)
    assert drawn.code == 0
    assert f"sharpflat: drawn without it: {line}" in drawn.err
    assert line in "".join(sharpflat("show", "tiny", "--root", root).out.split("\n"))


@pytest.mark.parametrize("content", ["", "dataset: {", "seed: 1\n"])
def test_a_damaged_config_of_a_run_is_named(tiny, tmp_path, content):
    run = sf.Run(shutil.copytree(folders(tiny)[0], tmp_path / "run"))
    (run.folder / "config.yaml").write_text(content)
    with pytest.raises(sf.InputError, match=r"config.yaml"):
        _ = run.config


def test_a_finished_run_without_its_config_stays_in_the_table(tiny, tmp_path):
    root = shutil.copytree(tiny, tmp_path / "results")
    (sf.load_runs(root, "tiny")[0].folder / "config.yaml").unlink()
    config = root / "studies" / "tiny" / "config.yaml"
    assert sharpflat("run", config, "--root", root).code == 0
    rows = read_table(root / "studies" / "tiny" / "table.csv")
    assert [row["status"] for row in rows] == ["finished"] * 4


def test_a_copy_beside_the_snapshots_is_none(tiny, tmp_path):
    run = sf.Run(shutil.copytree(folders(tiny)[0], tmp_path / "run"))
    snapshots = run.folder / "snapshots"
    shutil.copy(snapshots / "0.npz", snapshots / "0 (copy).npz")
    assert equal(run.params, sf.Run(folders(tiny)[0]).params)


def test_a_table_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    """It is tried again when it is due, and at the end."""
    tried = []

    def full(*arguments):
        tried.append(arguments)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(study, "write_table", full)
        with pytest.raises(Refused, match=r"table.csv: cannot be written: no space left on device"):
            sf.train(cells_of(tmp_path), tmp_path / "results")
    assert len(tried) == 2
    assert [run.finished for run in sf.load_runs(tmp_path / "results")] == [True] * 4


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("history.jsonl", "has 0 of the 3 epochs of a run that has ended; bring the others back"),
        ("provenance.json", "is not there; bring it back"),
    ],
)
def test_a_file_that_is_missing_is_named(tiny, tmp_path, file, words):
    root = shutil.copytree(tiny, tmp_path / "results")
    path = sf.load_runs(root, "tiny")[0].folder / file
    path.unlink()
    config = root / "studies" / "tiny" / "config.yaml"
    said = sharpflat("measure", config, "--root", root)
    assert said.code == 2
    assert said.err.splitlines()[-1].startswith(f"sharpflat: {path}: {words}")


def test_a_foreign_file_among_the_groups_is_named(tmp_path):
    file = tmp_path / "results" / "groups" / "0" / "group.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(
        sf.InputError, match=r"group.json: is damaged; mend it: it has no 'members'"
    ):
        sf.train(cells_of(tmp_path), tmp_path / "results")
