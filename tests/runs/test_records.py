"""What lies on the disk after a study, and `Run`, which reads it."""

import csv
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from runs.studies import content, equal, folders, lines, sharpflat, write

import sharpflat as sf
from sharpflat.runs import cost
from sharpflat.training import evaluated


def test_the_files_of_the_contract(tiny):
    assert len(folders(tiny)) == 4
    for folder in folders(tiny):
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        assert names >= {
            "config.yaml", "provenance.json", "history.jsonl", "measurements.jsonl", "status.json",
            "snapshots",
        }  # fmt: skip
        assert not (folder / "checkpoints").exists(), "the snapshot holds the same state"
    study = tiny / "studies" / "tiny"
    assert {path.name for path in study.iterdir()} == {
        "config.yaml", "runs.json", "table.csv", "landscapes", "figures",
    }  # fmt: skip
    runs = json.loads((study / "runs.json").read_text())
    assert sorted(runs) == [folder.name for folder in folders(tiny)]
    assert yaml.safe_load((study / "config.yaml").read_text())["study"] == "tiny"


def test_figures_and_landscapes(tiny):
    study = tiny / "studies" / "tiny"
    for name in ("line", "training_curves", "sharpness_by_batch_size"):
        for suffix in ("png", "pdf", "csv", "txt"):
            assert (study / "figures" / f"{name}.{suffix}").stat().st_size > 0
    (digest,) = json.loads((study / "landscapes" / "index.json").read_text())
    settings = study / "landscapes" / f"{digest}.json"
    with np.load(settings.with_suffix(".npz")) as arrays:
        np.testing.assert_allclose(arrays["alpha"], [-1, 0.5, 2])
        assert all(arrays[name].shape == (3,) for name in ("train_loss", "test_accuracy"))
    assert (json.loads(settings.read_text())["start"], json.loads(settings.read_text())["end"]) == (
        8, 40,
    )  # fmt: skip


def test_the_line_ends_in_the_two_runs(tiny, tmp_path):
    """f at α = 0 and 1 is the loss of the small and of the large batch's run."""
    path = write(tmp_path, landscape=[{"line": {"points": 2, "alpha": [0.0, 1.0], "chunk": 7}}])
    config = sf.load_config(path, ["study=line"])
    runs = sf.run(config, tiny)
    (file,) = (tiny / "studies" / "line" / "landscapes").glob("*.npz")
    ends = [run for run in runs if run.seed == 0]
    with np.load(file) as arrays:
        for index, run in enumerate(ends):
            assert run.swept["train.batch_size"] == (8, 40)[index]
            last = run.history[-1]
            for name, key in (
                ("train_loss", "full_train_loss"), ("test_loss", "test_loss"),
                ("train_accuracy", "full_train_accuracy"), ("test_accuracy", "test_accuracy"),
            ):  # fmt: skip
                assert arrays[name][index] == pytest.approx(last[key], rel=1e-5)


def test_config_and_status(tiny):
    for folder in folders(tiny):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert set(config) == {"dataset", "model", "train", "seed"}
        assert config["dataset"]["label_noise"] == 0.0, "defaults are written out"
        assert config["train"]["optimizer"]["b1"] == 0.9
        status = json.loads((folder / "status.json").read_text())
        assert status == {"status": "finished", "reason": "all 3 epochs done"}


def test_provenance(tiny):
    for folder in folders(tiny):
        record = json.loads((folder / "provenance.json").read_text())
        assert record["versions"]["jax"] == jax.__version__
        assert record["device"]["platform"] == jax.devices()[0].platform
        assert record["command"].startswith("sharpflat run ")
        assert len(record["data_digest"]) == 16
        assert record["started"] <= record["finished"]
        assert {"sharpflat", "commit", "python"} <= set(record)


