"""Interrupted and killed: what is resumed ends, bit for bit, where an unbroken run ends."""

import json
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from runs.kills import Killed, history, same
from runs.studies import sharpflat, write

import sharpflat as sf
from sharpflat import digests
from sharpflat.runs import checkpoints, interrupts, member, provenance, train_run


def interrupted(config, root, monkeypatch, saves=3, error=KeyboardInterrupt):
    """Stopped right after so many checkpoints, one a segment; the updates before each of them."""
    save, steps = checkpoints.Checkpoints.save, []

    def save_and_stop(self, step, *kept):
        save(self, step, *kept)
        steps.append(step)
        if len(steps) == saves:
            raise error("stop")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
        patch.setattr(checkpoints.Checkpoints, "save", save_and_stop)
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                sf.run(config, root)
        else:
            (run,) = sf.run(config, root)
            assert run.status["status"] == "failed"
    return steps


UPDATES = 5
"""An epoch of the tiny study, at batch size 8."""

BATCH_NORM = {"name": "mlp", "width": 8, "depth": 1, "batch_norm": True}
PLAIN = {"name": "mlp", "width": 8, "depth": 1}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("model", [PLAIN, BATCH_NORM], ids=["adam", "batch norm"])
def test_resuming_is_bit_for_bit_the_unbroken_run(tmp_path, monkeypatch, model, error):
    config = sf.load_config(write(tmp_path, model=model, sweep=None, seeds=1), ["train.epochs=7"])
    (unbroken,) = sf.run(config, tmp_path / "unbroken")

    broken = tmp_path / "broken"
    stops = [interrupted(config, broken, monkeypatch, saves, error) for saves in (2, 3, 4)]
    (resumed,) = sf.run(config, broken)

    steps = [step for stop in stops for step in stop]
    assert steps == sorted(set(steps)), "each start went on after the last checkpoint"
    assert any(step % UPDATES for step in steps), "some of them within an epoch"
    record = resumed.provenance["resumed"]
    assert [again["step"] for again in record] == [stop[-1] for stop in stops]
    assert resumed.finished
    assert same(resumed, unbroken)
    assert history(resumed) == history(unbroken)
    assert not (resumed.folder / "checkpoints").exists()
    assert jax.tree.all(
        jax.tree.map(np.array_equal, resumed.initial_params, unbroken.initial_params)
    )


