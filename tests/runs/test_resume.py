"""Interrupted and killed: what is resumed ends, bit for bit, where an unbroken run ends."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from runs.studies import NORM, sharpflat, write

import sharpflat as sf
from sharpflat.runs import checkpoints
from sharpflat.runs.snapshots import to_host


def run_until_third_checkpoint(config, root, monkeypatch):
    """Interrupted right after the checkpoint of epoch 3 is on its way."""
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    save = checkpoints.Checkpoints.save

    def save_and_stop(self, epoch, state):
        save(self, epoch, state)
        if epoch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        sf.run(config, root)


def history(run):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.history]


def leaves(run):
    return to_host((run.params, run.model_state, run.opt_state))


def same(first, second):
    pairs = zip(leaves(first), leaves(second), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


BATCH_NORM = {"name": "mlp", "width": 8, "depth": 1, "batch_norm": True}
PLAIN = {"name": "mlp", "width": 8, "depth": 1}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("model", [PLAIN, BATCH_NORM], ids=["adam", "batch norm"])
def test_resuming_is_bit_for_bit_the_unbroken_run(tmp_path, monkeypatch, model, error):
    config = sf.load_config(write(tmp_path, model=model, sweep=None, seeds=1), ["train.epochs=7"])
    (unbroken,) = sf.run(config, tmp_path / "unbroken")

    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    save, saved = checkpoints.Checkpoints.save, []

    def save_and_stop(self, epoch, state):
        save(self, epoch, state)
        saved.append(epoch)
        if epoch in (2, 5):
            raise error("stop")

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save_and_stop)
    for _ in range(2):
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                sf.run(config, tmp_path / "broken")
        else:
            (run,) = sf.run(config, tmp_path / "broken")
            assert run.status["status"] == "failed"
    (resumed,) = sf.run(config, tmp_path / "broken")

    assert saved == [1, 2, 3, 4, 5, 6], "each start went on after the last checkpoint"
    assert resumed.finished
    assert same(resumed, unbroken)
    assert history(resumed) == history(unbroken)
    assert not (resumed.folder / "checkpoints").exists()
    assert jax.tree.all(
        jax.tree.map(np.array_equal, resumed.initial_params, unbroken.initial_params)
    )


def test_patience_is_counted_across_an_interruption(tmp_path, monkeypatch):
    """The stopping rule remembers the epochs before the checkpoint."""
    stop = {"patience": 4, "improvement": 0.9}
    overrides = ["train.epochs=50", f"train.stop={json.dumps(stop)}"]
    config = sf.load_config(write(tmp_path, sweep=None, seeds=1), overrides)
    (unbroken,) = sf.run(config, tmp_path / "unbroken")
    assert len(unbroken.history) == 5, "four epochs without a new best after the first"

    run_until_third_checkpoint(config, tmp_path / "broken", monkeypatch)
    (resumed,) = sf.run(config, tmp_path / "broken")
    assert history(resumed) == history(unbroken)
    assert resumed.status == unbroken.status


def test_history_lines_beyond_the_checkpoint_are_dropped(tmp_path, monkeypatch):
    config = sf.load_config(write(tmp_path, sweep=None, seeds=1), ["train.epochs=6"])
    (unbroken,) = sf.run(config, tmp_path / "unbroken")
    run_until_third_checkpoint(config, tmp_path / "broken", monkeypatch)
    (file,) = (tmp_path / "broken").glob("runs/*/history.jsonl")
    with file.open("a") as rows:
        rows.write('{"epoch": 4, "train_loss": 9.0}\n{"epoch": 5, "trai')
    (resumed,) = sf.run(config, tmp_path / "broken")
    assert history(resumed) == history(unbroken)


# Of a read that fails Orbax leaves others behind, whose loop is closed when they end.
orbax_leaves_reads = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
)


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
    with monkeypatch.context() as patch:
        run_until_third_checkpoint(config, tmp_path / "broken", patch)
    (folder,) = (tmp_path / "broken").glob("runs/*/checkpoints")
    newest = folder / "3"
    spoil(newest, how)
    damaged = {file.name: file.read_bytes() for file in newest.rglob("*") if file.is_file()}
    outcome = sharpflat(
        "run", path, "train.epochs=6", "model.width=300", "--root", tmp_path / "broken"
    )
    assert outcome.code == 0, outcome
    assert f"checkpoint {newest}: damaged, kept as {folder.parent}/damaged" in outcome.err
    assert "goes on after epoch 2" in outcome.err
    (resumed,) = sf.load_runs(tmp_path / "broken")
    assert same(resumed, unbroken)
    assert history(resumed) == history(unbroken)
    kept = folder.parent / "damaged" / "checkpoint-3"
    assert damaged == {file.name: file.read_bytes() for file in kept.rglob("*") if file.is_file()}


@orbax_leaves_reads
def test_where_every_checkpoint_is_damaged_the_training_begins_anew(tmp_path, monkeypatch):
    config = sf.load_config(write(tmp_path, sweep=None, seeds=1), ["train.epochs=6"])
    (unbroken,) = sf.run(config, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        run_until_third_checkpoint(config, tmp_path / "broken", patch)
    (folder,) = (tmp_path / "broken").glob("runs/*/checkpoints")
    for step in folder.iterdir():
        spoil(step, "cut")
    (resumed,) = sf.run(config, tmp_path / "broken")
    assert same(resumed, unbroken)
    assert len(list((resumed.folder / "damaged").iterdir())) == 2


def test_an_interrupted_study_is_shown_as_far_as_it_came(tmp_path, monkeypatch):
    from sharpflat.runs import study

    train_run, trained = study.train_run, []

    def stop_at_the_third(*arguments):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(train_run(*arguments))
        return trained[-1]

    monkeypatch.setattr(study, "train_run", stop_at_the_third)
    path = write(tmp_path)
    outcome = sharpflat("run", path, "--root", tmp_path)
    assert outcome.code not in (0, 2)
    assert "Traceback" not in outcome.err
    assert len(sf.load_runs(tmp_path, "tiny")) == 2
    assert sharpflat("show", "tiny", "--root", tmp_path).code == 0
    monkeypatch.undo()
    assert sharpflat("run", path, "--root", tmp_path).code == 0
    assert len(sf.load_runs(tmp_path, "tiny")) == 4


EPOCHS = 160
SCRIPT = """
import os, sys
from sharpflat import cli
from sharpflat.runs import checkpoints, train_run
checkpoints.SECONDS_BETWEEN = 0.2
row = train_run._row
def slow(epoch):
    import time
    time.sleep(0.02)
    return row(epoch)