def test_history(tiny):
    for run in sf.load_runs(tiny, "tiny"):
        rows = lines(run.folder / "history.jsonl")
        updates = 40 // run.config["train"]["batch_size"]
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        assert [row["step"] for row in rows] == [updates, 2 * updates, 3 * updates]
        for row in rows:
            assert list(row) == [
                "epoch", "step", "seconds", "train_loss", "train_accuracy", "full_train_loss",
                "full_train_accuracy", "test_loss", "test_accuracy",
            ]  # fmt: skip
            assert row["seconds"] > 0
        assert rows == run.history


def test_history_holds_what_the_snapshot_gives(tiny):
    for run in sf.load_runs(tiny, "tiny"):
        last = run.history[-1]
        for split, name in (("train", "full_train"), ("test", "test")):
            objective = run.objective(split, batch_norm="running", chunk=7)
            assert float(objective.loss(run.params)) == pytest.approx(
                last[f"{name}_loss"], rel=1e-5
            )
            assert float(objective.accuracy(run.params)) == pytest.approx(last[f"{name}_accuracy"])


def test_evaluations_as_often_as_asked(tmp_path):
    train = {
        "batch_size": 8, "epochs": 5, "eval_every": 2,
        "optimizer": {"name": "adam", "learning_rate": 0.01},
    }  # fmt: skip
    (run,) = sf.run(sf.load_config(write(tmp_path, train=train, sweep=None, seeds=1)), tmp_path)
    evaluated = [row["epoch"] for row in run.history if "test_loss" in row]
    assert evaluated == [2, 4, 5]


MEASUREMENT = [
    "metric", "arguments", "split", "examples", "data_digest", "batch_norm", "chunk", "dtype",
    "seed", "metric_digest", "value", "standard_error", "converged", "error", "seconds", "details",
    "commit", "device", "versions",
]  # fmt: skip


def test_measurements(tiny):
    for run in sf.load_runs(tiny, "tiny"):
        rows = lines(run.measurements_file)
        assert [row["metric"] for row in rows] == [
            "keskar_sharpness", "keskar_sharpness", "hessian_top_eigenvalues",
        ]  # fmt: skip
        for row in rows:
            assert sorted(row) == sorted(MEASUREMENT)
            assert (row["split"], row["examples"], row["chunk"]) == ("train", 40, 40)
            assert (row["batch_norm"], row["dtype"], row["seed"]) == (
                "running",
                "float32",
                run.seed,
            )
            assert row["error"] is None
            assert row["data_digest"] == run.provenance["data_digest"]
        assert [row["arguments"]["epsilon"] for row in rows[:2]] == [1e-3, 5e-4]
        assert rows[0]["arguments"]["starts"] == ["zero", "sign", "random"], "defaults included"
        assert rows[2]["details"]["eigenvalues"] == [pytest.approx(rows[2]["value"])]


def test_measurements_are_those_of_sf_measure(tiny):
    run = sf.load_runs(tiny, "tiny")[0]
    for row in run.measurements:
        objective = run.objective(row["split"], row["batch_norm"], row["chunk"])
        spec = {row["metric"]: row["arguments"]}
        estimate = sf.measure(objective, spec, seed=row["seed"])
        assert estimate.value == row["value"]


def test_snapshots_hold_the_start_and_the_end(tiny):
    for run in sf.load_runs(tiny, "tiny"):
        steps = 3 * 40 // run.config["train"]["batch_size"]
        assert {path.name for path in (run.folder / "snapshots").iterdir()} == {
            "0.npz", f"{steps}.npz",
        }  # fmt: skip
        with np.load(run.folder / "snapshots" / "0.npz") as arrays:
            assert "params/Dense_0/kernel" in arrays.files
            np.testing.assert_array_equal(
                arrays["params/Dense_0/kernel"], run.initial_params["Dense_0"]["kernel"]
            )


