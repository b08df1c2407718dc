"""Killed, asked to stop, or out of disk: nothing is lost."""

import random
import resource
import signal
import time

import pytest
from runs.interrupted import orbax_leaves_reads
from runs.kills import Killed, history, same
from runs.studies import write

import sharpflat as sf
from sharpflat.runs import checkpoints, interrupts, member, train_run


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
