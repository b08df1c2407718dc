"""Several processes that train as one, on this machine: the first keeps the records."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from runs.kills import history, leaves, same
from runs.studies import sharpflat, write

import sharpflat as sf
from sharpflat.runs.processes import VARIABLES

SCRIPT = """
from sharpflat import cli
from sharpflat.runs import checkpoints
checkpoints.SECONDS_BETWEEN = 0.0
cli.main()
"""


SLOW = """
import time
from sharpflat.runs import member
row = member._row
def slow(epoch):
    time.sleep(0.15)
    return row(epoch)
member._row = slow
"""


def begun(*commands, script=SCRIPT):
    """Processes of one job, one a command line."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = []
    for index, command in enumerate(commands):
        values = (address, str(len(commands)), str(index))
        environment = {**os.environ, **dict(zip(VARIABLES, values, strict=True))}
        arguments = [sys.executable, "-c", script, *map(str, command), "--distributed"]
        processes.append(
            subprocess.Popen(
                arguments, env=environment, text=True, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    return processes


def finished(*commands, signalled=None):
    """Their exit statuses and what they said; both are signalled once there is such a file."""
    processes = begun(*commands, script=SLOW + SCRIPT if signalled else SCRIPT)
    try:
        if signalled is not None:
            _await(signalled)
            for process in processes:
                process.send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def _await(pattern):
    end = time.monotonic() + 120
    while not list(pattern.parent.glob(pattern.name)):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_processes_make_the_records_of_one(tmp_path):
    """Kept after each segment, evaluated and measured by the first; the second says nothing."""
    train = {"batch_size": 8, "epochs": 3, "optimizer": {"name": "gradient_descent"}}
    model = {"name": "mlp", "width": 8, "depth": 1, "batch_norm": True}
    measure = {"chunk": 40, "metrics": ["distance_from_initialization"]}
    path = write(tmp_path, train=train, model=model, sweep=None, seeds=1, measure=measure)
    expected = sf.run(sf.load_config(path), tmp_path / "one")
    command = ("run", path, "--root", tmp_path / "two")
    first, second = finished(command, command)
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert "distance_from_initialization" in first[1]
    assert all(line.startswith("[Gloo]") for line in second[1].splitlines())
    for one, other in zip(expected, sf.load_runs(tmp_path / "two", "tiny"), strict=True):
        assert one.id == other.id
        assert other.provenance["layout"]["processes"] == 2
        for row, wanted in zip(history(other), history(one), strict=True):
            assert row == pytest.approx(wanted, rel=1e-4)
        for a, b in zip(leaves(one), leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        values = [run.measurements[0]["value"] for run in (one, other)]
        assert values[1] == pytest.approx(values[0], rel=1e-3)


def test_a_job_that_is_asked_to_stop_goes_on_to_the_same_bits(tmp_path):
    """Each process is asked, as a job's manager does; the first one keeps what there is."""
    train = {"batch_size": 8, "epochs": 30, "optimizer": {"name": "adam"}}
    path = write(tmp_path, train=train, sweep=None, seeds=1)
    commands = {root: ("train", path, "--root", tmp_path / root) for root in ("whole", "broken")}
    for code, *_ in finished(*[commands["whole"]] * 2):
        assert code == 0
    (run,) = sf.load_runs(tmp_path / "whole", "tiny")
    checkpoint = tmp_path / "broken/runs" / run.id / "checkpoints" / "[1-9]*"
    first, second = finished(*[commands["broken"]] * 2, signalled=checkpoint)
    assert (first[0], second[0]) == (143, 143), (first, second)
    assert "SIGTERM: kept at epoch" in first[2]
    first, second = finished(*[commands["broken"]] * 2)
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert "goes on after epoch" in first[2]
    (resumed,) = sf.load_runs(tmp_path / "broken", "tiny")
    assert history(resumed) == history(run)
    assert same(resumed, run)


def test_processes_with_different_work_are_all_refused(tmp_path):
    command = ("train", write(tmp_path), "--root", tmp_path / "results")
    for code, _, err in finished(command, (*command, "train.epochs=4")):
        assert code == 2
        assert "--distributed: the processes have different configs, code or data" in err
    assert not (tmp_path / "results").exists()


def test_without_a_job_to_join_it_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPFLAT_PROCESSES", "two")
    message = sharpflat("train", write(tmp_path), "--distributed").complaint
    assert message.startswith("--distributed: set SHARPFLAT_COORDINATOR, SHARPFLAT_PROCESSES")
    assert "two" in message
