"""Trainings on several devices at once, each on one: the same to the bit as one after another."""

import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from runs.studies import write

import sharpflat as sf
from sharpflat import config as configs
from sharpflat.runs import files, groups, memory
from sharpflat.runs.placing import placed
from sharpflat.training import prefetched

TWO = jax.devices() * 2


def test_two_devices_work_at_the_same_time():
    both, done = threading.Barrier(2, timeout=60), []

    def work(piece):
        both.wait()
        done.append((piece, jax.config.jax_default_device))

    assert len(list(placed(work, "abcd", TWO, lambda: None))) == 4
    assert sorted(piece for piece, _ in done) == list("abcd")
    assert {device for _, device in done} == set(jax.devices())


def test_one_device_works_here_and_in_order():
    done = []
    for number, _ in enumerate(placed(done.append, "abc", jax.devices(), lambda: None), start=1):
        assert len(done) == number
    assert done == list("abc")


def test_what_is_set_here_is_set_there():
    """Settings of JAX are a thread's: without, x64 would end where the second core begins."""
    found = []

    def work(_):
        (made,) = prefetched(lambda size: jax.numpy.ones(size), [3])
        bits = jax.random.bits(jax.random.key(0), (3,)).tolist()
        found.append((made.dtype, jax.config.jax_default_matmul_precision, made.devices(), bits))

    with (
        jax.enable_x64(True), jax.default_matmul_precision("highest"),
        jax.default_prng_impl("rbg"), jax.threefry_partitionable(False),
    ):  # fmt: skip
        bits = jax.random.bits(jax.random.key(0), (3,)).tolist()
        assert len(list(placed(work, "ab", TWO, lambda: None))) == 2
    assert found == [(np.float64, "highest", {jax.devices()[0]}, bits)] * 2
    assert bits != jax.random.bits(jax.random.key(0), (3,)).tolist()


def test_what_is_put_ahead_is_put_where_it_is_used():
    script = """
import jax
from sharpflat.training import prefetched
with jax.default_device(jax.devices()[1]):
    (made,) = prefetched(jax.device_put, [jax.numpy.ones(3).__array__()])
assert made.devices() == {jax.devices()[1]}, made.devices()
"""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)


@pytest.mark.parametrize(
    ("chosen", "devices"),
    [
        ({}, len(os.sched_getaffinity(0))),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
    ],
)
def test_each_core_is_a_device_unless_their_number_was_chosen(chosen, devices):
    script = """
from sharpflat.runs.setup import use_all_cores
import jax
use_all_cores()
print(jax.local_device_count())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "JAX_PLATFORMS": "cpu", **chosen},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert int(done.stdout) == devices


def test_one_that_raises_ends_all_and_is_raised():
    began, asked = [], threading.Event()

    def work(piece):
        began.append(piece)
        if piece == "a":
            raise ValueError("a is wrong")
        assert asked.wait(60)

    with pytest.raises(ValueError, match="a is wrong"):
        list(placed(work, "abcdef", TWO, asked.set))
    assert len(began) <= 3, "what had not begun does not"


def test_who_wants_no_more_ends_all():
    asked = threading.Event()

    def work(piece):
        assert piece == "a" or asked.wait(60)

    pieces = placed(work, "ab", TWO, asked.set)
    next(pieces)
    pieces.close()
    assert asked.is_set()


def test_as_many_devices_as_there_are_and_as_memory_allows(tmp_path, monkeypatch):
    study = sf.load_config(write(tmp_path, seeds=6))
    found = groups.groups(configs.cells(study), None)
    assert groups.places(found, None) == jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices() * 4)
    assert len(groups.places(found, None)) == 4
    assert len(groups.places(found, False)) == 1
    assert len(groups.places(found[:1], None)) == 1
    size = max(
        memory.update_bytes(group.members[0]) + memory.evaluation_bytes(group.members[0])
        for group in found
    )
    monkeypatch.setattr(groups, "device_memory", lambda: 2.5 * size / 4 / groups.SHARE_OF_MEMORY)
    assert len(groups.places(found, None)) == 2


def test_where_not_even_the_reason_can_be_written_it_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(sf.InputError, match=r"cannot be written: no space left on device; what"):
        files.write_status(tmp_path, {"status": "failed", "reason": "a full disk"})
