"""A run's folder is held by one process at a time; who only looks changes nothing."""

import errno
import fcntl
import os
import threading

import pytest
from runs.studies import contents

import sharpflat as sf
from sharpflat.runs import files


def test_who_looks_at_a_lock_writes_nothing_and_stops_nobody(tmp_path):
    files.check_free(tmp_path)
    assert not list(tmp_path.iterdir())
    with files.claimed(tmp_path), pytest.raises(sf.InputError, match=f"process {os.getpid()}"):
        files.check_free(tmp_path)
    before = contents(tmp_path)
    with files._locked(tmp_path / ".lock", "r", fcntl.LOCK_SH):
        files.check_free(tmp_path)
    assert contents(tmp_path) == before


def test_who_would_work_waits_for_who_only_looks(tmp_path):
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(files.LOOK_SECONDS / 4, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with files.claimed(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"process {os.getpid()}"


def test_a_lock_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with (
        pytest.raises(sf.InputError, match=r"\.lock: cannot be opened: is a directory"),
        files.claimed(tmp_path),
    ):
        pass


def test_where_nothing_can_be_locked_who_would_hold_it_is_told(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with (
        pytest.raises(sf.InputError, match=r"\.lock: cannot be locked: no locks available"),
        files.claimed(tmp_path),
    ):
        pass
    assert sf.Run(tmp_path).state == "running", "as far as can be told"
