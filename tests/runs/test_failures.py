"""Runs that diverge, models that raise: recorded, and the study goes on."""

import jax
import numpy as np
import pytest
from runs.failing import rows, run
from runs.interrupted import interrupted
from runs.studies import LINEAR, NORM, TINY, sharpflat, write

import sharpflat as sf
from sharpflat import config as configs
from sharpflat.registry import metrics
from sharpflat.runs import build, groups, member

RATES = "train.optimizer.learning_rate"
DESCENT = {"batch_size": 8, "epochs": 4, "loss": "squared_error"}
DESCENT["optimizer"] = {"name": "gradient_descent", "learning_rate": 0.01}


def test_divergence_is_recorded_and_the_study_goes_on(tmp_path):
    sweep = [{RATES: 1e30}, {RATES: 0.01}]
    outcome = run(tmp_path, train=DESCENT, sweep=sweep, figures=None)
    assert outcome.code == 0, outcome
    diverged, finished = sf.load_runs(tmp_path, "tiny")

    assert diverged.status["status"] == "diverged"
    assert "epoch 1" in diverged.status["reason"]
    assert diverged.history[0]["train_loss"] is None
    text = (diverged.folder / "history.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert diverged.measurements == []

    assert finished.status["status"] == "finished"
    assert [row["metric"] for row in finished.measurements] == ["weight_norm"]
    first, second = rows(tmp_path)
    assert first["status"] == "diverged"
    assert first[RATES] == "1e+30"
    for column in ("test_accuracy", "train_loss", "generalization_gap", "weight_norm"):
        assert first[column] == ""
        assert second[column] != ""

    shown = sharpflat("show", "tiny", "--root", tmp_path)
    assert shown.code == 0
    assert f"run {diverged.id} (seed 0): diverged: train loss is nan in epoch 1" in shown.out
    audit = shown.out.partition("`sharpflat audit RUN` takes them:")[2]
    assert finished.id[:6] in audit
    assert diverged.id[:6] not in audit
    said = sharpflat("audit", diverged.id, "--root", tmp_path, "--plugin", tmp_path / "norm.py")
    assert said.complaint == f"run {diverged.id}: diverged: train loss is nan in epoch 1"


def test_what_was_trained_before_it_diverged_is_kept(tmp_path):
    """A rate at which the loss grows slowly enough to see it."""
    train = {**DESCENT, "epochs": 60, "batch_size": 40}
    (tmp_path / "linear.py").write_text(LINEAR)
    linear = {"model": {"name": "linear"}, "plugins": ["norm.py", "linear.py"]}
    assert run(tmp_path, train=train, sweep={RATES: [40.0]}, **linear).code == 0
    (record,) = sf.load_runs(tmp_path, "tiny")
    assert record.status["status"] == "diverged"
    history = record.history
    assert 2 < len(history) < 60
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    losses = [row["train_loss"] for row in history[:-1]]
    assert all(loss is not None for loss in losses)
    assert losses[-1] > 1e3 * losses[0]
    assert f"epoch {len(history)}" in record.status["reason"]


def test_divergence_in_the_very_last_update(tmp_path):
    """The loss of an epoch of one update is the one before it: finite."""
    train = {**DESCENT, "epochs": 1, "batch_size": 40}
    outcome = run(tmp_path, train=train, sweep={RATES: [1e30, 0.01]})
    assert outcome.code == 0, outcome
    assert [record.status["status"] for record in sf.load_runs(tmp_path, "tiny")] == [
        "diverged", "finished",
    ]  # fmt: skip


def test_a_diverged_run_is_not_trained_again(tmp_path):
    assert run(tmp_path, train=DESCENT, sweep={RATES: [1e30]}).code == 0
    (record,) = sf.load_runs(tmp_path, "tiny")
    before = (record.folder / "history.jsonl").stat().st_mtime_ns
    assert run(tmp_path, train=DESCENT, sweep={RATES: [1e30]}).code == 0
    assert (record.folder / "history.jsonl").stat().st_mtime_ns == before


def test_show_where_everything_diverged(tmp_path):
    assert run(tmp_path, train=DESCENT, sweep={RATES: [1e30]}, seeds=2, figures=None).code == 0
    shown = sharpflat("show", "--root", tmp_path)
    assert shown.code == 0
    assert shown.out.count("diverged") == 2


RAISE = 'if fail:\n{0}    raise RuntimeError("the weights [fell] off")\n{0}'
SIZE, DOCSTRING = "size = inputs[0].size", '"""A linear network."""'
INIT_FAILS = LINEAR.replace(SIZE, RAISE.format(" " * 8) + SIZE)
BUILD_FAILS = LINEAR.replace(DOCSTRING, RAISE.format(" " * 4))


@pytest.mark.parametrize("text", [LINEAR, INIT_FAILS, BUILD_FAILS], ids=["apply", "init", "build"])
def test_a_run_that_raises_fails_and_the_others_go_on(tmp_path, text):
    (tmp_path / "linear.py").write_text(text)
    models = [{"name": "linear", "fail": True}, TINY["model"]]
    outcome = run(tmp_path, sweep={"model": models}, plugins=["norm.py", "linear.py"])
    failed, finished = sf.load_runs(tmp_path, "tiny")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    assert f"run {failed.id}: failed: RuntimeError: the weights [fell] off" in outcome.err
    assert failed.status["status"] == "failed"
    line = text[: text.index("raise RuntimeError")].count("\n") + 1
    said = f"RuntimeError: the weights [fell] off (linear.py, line {line})"
    assert failed.status["reason"] == said
    assert "in " in failed.status["traceback"]
    assert finished.finished
    assert len(finished.measurements) == 1
    first, second = rows(tmp_path)
    assert (first["status"], first["weight_norm"]) == ("failed", "")
    assert second["weight_norm"] != ""
    assert "failed" in sharpflat("show", "tiny", "--root", tmp_path).out


def test_a_failed_run_is_tried_again(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(member, "evaluate", broken)
        assert run(tmp_path, sweep=None).code == 1
    (record,) = sf.load_runs(tmp_path, "tiny")
    assert record.status["reason"] == "MemoryError: no room"
    finished = tmp_path / "unbroken"
    finished.mkdir()
    assert run(tmp_path, sweep=None).code == 0
    assert run(finished, sweep=None).code == 0
    assert rows(tmp_path) == rows(finished)
    assert record.finished
    assert len(record.history) == 3


PARTIAL = LINEAR.replace("        if fail:", "        if fail and len(inputs) == 5:")


def test_a_model_that_raises_at_a_chunk_is_the_error_of_what_has_that_chunk(tmp_path):
    (tmp_path / "linear.py").write_text(PARTIAL)
    blocks = [{"chunk": chunk, "metrics": ["weight_norm"]} for chunk in (5, 40)]
    study = {"plugins": ["norm.py", "linear.py"], "sweep": None, "measure": blocks}
    outcome = run(tmp_path, model={"name": "linear", "fail": True}, **study)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    (record,) = sf.load_runs(tmp_path, "tiny")
    assert [row["error"] is None for row in record.measurements] == [False, True]


@pytest.mark.parametrize("text", [LINEAR, INIT_FAILS, BUILD_FAILS], ids=["apply", "init", "build"])
def test_dry_runs_of_a_model_that_raises(tmp_path, text, monkeypatch):
    monkeypatch.setattr(metrics, "_entries", {"parameter_norm": metrics["parameter_norm"]})
    (tmp_path / "linear.py").write_text(text)
    models = [{"name": "linear", "fail": True}, TINY["model"]]
    study = {"sweep": {"model": models}, "plugins": ["linear.py"]}
    study["measure"] = {"metrics": "all", "chunk": 40}
    planned = run(tmp_path, "--dry-run", **study)
    assert planned.code == 0, planned
    assert "beside 1 that could not be timed" in planned.out
    (line,) = (line for line in planned.out.splitlines() if line.startswith("parameter_norm"))
    assert line.split()[2:] == ["?", "2"], "of the other model alone it would be half"
    outcome = run(tmp_path, **study)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err


def test_a_model_with_too_few_outputs_is_refused_before_training(tmp_path):
    (tmp_path / "linear.py").write_text(LINEAR.replace("(size, outputs)", "(size, 2)"))
    study = {"plugins": ["norm.py", "linear.py"], "model": {"name": "linear"}}
    train = {**TINY["train"], "loss": "squared_error"}
    said = run(tmp_path, **study, train=train).complaint
    assert said.startswith("model: 'linear' cannot take the examples of 'synthetic'")
    assert said.endswith("it has 2 outputs, and there are 3 classes")


def test_a_network_that_cannot_take_the_data_is_refused_before_training(tmp_path):
    said = run(tmp_path, model={"name": "c1"}).complaint
    assert said.startswith("model: 'c1' cannot take the examples of 'synthetic', (4,): ")


@pytest.mark.parametrize("text", [LINEAR, INIT_FAILS, BUILD_FAILS], ids=["apply", "init", "build"])
def test_a_model_that_raises_ends_no_other_run_where_its_size_is_asked(tmp_path, monkeypatch, text):
    """Of an accumulation what batch norm sees is told beforehand; of two devices, what fits."""
    (tmp_path / "linear.py").write_text(text)
    (tmp_path / "norm.py").write_text(NORM)
    train = {**TINY["train"], "accumulate": 2, "epochs": 1}
    study = {"sweep": {"model": [{"name": "linear", "fail": True}, TINY["model"]]}}
    path = write(tmp_path, plugins=["norm.py", "linear.py"], train=train, **study)
    cells = configs.cells(sf.load_config(path))
    two = jax.devices() * 2
    with monkeypatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: two)
        for together in (None, True):
            assert groups.places(groups.groups(cells, together, None, 2), together) == two
    outcome = run(tmp_path, plugins=["norm.py", "linear.py"], train=train, **study)
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    states = [record.status["status"] for record in sf.load_runs(tmp_path, "tiny")]
    assert sorted(states) == ["failed", "finished"]


GONE = """
from pathlib import Path
import numpy as np
import sharpflat as sf
from sharpflat.data import Dataset


@sf.dataset
def gone() -> Dataset:
    inputs = np.frombuffer(Path(__file__).with_name("numbers").read_bytes(), np.float32)
    batch = sf.Batch(inputs.reshape(-1, 4), np.arange(len(inputs) // 4) % 3)
    return Dataset("gone", batch, batch, 3)
"""


def test_a_data_set_that_is_gone_fails_its_own_run_alone(tmp_path, monkeypatch):
    """After its run was stopped on the way; and a plan says what would be done."""
    (tmp_path / "gone.py").write_text(GONE)
    numbers = tmp_path / "numbers"
    numbers.write_bytes(np.linspace(-1, 1, 160, dtype=np.float32).tobytes())
    path = write(
        tmp_path, plugins=["gone.py"], seeds=1, together=False,
        sweep={"dataset": [{"name": "gone"}, TINY["dataset"]]},
    )  # fmt: skip
    config, root = sf.load_config(path), tmp_path / "results"
    interrupted(config, root, monkeypatch, 1)
    kept = numbers.read_bytes()
    numbers.unlink()
    build._resident.cache_clear()
    more = ["measure={metrics: [parameter_norm]}", "--root", root]
    assert sharpflat("run", path, *more, "--dry-run").code == 0
    statuses = [run.status["status"] for run in sf.train(config, root)]
    assert statuses == ["failed", "finished"]
    numbers.write_bytes(kept)
    gone, other = sf.train(config, root)
    assert gone.finished
    assert gone.provenance["resumed"]
    numbers.unlink()
    build._resident.cache_clear()
    assert sharpflat("run", path, *more, "--dry-run").code == 0
    said = sharpflat("measure", path, *more)
    assert f"run {gone.id}: its data: FileNotFoundError" in said.err
    assert [row["metric"] for row in other.measurements] == ["parameter_norm"]
    assert sf.load_runs(root, "tiny")[0].finished
