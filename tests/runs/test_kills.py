"""Killed, asked to stop, or out of disk: nothing is lost."""

import os
import random
import resource
import signal
import time

import pytest
from runs.interrupted import orbax_leaves_reads
from runs.kills import Killed, history, same
from runs.studies import write

import sharpflat as sf
from sharpflat.runs import checkpoints, files, interrupts, member, train_run


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


@pytest.fixture(scope="module", params=[None, True], ids=["cores", "groups"])
def study(request, tmp_path_factory):
    """A study of four runs or of four groups, trained unbroken by two cores."""
    made = Killed(tmp_path_factory.mktemp("study"), request.param, epochs=100, pause=0.02)
    yield made
    made.close()


def test_killed_it_ends_as_the_unbroken_study(study):
    """SIGKILL at random moments of training; each start goes on."""
    moments = random.Random(0)
    for kept in (False, True):
        assert study.kill("killed", moments.uniform(0.0, 0.8), kept), study.errors
    study.finish("killed")
    assert study.resumed("killed"), "not all began anew"
    assert study.difference("killed") is None


def test_asked_to_stop_it_keeps_a_checkpoint_first(study):
    """Long before the first minute is over."""
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = study.begin_and_progress("stopped", seconds_between=60)
        time.sleep(0.3)
        process.send_signal(number)
        assert process.wait(timeout=60) == status, study.errors
        assert f"{number.name}: kept at epoch" in study.errors
        assert "Traceback" not in study.errors
    study.finish("stopped")
    assert "goes on after epoch" in study.errors
    assert study.difference("stopped") is None


CORES = pytest.mark.parametrize("study", [None], ids=["cores"], indirect=True)


@CORES
def test_one_a_core_is_to_the_bit_one_after_another(study):
    study.finish("alone", "together=false")
    assert study.difference("alone") is None


@CORES
def test_a_second_process_on_a_run_is_refused_by_name(study):
    (first, *_) = sf.load_runs(study.folder / "unbroken", "tiny")
    folder = files.make_folder(study.folder / "claimed/runs" / first.id)
    with files.claimed(folder):
        assert study.begin("claimed").wait(timeout=120) == 2
    line = study.errors.splitlines()[-1]  # after what the other core says of where it stopped
    assert line.startswith(f"sharpflat: run {first.id}: ")
    assert f"another process works on it (process {os.getpid()})" in line
    assert not list(folder.parent.glob("*/provenance.json")), "before any work"
    study.finish("claimed")
    assert study.difference("claimed") is None


@CORES
def test_a_full_disk_loses_nothing(study):
    sizes = {
        what: [file.stat().st_size for file in (study.folder / "unbroken").glob(f"runs/*/{what}")]
        for what in ("history.jsonl", "snapshots/*.npz")
    }  # fmt: skip
    between = max(sizes["snapshots/*.npz"]), min(sizes["history.jsonl"])
    assert between[1] > 1.5 * between[0], "the start is kept, the history is not"
    assert study.begin("full", largest_file=sum(between) // 2).wait(timeout=120) == 1
    assert "File too large" in study.errors
    lengths = [len(run.history) for run in sf.load_runs(study.folder / "full", "tiny")]
    assert max(lengths) > 0, "the disk was full in the midst of training"
    study.finish("full")
    assert "goes on after epoch" in study.errors
    assert study.difference("full") is None


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
