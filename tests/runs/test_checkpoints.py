"""Checkpoints: damaged, of another training, of another precision, as often as is said."""

import shutil

import jax
import numpy as np
import pytest
from runs.interrupted import interrupted, orbax_leaves_reads
from runs.kills import history, same
from runs.studies import UPDATES, sharpflat, write

import sharpflat as sf
from sharpflat.runs import checkpoints


def spoil(folder, how):
    """Damage the largest file of a checkpoint."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@orbax_leaves_reads
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(tmp_path, monkeypatch, how):
    path = write(tmp_path, sweep=None, seeds=1)
    config = sf.load_config(path, ["train.epochs=6", "model.width=300"])
    (unbroken,) = sf.run(config, tmp_path / "unbroken")
    *_, before, last = interrupted(config, tmp_path / "broken", monkeypatch)
    (folder,) = (tmp_path / "broken").glob("runs/*/checkpoints")
    newest = folder / str(last)
    spoil(newest, how)
    damaged = {file.name: file.read_bytes() for file in newest.rglob("*") if file.is_file()}
    outcome = sharpflat(
        "run", path, "train.epochs=6", "model.width=300", "--root", tmp_path / "broken"
    )
    assert outcome.code == 0, outcome
    assert f"checkpoint {newest}: damaged, kept as {folder.parent}/set_aside" in outcome.err
    assert f"goes on after epoch {before // UPDATES}, update {before}" in outcome.err
    (resumed,) = sf.load_runs(tmp_path / "broken")
    assert same(resumed, unbroken)
    assert history(resumed) == history(unbroken)
    kept = folder.parent / "set_aside" / f"checkpoint-{last}"
    assert damaged == {file.name: file.read_bytes() for file in kept.rglob("*") if file.is_file()}


@orbax_leaves_reads
def test_where_every_checkpoint_is_damaged_the_training_begins_anew(tmp_path, monkeypatch):
    config = sf.load_config(write(tmp_path, sweep=None, seeds=1), ["train.epochs=6"])
    (unbroken,) = sf.run(config, tmp_path / "unbroken")
    interrupted(config, tmp_path / "broken", monkeypatch)
    (folder,) = (tmp_path / "broken").glob("runs/*/checkpoints")
    for step in folder.iterdir():
        spoil(step, "cut")
    (resumed,) = sf.run(config, tmp_path / "broken")
    assert same(resumed, unbroken)
    assert len(list((resumed.folder / "set_aside").iterdir())) == 2


@orbax_leaves_reads
def test_a_checkpoint_that_cannot_be_read_now_is_no_damaged_one(tmp_path, monkeypatch):
    """As with too many open files: the run fails, and goes on another time."""
    config = sf.load_config(write(tmp_path, sweep=None, seeds=1), ["train.epochs=6"])
    *_, last = interrupted(config, tmp_path / "results", monkeypatch)
    said = ["[OS error 24: EMFILE Too many open files]", OSError(5, "Input/output error")]
    for error in (ValueError(said[0]), said[1]):

        def stored(self, step, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.Checkpoints, "_stored", stored)
            (failed,) = sf.train(config, tmp_path / "results")
        assert failed.status["status"] == "failed"
        assert not (failed.folder / "set_aside").exists()
    (run,) = sf.train(config, tmp_path / "results")
    assert run.provenance["resumed"][-1]["step"] == last


def test_a_checkpoint_of_another_training_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path, sweep=None, seeds=1)
    mine, other = (sf.load_config(path, [f"train.epochs={n}"]) for n in (6, 7))
    for config in (mine, other):
        interrupted(config, tmp_path / "results", monkeypatch)
    folders = list((tmp_path / "results").glob("runs/*/checkpoints"))
    first, second = sorted(
        folders, key=lambda folder: sf.Run(folder.parent).config["train"]["epochs"]
    )
    shutil.rmtree(first)
    shutil.copytree(second, first)
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    with pytest.raises(
        sf.InputError, match=f"is of training {second.parent.name}, not of {first.parent.name}"
    ):
        sf.run(mine, tmp_path / "results")
    after = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert before == after, "nothing is lost"


def test_a_checkpoint_keeps_empty_arrays_and_keys(tmp_path):
    tree = {
        "empty": jax.numpy.zeros((0, 3)),
        "key": jax.random.key(3),
        "number": jax.numpy.int32(4),
    }
    kept = checkpoints.Checkpoints(tmp_path / "c", "mine")
    kept.save(7, tree)
    kept.close()
    step, found = kept.restore(tree, pytest.fail)
    assert step == 7
    assert found["empty"].shape == (0, 3)
    assert found["key"] == tree["key"]
    assert found["number"] == 4


def test_a_checkpoint_of_another_precision_names_the_array(tmp_path):
    kept = checkpoints.Checkpoints(tmp_path / "c", "mine")
    kept.save(7, {"a": np.zeros(3, np.float32)})
    kept.close()
    with pytest.raises(sf.InputError, match=r"float32 \(3,\) where this training has float64"):
        kept.restore({"a": np.zeros(3)}, pytest.fail)


def test_a_study_says_how_often_a_checkpoint_is_made(tmp_path, monkeypatch):
    made, save = [], checkpoints.Checkpoints.save
    monkeypatch.setattr(
        checkpoints.Checkpoints, "save", lambda self, *kept: made.append(save(self, *kept))
    )
    for seconds, some in ((1e-6, True), (1e6, False)):
        path = write(tmp_path, sweep=None, seeds=1, checkpoint_seconds=seconds)
        (run,) = sf.train(sf.load_config(path), tmp_path / f"{some}")
        assert run.finished
        assert bool(made) is some
        made.clear()


def test_a_checkpoint_is_due_once_a_minute(tmp_path, monkeypatch):
    assert checkpoints.SECONDS_BETWEEN == 60.0
    now = [1000.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    kept = checkpoints.Checkpoints(tmp_path / "c", "mine")
    often = checkpoints.Checkpoints(tmp_path / "d", "mine", 0.5)
    assert often.seconds == 0.5
    for later, due in ((0.0, False), (59.9, False), (0.2, True)):
        now[0] += later
        assert kept.due is due
    kept.save(1, {"a": np.zeros(3)})
    assert not kept.due
    kept.close()
