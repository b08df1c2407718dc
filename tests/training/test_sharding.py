"""Several devices, of one process or of several, train to what one device trains to."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "devices.py"


def begun(*arguments, devices=1):
    """The script in a process of its own, where virtual devices are possible."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "SHARPFLAT_COMPILATION_CACHE": "off"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def found(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def eight():
    return found(begun(devices=8))


@pytest.fixture(scope="module")
def two():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [found(process) for process in [begun(address, 2, index) for index in (0, 1)]]


def test_eight_devices_agree_with_one_to_1e_5_after_20_updates_in_float32(eight):
    assert eight["devices"] == 8
    assert eight["float32"] < 1e-5


def test_eight_devices_agree_with_one_to_1e_8_after_an_epoch_in_float64(eight):
    assert len(eight["float64"]) == 4
    assert all(deviation < 1e-8 for deviation in eight["float64"].values()), eight


def test_the_devices_share_the_work(eight):
    """Gradients are an eighth of it each; the update of the parameters is whole on each."""
    assert 1 / 8 < eight["work"] < 1 / 4


def test_what_the_devices_do_not_divide_is_in_as_many_equal_parts_as_can_be(eight):
    assert eight["parts"] == {"32": [8, 4], "12": [4, 3], "7": [1, 7]}


def test_two_processes_agree_with_one_and_follow_the_first(two):
    """Its moment, its lengths of segments, and who is active in a group; the second has others."""
    for process in two:
        assert process["devices"] == 2
        assert process["float32"] < 1e-5
        assert len(process["float64"]) == 2
        assert all(deviation < 1e-8 for deviation in process["float64"].values()), process
