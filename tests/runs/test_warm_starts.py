"""`train.init_from`: a run that starts where another one was."""

import shutil

import jax
import numpy as np
import pytest
from runs.interrupted import interrupted
from runs.studies import BATCH_NORM, equal, sharpflat, write

import sharpflat as sf

ADAM = {"name": "adam", "learning_rate": 0.01}


def train(folder, root, optimizer=ADAM, **changes):
    given = {"batch_size": 8, "epochs": 4, "optimizer": optimizer, **changes}
    path = write(folder, train=given, model=BATCH_NORM, sweep=None, seeds=1)
    (run,) = sf.train(sf.load_config(path), root)
    return run


@pytest.fixture
def source(tmp_path):
    return train(tmp_path, tmp_path / "results", track=["snapshots"])


@pytest.mark.parametrize("epoch", [0, 2, None])
def test_it_starts_at_the_snapshot(tmp_path, source, epoch):
    asked = {"run": source.id[:8], "epoch": epoch}
    run = train(tmp_path, tmp_path / "results", batch_size=40, init_from=asked)
    begin, kept = run.snapshot(0), source.snapshot(epoch)
    assert equal(begin.params, kept.params)
    assert equal(begin.model_state, kept.model_state)
    assert equal(begin.opt_state, jax.tree.map(np.zeros_like, kept.opt_state)), "begins anew"
    steps = {0: 0, 2: 10, None: 20}
    origin = {"run": source.id, "epoch": steps[epoch] / 5, "step": steps[epoch]}
    assert run.provenance["init_from"] == origin
    assert run.finished
    assert not equal(run.params, kept.params)


def test_another_optimizer_from_there(tmp_path, source):
    plain = {"name": "gradient_descent", "learning_rate": 0.1}
    asked = {"run": source.id, "epoch": 2}
    run = train(tmp_path, tmp_path / "results", plain, init_from=asked)
    assert equal(run.snapshot(0).params, source.snapshot(2).params)


def test_together_each_starts_there(tmp_path, source):
    given = {"batch_size": 8, "epochs": 2, "optimizer": ADAM, "init_from": {"run": source.id}}
    path = write(tmp_path, train=given, model=BATCH_NORM, sweep=None, seeds=2, together=True)
    runs = sf.train(sf.load_config(path), tmp_path / "results")
    assert all(equal(run.snapshot(0).params, source.params) for run in runs)
    assert not equal(runs[0].params, runs[1].params), "each has its own order of examples"


def test_a_trained_run_no_longer_needs_its_source(tmp_path, source):
    asked = {"run": source.id, "epoch": 2}
    run = train(tmp_path, tmp_path / "results", init_from=asked)
    (source.folder / "config.yaml").rename(tmp_path / "gone.yaml")
    again = train(tmp_path, tmp_path / "results", init_from=asked)
    assert again.id == run.id


def complaint(folder, *overrides, model=BATCH_NORM):
    given = {"batch_size": 8, "epochs": 4, "optimizer": ADAM}
    path = write(folder, train=given, model=model, sweep=None, seeds=1)
    before = sorted((folder / "results" / "runs").iterdir())
    outcomes = [
        sharpflat("train", path, *overrides, "--root", folder / "results"),
        sharpflat("run", path, *overrides, "--root", folder / "results", "--dry-run"),
    ]
    assert sorted((folder / "results" / "runs").iterdir()) == before
    assert outcomes[0].complaint == outcomes[1].complaint
    return outcomes[0].complaint


def test_what_is_not_there_is_refused_with_what_is(tmp_path, source):
    said = complaint(tmp_path, "train.init_from={run: '0123456789abcdef'}")
    assert said.startswith("train.init_from.run: ")
    assert "has no run '0123456789abcdef'" in said
    said = complaint(tmp_path, f"train.init_from={{run: '{source.id}', epoch: 7}}")
    assert f"run {source.id}: has no snapshot after epoch 7, but after 0, 1, 2, 3, 4" in said
    small = {**BATCH_NORM, "width": 4}
    said = complaint(tmp_path, f"train.init_from={{run: '{source.id}'}}", model=small)
    assert "is of another network" in said
    twin = source.folder.parent / (source.id[:4] + "000000000000")
    twin.mkdir()
    (twin / "config.yaml").write_bytes((source.folder / "config.yaml").read_bytes())
    said = complaint(tmp_path, f"train.init_from={{run: '{source.id[:4]}'}}")
    assert "say which" in said


@pytest.mark.parametrize("together", [False, True])
def test_a_half_trained_run_no_longer_needs_its_source(tmp_path, source, monkeypatch, together):
    given = {"batch_size": 8, "epochs": 6, "optimizer": ADAM, "init_from": {"run": source.id}}
    path = write(tmp_path, train=given, model=BATCH_NORM, sweep=None, seeds=2, together=together)
    config, root = sf.load_config(path, [] if together else ["seeds=1"]), tmp_path / "results"
    unbroken = [run.params for run in sf.train(config, root)]
    for folder in root.glob("runs/*"):
        if folder.name != source.id:
            shutil.rmtree(folder)
    interrupted(config, root, monkeypatch, 3)
    source.folder.rename(tmp_path / "away")
    runs = sf.train(config, root)
    assert all("resumed" in run.provenance for run in runs)
    assert all(equal(run.params, params) for run, params in zip(runs, unbroken, strict=True))


def test_a_damaged_run_keeps_no_other_from_starting_there(tmp_path, source):
    given = {"batch_size": 8, "epochs": 1, "optimizer": ADAM, "init_from": {"run": source.id}}
    path = write(tmp_path, train=given, model=BATCH_NORM, sweep=None, seeds=2, together=False)
    study, root = sf.load_config(path), source.folder.parents[1]
    first, other = sf.train(study, root)
    (first.folder / "status.json").write_text("{")
    shutil.rmtree(other.folder)
    with pytest.raises(sf.InputError, match=f"{first.id}/status.json: is damaged"):
        sf.train(study, root)
    assert other.finished