train_run._row = slow
cli.main()
"""


def test_killed_five_times_it_gives_the_same_table(tmp_path):
    """SIGKILL at random moments of training and measuring; each start goes on."""
    (tmp_path / "norm.py").write_text(NORM)
    path = write(
        tmp_path, seeds=1, sweep={"train.batch_size": [8, 40]}, plugins=["norm.py"],
        train={"batch_size": 8, "epochs": EPOCHS, "optimizer": {"name": "adam"}},
        measure={"chunk": 40, "metrics": ["weight_norm"]},
    )  # fmt: skip
    environment = {
        **os.environ, "SHARPFLAT_COMPILATION_CACHE": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    arguments = [sys.executable, "-c", SCRIPT, "run", str(path), "--root"]

    def begin(root):
        with (tmp_path / "errors.txt").open("w") as errors:
            return subprocess.Popen(
                [*arguments, str(tmp_path / root)], env=environment, stdout=subprocess.DEVNULL,
                stderr=errors, cwd=tmp_path,
            )  # fmt: skip

    # Compiled programs are kept from here on, so that the other starts are quick.
    assert begin("unbroken").wait(timeout=300) == 0, (tmp_path / "errors.txt").read_text()

    moments, kills = random.Random(0), 0
    while kills < 5:
        process = begin("broken")
        marks = _progress(tmp_path / "broken")
        _wait_for(lambda before=marks: _progress(tmp_path / "broken") != before, process)
        time.sleep(moments.uniform(0.0, 0.8))
        assert process.poll() is None, (tmp_path / "errors.txt").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert begin("broken").wait(timeout=300) == 0, (tmp_path / "errors.txt").read_text()

    tables = [tmp_path / root / "studies/tiny/table.csv" for root in ("unbroken", "broken")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    pairs = [sf.load_runs(tmp_path / root, "tiny") for root in ("unbroken", "broken")]
    for unbroken, broken in zip(*pairs, strict=True):
        assert len(history(broken)) == EPOCHS
        assert history(broken) == history(unbroken)
        assert same(broken, unbroken)


def _progress(root):
    """Grows with each step that reaches the disk."""
    lines = [path.read_bytes().count(b"\n") for path in root.glob("runs/*/*.jsonl")]
    return len(lines), sum(lines), len(list(root.glob("runs/*/checkpoints/*")))


def _wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the study made no progress")