def test_table(tiny):
    with (tiny / "studies" / "tiny" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    measured = [
        f"{name}{suffix}"
        for name in (
            "keskar_sharpness[epsilon=0.001]", "keskar_sharpness[epsilon=0.0005]",
            "hessian_top_eigenvalues",
        )
        for suffix in ("", "_standard_error", "_converged", "_batch_norm")
    ]  # fmt: skip
    assert list(rows[0]) == [
        "run", "seed", "status", "train.batch_size", "train_accuracy", "test_accuracy",
        "train_loss", "test_loss", "generalization_gap", *measured,
    ]  # fmt: skip
    assert [(row["train.batch_size"], row["seed"]) for row in rows] == [
        ("8", "0"), ("8", "1"), ("40", "0"), ("40", "1"),
    ]  # fmt: skip
    for row in rows:
        run = sf.Run(tiny / "runs" / row["run"])
        last = run.history[-1]
        assert float(row["test_accuracy"]) == pytest.approx(last["test_accuracy"])
        assert float(row["train_loss"]) == pytest.approx(last["full_train_loss"])
        gap = float(row["train_accuracy"]) - float(row["test_accuracy"])
        assert float(row["generalization_gap"]) == pytest.approx(gap, abs=1e-7)
        assert row["hessian_top_eigenvalues_converged"] == "true"
        assert float(row["hessian_top_eigenvalues"]) == pytest.approx(run.measurements[2]["value"])


def test_runs_are_loaded_with_what_was_swept(tiny):
    runs = sf.load_runs(tiny, "tiny")
    assert [(run.swept["train.batch_size"], run.seed) for run in runs] == [
        (8, 0), (8, 1), (40, 0), (40, 1),
    ]  # fmt: skip
    assert {run.id for run in sf.load_runs(tiny)} >= {run.id for run in runs}
    assert all(run.finished for run in runs)
    assert "finished" in repr(runs[0])


def test_load_runs_of_an_unknown_study(tiny):
    with pytest.raises(sf.InputError, match="unknown 'tinny'; did you mean 'tiny'"):
        sf.load_runs(tiny, "tinny")


def test_small_and_large_batches_of_a_seed_start_alike(tiny):
    by = {(run.swept["train.batch_size"], run.seed): run for run in sf.load_runs(tiny, "tiny")}
    for seed in (0, 1):
        assert equal(by[8, seed].initial_params, by[40, seed].initial_params)
        assert not equal(by[8, seed].params, by[40, seed].params)
        assert not equal(by[8, seed].params, by[8, seed].initial_params)
    assert not equal(by[8, 0].initial_params, by[8, 1].initial_params)


def test_objectives_of_a_run(tiny):
    run = sf.load_runs(tiny, "tiny")[0]
    assert run.objective("train").data.size == 40
    assert run.objective("test").data.size == 20
    assert run.objective("train", examples=10, chunk=5).data.size == 10
    assert run.objective("train", chunk=5).chunk == 5
    with pytest.raises(sf.InputError, match="unknown 'tran'; did you mean 'train'"):
        run.objective("tran")
    with pytest.raises(sf.InputError, match="above the 20"):
        run.objective("test", examples=21)
    with pytest.raises(sf.InputError, match="unknown policy 'runing'"):
        run.objective("test", batch_norm="runing")


def test_batch_norm_averages_of_a_run(tmp_path):
    model = {"name": "mlp", "width": 8, "depth": 1, "batch_norm": True}
    (run,) = sf.run(sf.load_config(write(tmp_path, model=model, sweep=None, seeds=1)), tmp_path)
    averages = run.model_state["batch_stats"]["BatchNorm_0"]
    data = np.asarray(run.objective("train").data.inputs).reshape(40, -1)
    layer = {name: np.asarray(value) for name, value in run.params["Dense_0"].items()}
    hidden = data @ layer["kernel"] + layer["bias"]
    # Re-estimated over the whole training set, not an exponential average of batches.
    np.testing.assert_allclose(averages["mean"], hidden.mean(0), atol=1e-5)
    np.testing.assert_allclose(averages["var"], hidden.var(0), rtol=1e-4, atol=1e-6)
    policies = ("running", "recalibrated", "batch")
    losses = [float(run.objective("train", p, 40).loss(run.params)) for p in policies]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-4)