def test_a_run_that_goes_on_with_other_code_says_so(tmp_path, monkeypatch):
    """Ids do not depend on the code that trains; a reader of the record sees both digests."""
    path = write(tmp_path, sweep=None, seeds=1)
    root, said = tmp_path / "results", "goes on after epoch {}, update {}{}"
    other = "; not what it began with: the code that trains, the packages' versions, the device"
    for change in (False, True):
        (before,) = interrupted(sf.load_config(path, ["train.epochs=6"]), root, monkeypatch, 1)
        if change:
            monkeypatch.setattr(member, "training_digest", lambda: "another")
            for name, key in (("versions", "jax"), ("device", "kind")):
                now = getattr(member, name)() | {key: "another"}
                monkeypatch.setattr(member, name, lambda now=now: now)
        outcome = sharpflat("run", path, "train.epochs=6", "--root", root)
        assert outcome.code == 0
        assert said.format(before // UPDATES, before, other * change) in outcome.err
        assert ("not what it began" in outcome.err) is change
        (run,) = sf.load_runs(root)
        digests = [
            record["training_digest"] for record in (run.provenance, *run.provenance["resumed"])
        ]
        assert len(set(digests)) == 1 + change
        kinds = [
            record["device"]["kind"] for record in (run.provenance, *run.provenance["resumed"])
        ]
        assert ("another" in kinds[1:]) is change
        shutil.rmtree(root)


@pytest.mark.parametrize("file", ["training/update_rules.py", "training/update.py",
                                  "networks/perceptrons.py", "runs/evaluation.py", "runs/build.py",
                                  "runs/member.py"])  # fmt: skip
def test_the_digest_of_what_trains_sees_it(monkeypatch, file):
    package, read = Path(sf.__file__).parent, Path.read_text

    def edited(self, *arguments, **keywords):
        content = read(self, *arguments, **keywords)
        return content + "CHANGED = 1" if self == package / file else content

    before = provenance.training_digest.__wrapped__()
    monkeypatch.setattr(Path, "read_text", edited)
    digests._parsed.cache_clear()
    assert provenance.training_digest.__wrapped__() != before
    digests._parsed.cache_clear()


def test_patience_is_counted_across_an_interruption(tmp_path, monkeypatch):
    """The stopping rule remembers the epochs before the checkpoint."""
    stop = {"patience": 4, "improvement": 0.9}
    overrides = ["train.epochs=50", f"train.stop={json.dumps(stop)}"]
    config = sf.load_config(write(tmp_path, sweep=None, seeds=1), overrides)
    (unbroken,) = sf.run(config, tmp_path / "unbroken")
    assert len(unbroken.history) == 5, "four epochs without a new best after the first"

    interrupted(config, tmp_path / "broken", monkeypatch)
    (resumed,) = sf.run(config, tmp_path / "broken")
    assert history(resumed) == history(unbroken)
    assert resumed.status == unbroken.status


def test_history_lines_beyond_the_checkpoint_are_dropped(tmp_path, monkeypatch):
    config = sf.load_config(write(tmp_path, sweep=None, seeds=1), ["train.epochs=6"])
    (unbroken,) = sf.run(config, tmp_path / "unbroken")
    steps = interrupted(config, tmp_path / "broken", monkeypatch, saves=5)
    (file,) = (tmp_path / "broken").glob("runs/*/history.jsonl")
    done = steps[-1] // UPDATES
    assert [row["epoch"] for row in sf.Run(file.parent).history] == list(range(1, done + 1))
    with file.open("a") as rows:
        rows.write(f'{{"epoch": {done + 1}, "train_loss": 9.0}}\n{{"epoch": {done + 2}, "trai')
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


def test_a_run_killed_before_its_first_checkpoint_says_that_it_begins_anew(tmp_path, monkeypatch):
    path = write(tmp_path, sweep=None, seeds=1)
    # Five updates are an epoch; a segment is one of them at least, an epoch at most.
    config = sf.load_config(path, ["train.epochs=7"])
    interrupted(config, tmp_path / "results", monkeypatch, saves=5)
    (folder,) = (tmp_path / "results").glob("runs/*/checkpoints")
    shutil.rmtree(folder)
    outcome = sharpflat("run", path, "train.epochs=7", "--root", tmp_path / "results")
    assert outcome.code == 0
    assert "has no checkpoint to go on from; begins anew" in outcome.err


def test_an_interrupted_study_is_shown_as_far_as_it_came(tmp_path, monkeypatch):
    from sharpflat.runs import study

    train_group, trained = study.train_group, []

    def stop_at_the_third(*arguments):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(train_group(*arguments))

    monkeypatch.setattr(study, "train_group", stop_at_the_third)
    path = write(tmp_path, together=False)
    outcome = sharpflat("run", path, "--root", tmp_path)
    assert outcome.code not in (0, 2)
    assert "Traceback" not in outcome.err
    assert len(sf.load_runs(tmp_path, "tiny")) == 2
    assert sharpflat("show", "tiny", "--root", tmp_path).code == 0
    monkeypatch.undo()
    assert sharpflat("run", path, "--root", tmp_path).code == 0
    assert len(sf.load_runs(tmp_path, "tiny")) == 4


def test_a_signal_during_a_write_is_answered_after_the_next_segment(tmp_path, monkeypatch, capfd):
    """What is said to be kept is kept."""
    monkeypatch.setattr(member.Member, "flush", flush_and_signal(member.Member.flush))
    monkeypatch.setattr(train_run.time, "monotonic", iter(range(0, 10**6, 2)).__next__)
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 1e9)
    config = sf.load_config(write(tmp_path, sweep=None, seeds=1), ["train.epochs=50"])
    with pytest.raises(KeyboardInterrupt):
        sf.run(config, tmp_path / "results")
    assert "SIGINT: stops as soon as" in capfd.readouterr().err
    assert list((tmp_path / "results").glob("runs/*/checkpoints/*"))


