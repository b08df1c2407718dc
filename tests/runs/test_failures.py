"""Runs that diverge, runs and metrics that raise: recorded, and the study goes on."""

import csv
import json

import jax
import pytest
from runs.studies import LINEAR, NORM, TINY, sharpflat, write

import sharpflat as sf
from sharpflat import config as configs
from sharpflat.registry import metrics
from sharpflat.runs import groups, member


def rows(root):
    with (root / "studies" / "tiny" / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run(folder, *arguments, **changes):
    (folder / "norm.py").write_text(NORM)
    study = {
        "plugins": ["norm.py"], "seeds": 1, "measure": {"metrics": ["weight_norm"]}, **changes,
    }  # fmt: skip
    return sharpflat("run", write(folder, **study), *arguments, "--root", folder)


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
    assert f"run {diverged.id} (seed 0): diverged" in shown.out


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


FAULTY = NORM.replace("    norm = ", "    raise RuntimeError('not [today]')\n    norm = ").replace(
    "weight_norm", "faulty"
)
MENDED = NORM.replace("weight_norm", "faulty")


def test_a_metric_that_raises(tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    study = {
        "plugins": ["norm.py", "faulty.py"], "sweep": None,
        "measure": {"metrics": ["faulty", "weight_norm"]},
    }  # fmt: skip
    outcome = run(tmp_path, **study)
    (record,) = sf.load_runs(tmp_path, "tiny")
    assert outcome.code == 1
    assert f"run {record.id}: faulty: RuntimeError: not [today]" in outcome.err
    failed, good = record.measurements
    line = 1 + FAULTY[: FAULTY.index("raise")].count("\n")
    assert failed["error"] == f"RuntimeError: not [today] (faulty.py, line {line})"
    assert (failed["value"], failed["standard_error"], failed["converged"]) == (None, None, False)
    assert good["error"] is None
    (row,) = rows(tmp_path)
    assert (row["faulty"], row["status"]) == ("", "finished")
    assert float(row["weight_norm"]) == pytest.approx(good["value"])
    shown = " ".join(sharpflat("show", "tiny", "--root", tmp_path).out.split())
    assert f"faulty: failed, or not finite, in 1 runs ({record.id[:6]})" in shown

    assert run(tmp_path, **study).code == 1, "tried again, and again in vain"

    (tmp_path / "faulty.py").write_text(MENDED)
    outcome = run(tmp_path, **study)
    assert outcome.code == 0, outcome
    lines = [json.loads(line) for line in record.measurements_file.read_text().splitlines()]
    assert [line["metric"] for line in lines] == ["faulty", "weight_norm", "faulty", "faulty"]
    (row,) = rows(tmp_path)
    assert float(row["faulty"]) == pytest.approx(float(row["weight_norm"]))


def test_errors_of_what_is_not_asked_for_do_not_count(tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    study = {"plugins": ["norm.py", "faulty.py"], "sweep": None}
    assert run(tmp_path, **study, measure={"metrics": ["faulty"]}).code == 1
    assert run(tmp_path, **study).code == 0


def test_a_metric_that_returns_something_else(tmp_path):
    (tmp_path / "faulty.py").write_text(
        MENDED.replace("return sf.Estimate(norm**power, 0.0, True, {", "return (norm**power, {")
    )
    study = {"plugins": ["norm.py", "faulty.py"], "sweep": None}
    outcome = run(tmp_path, **study, measure={"metrics": ["faulty", "weight_norm"]})
    assert outcome.code == 1
    assert "not an Estimate" in outcome.err
    (record,) = sf.load_runs(tmp_path, "tiny")
    assert [row["error"] is None for row in record.measurements] == [False, True]


def test_a_damaged_snapshot_is_its_own_runs_error(tmp_path):
    study = {"seeds": 2, "sweep": None}
    path = write(tmp_path, **study)
    assert sharpflat("train", path, "--root", tmp_path).code == 0
    first, second = sf.load_runs(tmp_path, "tiny")
    last = max(first.folder.glob("snapshots/*.npz"), key=lambda file: int(file.stem))
    whole = last.read_bytes()
    last.write_bytes(whole[:200])
    outcome = run(tmp_path, **study)
    assert outcome.code == 1
    assert outcome.err.count(f"run {first.id}: weight_norm: InputError: snapshot {last}") == 1
    assert [row["error"] is None for row in second.measurements] == [True]
    assert last.read_bytes() == whole[:200]
    last.write_bytes(whole)
    assert run(tmp_path, **study).code == 0
    assert [row["error"] is None for row in first.measurements] == [True]


@pytest.mark.parametrize("line", ["{broken", "3", "{}", "\udcff"])
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path, line):
    assert run(tmp_path, sweep=None).code == 0
    (record,) = sf.load_runs(tmp_path, "tiny")
    damaged = (
        line.encode("utf-8", "surrogateescape") + b"\n" + record.measurements_file.read_bytes()
    )
    record.measurements_file.write_bytes(damaged)
    said = run(tmp_path, sweep=None).complaint
    assert said.startswith(f"{record.measurements_file}: line 1 is damaged; mend or remove it: ")
    assert record.measurements_file.read_bytes() == damaged


@pytest.mark.parametrize("text", ['{"status": ', "null", "{}"])
def test_a_damaged_status_is_named(tmp_path, text):
    assert run(tmp_path, sweep=None).code == 0
    (record,) = sf.load_runs(tmp_path, "tiny")
    (record.folder / "status.json").write_text(text)
    said = run(tmp_path, sweep=None).complaint
    assert said.startswith(f"{record.folder}/status.json: is damaged")


def test_a_damaged_start_is_only_its_own_metrics_error(tmp_path):
    study = {"sweep": None, "measure": {"metrics": ["distance_from_initialization", "weight_norm"]}}
    (tmp_path / "norm.py").write_text(NORM)
    path = write(tmp_path, seeds=1, plugins=["norm.py"], **study)
    assert sharpflat("train", path, "--root", tmp_path).code == 0
    (record,) = sf.load_runs(tmp_path, "tiny")
    (record.folder / "snapshots" / "0.npz").write_bytes(b"")
    outcome = run(tmp_path, **study)
    assert outcome.code == 1
    assert [row["error"] is None for row in record.measurements] == [False, True]


PICKY = NORM.replace(
    "@sf.metric",
    """def refuse(objective, arguments):
    if float(sf.trees.norm(objective.params)) > 0:
        raise {error}("not [here]")


@sf.metric(checks=(refuse,))""",
).replace("weight_norm", "picky")


@pytest.mark.parametrize("error", ["sf.InputError", "TypeError"])
def test_a_check_that_needs_numbers_refuses_its_own_metric_only(tmp_path, error):
    (tmp_path / "picky.py").write_text(PICKY.replace("{error}", error))
    study = {"plugins": ["norm.py", "picky.py"], "sweep": None}
    outcome = run(tmp_path, **study, measure={"metrics": ["picky", "weight_norm"]})
    assert outcome.code == 1
    (record,) = sf.load_runs(tmp_path, "tiny")
    picky, norm = record.measurements
    assert "not [here]" in picky["error"]
    assert norm["error"] is None


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


ADAM = {"name": "adam", "learning_rate": 0.01}
PLAIN = {"name": "gradient_descent", "learning_rate": 0.01}


def test_all_leaves_out_what_a_run_cannot_give_and_says_so(tmp_path, monkeypatch):
    kept = {name: metrics[name] for name in ("parameter_norm", "preconditioned_sharpness")}
    monkeypatch.setattr(metrics, "_entries", kept)
    study = {"measure": {"metrics": "all", "chunk": 40}, "plugins": []}
    train = {"batch_size": 8, "epochs": 1}
    sweep = {"train.optimizer": [ADAM, PLAIN]}
    line = "left out of 1 of 2 runs: preconditioned_sharpness: opt_state: holds no second moments"
    planned = run(tmp_path, "--dry-run", train={**train, "optimizer": ADAM}, sweep=sweep, **study)
    assert planned.code == 0, planned
    assert line in planned.out
    assert [f"new, {n} measurements to make" in planned.out for n in (0, 1, 2)] == [
        False,
        True,
        True,
    ]
    outcome = run(tmp_path, train={**train, "optimizer": ADAM}, sweep=sweep, **study)
    assert outcome.code == 0, outcome
    assert outcome.err.count(line) == 1
    adam, plain = sf.load_runs(tmp_path, "tiny")
    assert [row["metric"] for row in adam.measurements] == list(kept)
    assert [row["metric"] for row in plain.measurements] == ["parameter_norm"]


def test_left_out_counts_runs(tmp_path, monkeypatch):
    kept = {name: metrics[name] for name in ("parameter_norm", "preconditioned_sharpness")}
    monkeypatch.setattr(metrics, "_entries", kept)
    blocks = [
        {"metrics": "all", "chunk": 40, "batch_norm": ["running", "batch"]},
        {"metrics": "all", "chunk": 20, "split": "test", "seeds": [0]},
    ]
    train = {"batch_size": 8, "epochs": 1, "optimizer": PLAIN}
    planned = run(
        tmp_path, "--dry-run", train=train, sweep=None, seeds=2, measure=blocks, plugins=[]
    )
    assert "left out of 2 of 2 runs" in planned.out
    assert "parameter_norm on all test examples, bn running, chunk 20, seed 0" in planned.out


@pytest.mark.parametrize("rules", [[ADAM, PLAIN], [PLAIN, ADAM], [PLAIN]])
def test_what_is_asked_for_by_name_must_be_possible(tmp_path, rules):
    said = run(
        tmp_path, train={"batch_size": 8, "epochs": 1, "optimizer": PLAIN},
        sweep={"train.optimizer": rules}, measure={"metrics": ["preconditioned_sharpness"]},
    ).complaint  # fmt: skip
    assert said.startswith("preconditioned_sharpness: opt_state: holds no second moments known")
    assert not (tmp_path / "runs").exists()


RULE = """
import optax
import sharpflat as sf


@sf.optimizer
def own(*, learning_rate: sf.Positive = 0.01):
    \"\"\"Somebody's.\"\"\"
    return optax.sgd(learning_rate)
"""


def test_what_can_be_measured_follows_the_code_of_an_optimizer(tmp_path):
    study = {"plugins": ["norm.py", "own.py"], "sweep": None}
    study["measure"] = {"metrics": ["preconditioned_sharpness"]}
    train = {"batch_size": 8, "epochs": 1, "optimizer": {"name": "own"}}
    (tmp_path / "own.py").write_text(RULE)
    assert "holds no second moments" in run(tmp_path, train=train, **study).complaint
    (tmp_path / "own.py").write_text(RULE.replace("sgd", "adam"))
    assert run(tmp_path, train=train, **study).code == 0