DETAILS = '''
import numpy as np
import sharpflat as sf


@sf.metric
def detailed(objective, key, *, numbers: int = 1000) -> sf.Estimate:
    """Returns many numbers, and some that are not finite."""
    few = np.array([1.0, np.nan, np.inf])
    return sf.Estimate(float("nan"), float("inf"), False, {"many": np.arange(numbers), "few": few})
'''


def test_large_details_go_to_arrays_and_what_is_not_finite_is_null(tmp_path):
    (tmp_path / "mine.py").write_text(DETAILS)
    metrics = [{"detailed": {"numbers": 997}}, {"detailed": {"numbers": 998}}]
    path = write(tmp_path, plugins=["mine.py"], measure={"metrics": metrics}, seeds=1, sweep=None)
    assert sharpflat("run", path, "--root", tmp_path).code == 0
    (run,) = sf.load_runs(tmp_path, "tiny")
    text = run.measurements_file.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    small, large = lines(run.measurements_file)
    assert small["value"] is None
    assert small["standard_error"] is None
    assert small["details"]["few"] == large["details"]["few"] == [1.0, None, None]
    assert small["details"]["many"] == list(range(997))
    assert large["details"]["many"]["shape"] == [998]
    stored = np.load(run.folder / large["details"]["many"]["file"], allow_pickle=False)
    np.testing.assert_array_equal(stored, np.arange(998))
    assert (run.folder / "arrays").is_dir()
    with (tmp_path / "studies" / "tiny" / "table.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["detailed[numbers=997]"] == ""


def test_what_is_not_finite_is_said_each_time_and_not_measured_again(tmp_path):
    """It is the metric's answer there, no failure: the exit status stays 0."""
    (tmp_path / "mine.py").write_text(DETAILS)
    metrics = ["detailed", "parameter_norm"]
    path = write(tmp_path, plugins=["mine.py"], measure={"metrics": metrics}, seeds=1, sweep=None)
    for command in ("run", "measure"):
        outcome = sharpflat(command, path, "--root", tmp_path)
        (run,) = sf.load_runs(tmp_path, "tiny")
        assert outcome.code == 0, outcome
        assert outcome.err.count(f"run {run.id}: detailed: its value is not a finite number") == 1
        assert "parameter_norm: its value" not in outcome.err
        assert len(lines(run.measurements_file)) == 2


AVERAGES = [
    {"ema": {"decay": 0.9}},
    {"swa": {"start": 2}},
    {"optimizer": {"name": "schedule_free"}},
]


@pytest.mark.parametrize("about", AVERAGES, ids=["ema", "swa", "schedule_free"])
def test_a_training_stands_for_its_average(tmp_path, about):
    """What is evaluated, kept and measured, with batch-norm averages of its own."""
    model = {"name": "mlp", "width": 8, "depth": 1, "batch_norm": True}
    train = {**content()["train"], **about}
    path = write(tmp_path, sweep=None, seeds=1, train=train, model=model)
    (run,) = sf.run(sf.load_config(path), tmp_path / "results")
    objective = run.objective("train", "running")
    assert float(objective.loss(run.params)) == pytest.approx(run.history[-1]["full_train_loss"])
    recalibrated = run.objective("train", "recalibrated")
    assert float(recalibrated.loss(run.params)) == pytest.approx(float(objective.loss(run.params)))
    last = evaluated(run.opt_state, jax.tree.map(jnp.zeros_like, run.params))
    if "optimizer" not in about:  # schedule-free makes its average of the last point
        jax.tree.map(np.testing.assert_array_equal, last, run.params)


def test_a_gradient_is_timed_by_the_median(tiny, monkeypatch):
    """Neither the luckiest time nor one in which something else had the machine."""
    run = sf.load_runs(tiny, "tiny")[0]
    clock = itertools.chain.from_iterable((0.0, time) for time in (1.0, 5.0, 100.0, 4.0, 6.0))
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert cost._gradient_seconds(run.config, "train", 40, 40) == 5.0
