"""What can be measured of a run, and what is left out or refused."""

import pytest
from runs.failing import run

import sharpflat as sf
from sharpflat.registry import metrics

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