def flush_and_signal(flush):
    sent = []

    def flushed(self):
        if self.rows and not sent:
            sent.append(True)
            signal.raise_signal(signal.SIGINT)
        flush(self)

    return flushed


def test_what_was_ignored_or_handled_before_still_is(monkeypatch):
    caught = []
    before = [
        signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.signal(signal.SIGTERM, lambda *_: caught.append("mine")),
    ]
    try:
        with interrupts.held() as asked:
            signal.raise_signal(signal.SIGINT)
            assert asked.received is None
            signal.raise_signal(signal.SIGTERM)
            assert asked.received is signal.SIGTERM
            assert not caught
        assert caught == ["mine"]
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_history_that_is_shorter_than_its_checkpoint_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path, sweep=None, seeds=1)
    config = sf.load_config(path, ["train.epochs=6"])
    interrupted(config, tmp_path / "results", monkeypatch, saves=5)
    (file,) = (tmp_path / "results").glob("runs/*/history.jsonl")
    file.write_text("")
    with pytest.raises(sf.InputError, match=r"history.jsonl: has 0 of the \d epochs"):
        sf.run(config, tmp_path / "results")


def test_a_checkpoint_of_another_precision_names_the_array(tmp_path):
    kept = checkpoints.Checkpoints(tmp_path / "c", "mine")
    kept.save(7, {"a": np.zeros(3, np.float32)})
    kept.close()
    with pytest.raises(sf.InputError, match=r"float32 \(3,\) where this training has float64"):
        kept.restore({"a": np.zeros(3)}, pytest.fail)


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])
def test_killed_it_ends_as_the_unbroken_study(tmp_path, together):
    """SIGKILL at random moments of training and measuring; each start goes on."""
    study, moments = Killed(tmp_path, together), random.Random(0)
    for kept in (False, True):
        assert study.kill("broken", moments.uniform(0.0, 0.8), kept), study.errors
    study.finish("broken")
    assert study.resumed("broken"), "not all began anew"
    assert study.difference("broken") is None


@pytest.mark.parametrize("together", [None, True], ids=["cores", "groups"])
def test_asked_to_stop_it_keeps_a_checkpoint_first(tmp_path, together):
    """Long before the first minute is over."""
    study = Killed(tmp_path, together)
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = study.begin_and_progress("broken", seconds_between=60)
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(timeout=60) == status, study.errors
        assert f"{number.name}: kept at epoch" in study.errors
        assert "Traceback" not in study.errors
    study.finish("broken")
    assert "goes on after epoch" in study.errors
    assert study.difference("broken") is None


def on_a_full_disk(write):
    """The third time, no file can grow."""
    calls, (soft, hard) = [], resource.getrlimit(resource.RLIMIT_FSIZE)

    def written(*arguments):
        calls.append(True)
        if len(calls) != 3:
            return write(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            return write(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return written


@orbax_leaves_reads
@pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])
@pytest.mark.parametrize(
    ("where", "what"), [(checkpoints.Checkpoints, "save"), (member, "save_tree")]
)
def test_a_disk_that_is_full_loses_nothing(tmp_path, monkeypatch, together, where, what):
    """In a checkpoint, and in the snapshot of the start or the end."""
    path = write(tmp_path, sweep=None, seeds=2, together=together)
    config = sf.load_config(path, ["train.epochs=7"])
    unbroken = sf.train(config, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
        patch.setattr(where, what, on_a_full_disk(getattr(where, what)))
        failed = sf.train(config, tmp_path / "broken")
    reasons = {run.status["status"]: run.status.get("reason") for run in failed}
    assert "failed" in reasons
    assert "too large" in reasons["failed"].lower(), "as the system calls it"
    for one, other in zip(sf.train(config, tmp_path / "broken"), unbroken, strict=True):
        assert same(one, other)
        assert history(one) == history(other)


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
