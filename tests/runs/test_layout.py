"""Where a study trains and where its data lie: no part of ids, told in provenance."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from runs.interrupted import interrupted
from runs.kills import history, leaves
from runs.studies import sharpflat, write

import sharpflat as sf
from sharpflat import config as configs
from sharpflat.runs import evaluation, groups, layout
from sharpflat.runs.layout import Layout, is_streamed
from sharpflat.validation import InputError

# Not Adam, which makes steps of the rounding in biases that batch norm takes away again.
TRAIN = {"batch_size": 8, "epochs": 3, "optimizer": {"name": "gradient_descent"}}
NORMED = {"name": "mlp", "width": 8, "depth": 2, "batch_norm": True}


def study(folder, *overrides, **changes):
    changes = {"model": NORMED, "train": TRAIN, "sweep": None, "seeds": 1, **changes}
    return sf.load_config(write(folder, **changes), overrides)


def test_a_streamed_study_has_the_records_of_one_with_its_data_on_the_device(tmp_path, monkeypatch):
    """Evaluated chunk by chunk, the last one smaller; trained to the same bits."""
    monkeypatch.setattr(evaluation, "EVALUATION_CHUNK", 16)
    monkeypatch.setattr(layout, "BYTES_STREAMED", 16 * 20)  # two batches of 8
    resident = sf.train(study(tmp_path), tmp_path / "resident")
    streamed = sf.train(study(tmp_path, "dataset_on_device=false"), tmp_path / "streamed")
    for one, other in zip(resident, streamed, strict=True):
        assert one.id == other.id
        for row, expected in zip(history(other), history(one), strict=True):
            assert row == pytest.approx(expected, rel=1e-5)
        arrays = [jax.tree.leaves((run.params, run.opt_state)) for run in (one, other)]
        assert all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))
        for a, b in zip(leaves(one), leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        assert "layout" not in one.provenance
        assert other.provenance["layout"] == {"mesh": None, "processes": 1, "streamed": True}
        assert other.objective("test", examples=10).data.size == 10


def test_what_does_not_fit_into_half_of_the_memory_is_streamed(tmp_path, monkeypatch):
    made = study(tmp_path)
    spec = configs.cells(made)[0].dataset
    size = (40 + 20) * (4 * 4 + 4)  # four inputs and a label an example, in four bytes each
    for memory, streamed in [(2 * size, False), (2 * size - 1, True)]:
        monkeypatch.setattr(layout, "device_memory", lambda memory=memory: memory)
        assert is_streamed(spec) is streamed
    assert not is_streamed(spec, True)


def test_a_containers_memory_is_that_of_the_machine(tmp_path):
    """Of the process's own control group and those that hold it, in both versions of them."""
    groups = tmp_path / "cgroup"
    groups.write_text("4:memory:/job/step\n3:cpuset:/\n0::/mine\n")
    limits = {"memory/job/memory.limit_in_bytes": "3000\n", "mine/memory.max": "max\n",
              "memory.max": "5000\n"}  # fmt: skip
    for name, text in limits.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert sorted(layout._limits(groups, tmp_path)) == [3000, 5000]
    assert list(layout._limits(tmp_path / "none", tmp_path)) == []


def test_the_memory_that_is_allowed_is_divided_among_the_devices(monkeypatch):
    monkeypatch.setattr(layout, "_limits", lambda: [3000])
    monkeypatch.setattr(jax, "local_device_count", lambda: 3)
    assert layout.device_memory() == 1000


def test_streamed_runs_train_alone_and_are_refused_together(tmp_path):
    apart = study(tmp_path, "dataset_on_device=false", "seeds=2")
    found = groups.groups(configs.cells(apart), True, apart.dataset_on_device)
    assert [len(group.members) for group in found] == [1, 1]
    path = write(tmp_path, together=True, dataset_on_device=False)
    message = sharpflat("train", path, "--root", tmp_path / "results").complaint
    assert message.startswith("together: 'synthetic' is streamed")
    assert "dataset_on_device: true" in message


def test_processes_that_train_as_one_share_their_devices(tmp_path, monkeypatch):
    alone = study(tmp_path, "data_parallel=false")
    layout.check_layout(alone, [])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match=r"^data_parallel: false, but 2 processes"):
        layout.check_layout(alone, [])


def test_passes_that_the_devices_do_not_divide_are_named():
    eight = Layout(SimpleNamespace(size=8))
    assert eight.notes({"batch_size": 16, "accumulate": 2}) == []
    assert Layout().notes({"batch_size": 12, "accumulate": 1}) == []
    (whole,) = eight.notes({"batch_size": 12, "accumulate": 1})
    assert whole.startswith("train.batch_size: passes of 12 examples fall into 4 equal parts")
    (part,) = eight.notes({"batch_size": 20, "accumulate": 2})
    assert part.startswith("train.accumulate: passes of 10 examples fall into 2 equal parts")


def test_eight_devices_go_on_where_one_stopped(tmp_path, monkeypatch):
    """The records agree to rounding; which devices trained is told."""
    track = "train.track=[top_eigenvalue, batch_losses]"
    made = study(tmp_path, "train.batch_size=20", "train.epochs=6", "seeds=2", track)
    unbroken = sf.train(made, tmp_path / "unbroken")
    interrupted(made, tmp_path / "broken", monkeypatch, 3)
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "sharpflat", "train", tmp_path / "study.yaml", "data_parallel=true",
         "train.batch_size=20", "train.epochs=6", "seeds=2", track, "--root", tmp_path / "broken"],
        env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "train.batch_size: passes of 20 examples fall into 4 equal parts" in done.stderr
    assert done.stderr.count("was begun on other devices") == 1
    begun, fresh = sf.load_runs(tmp_path / "broken", "tiny")
    wide = {"mesh": {"data": 8}, "processes": 1, "streamed": False}
    assert fresh.provenance["layout"] == begun.provenance["resumed"][-1]["layout"] == wide
    assert "layout" not in begun.provenance
    for one, other in zip(unbroken, (begun, fresh), strict=True):
        assert one.id == other.id
        for row, expected in zip(history(other), history(one), strict=True):
            assert row == pytest.approx(expected, rel=1e-4)
        for row, expected in zip(other.tracked, one.tracked, strict=True):
            assert row["value"] == pytest.approx(expected["value"], rel=2e-3)
        for a, b in zip(leaves(one), leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
