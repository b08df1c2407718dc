"""λmax watched beside the optimizer's threshold: whose numbers, how certain, at what cost."""

import numpy as np
import pytest
from runs.studies import UPDATES
from runs.watched import seen, study

import sharpflat as sf
from sharpflat.runs import trackers


def test_each_optimizers_own_threshold_stands_beside(tmp_path):
    (run,) = sf.train(study(tmp_path, ["top_eigenvalue"]), tmp_path)
    edges = {round(row["stability_threshold"], 3) for row in run.tracked}
    assert edges == {round(2 * 1.9 / 0.05, 3)}

    track = ["top_eigenvalue", "preconditioned_sharpness", "batch_losses"]
    adam = {"name": "adam", "learning_rate": 0.01}
    (run,) = sf.train(study(tmp_path, track, adam), tmp_path)
    assert {row["stability_threshold"] for row in seen(run, "top_eigenvalue")} == {None}
    rows = seen(run, "preconditioned_sharpness")
    assert [row["step"] for row in rows] == [5, 10, 15, 20], "no second moments at the start"
    assert {round(row["stability_threshold"]) for row in rows} == {3800}
    assert "stability_threshold" not in seen(run, "batch_losses")[0]

    sam = {"name": "sam", "learning_rate": 0.05, "rho": 0.1}
    (run,) = sf.train(study(tmp_path, ["top_eigenvalue"], sam), tmp_path)
    edges = [row["stability_threshold"] for row in run.tracked]
    assert len(set(edges)) == len(edges), "it follows the gradient's norm"
    penalised = study(tmp_path, ["top_eigenvalue"], train={"gradient_penalty": 0.1})
    (run,) = sf.train(penalised, tmp_path)
    assert {row["stability_threshold"] for row in run.tracked} == {None}


@pytest.mark.parametrize(
    ("optimizer", "given", "numbers"),
    [
        ("adam", {"b1": 0.7, "b2": 0.9, "epsilon": 1e-3}, (0.7, 0.9, 1e-3)),
        ("lamb", {"b2": 0.9}, (0.9, 0.9, 1e-6)),
        ("adagrad", {}, (0.9, 0.999, 1e-7)),
    ],
)
def test_the_preconditioner_is_of_the_runs_own_numbers(tmp_path, optimizer, given, numbers):
    """Of its β₁, β₂ and ε, at a look and in a measurement: else 1 / 9 of it, beside its edge."""
    name = "preconditioned_sharpness"
    measured = {"metrics": [name], "batch_norm": ["batch"], "examples": 40, "chunk": 40}
    rule = {"name": optimizer, "learning_rate": 0.01, **given}
    config = study(tmp_path, [name], rule, train={"epochs": 1}, measure=measured)
    (run,) = sf.run(config, tmp_path)
    objective = run.objective("train", "batch", chunk=40)
    own = dict(zip(("b1", "b2", "epsilon"), numbers, strict=True))
    right = sf.measure(objective, name, opt_state=run.opt_state, **own).value
    assert run.tracked[-1]["value"] == pytest.approx(right, rel=1e-3)
    (row,) = run.measurements
    assert row["value"] == pytest.approx(right, rel=1e-3)
    if optimizer == "adam":
        assert sf.measure(objective, name, opt_state=run.opt_state).value < right / 2


def test_no_threshold_stands_beside_the_curvature_of_some_parameters(tmp_path):
    track = [{"hessian_top_eigenvalues": {"parameters": "*/kernel"}}]
    (run,) = sf.train(study(tmp_path, track), tmp_path)
    assert {row["stability_threshold"] for row in run.tracked} == {None}
    assert all(row["value"] > 0 for row in run.tracked)


def test_a_warm_start_saves_products(tmp_path, monkeypatch):
    track = [{"top_eigenvalue": {"every": 2, "unit": "updates", "certify": False}}]
    model = {"name": "mlp", "width": 16, "depth": 2}
    (warm,) = sf.train(study(tmp_path, track, model=model), tmp_path / "warm")
    monkeypatch.setattr(trackers, "leading", lambda space, m: np.zeros(space.size))
    (cold,) = sf.train(study(tmp_path, track, model=model), tmp_path / "cold")
    made = [[row["details"]["products"] for row in run.tracked] for run in (warm, cold)]
    assert made[0][0] == made[1][0]
    assert sum(made[0][1:]) < sum(made[1][1:])
    for one, other in zip(warm.tracked, cold.tracked, strict=True):
        assert one["value"] == pytest.approx(other["value"], rel=1e-3)


def test_the_largest_eigenvalue_is_certified_unless_that_is_given_up(tmp_path):
    track = [{"top_eigenvalue": {"every": 2, "unit": "updates", "chunk": 40}}]
    model = {"name": "mlp", "width": 16, "depth": 2}
    (run,) = sf.train(study(tmp_path, track, model=model), tmp_path / "certified")
    assert all(row["converged"] and row["standard_error"] == 0 for row in run.tracked)
    assert all(row["details"]["missed"] <= 0.01 for row in run.tracked)
    track[0]["top_eigenvalue"]["certify"] = False
    (less,) = sf.train(study(tmp_path, track, model=model), tmp_path / "less")
    assert not all(row["converged"] for row in less.tracked)
    for row in less.tracked:
        assert row["details"]["residual"] <= 1e-3
        assert row["converged"] is (row["details"]["missed"] <= 0.01)
    made = [sum(row["details"]["products"] for row in one.tracked) for one in (less, run)]
    assert made[0] < 0.9 * made[1]


def test_the_threshold_follows_the_schedule(tmp_path):
    train = {"schedule": {"name": "cosine"}, "warmup": 1.0}
    (run,) = sf.train(study(tmp_path, ["top_eigenvalue"], train=train), tmp_path)
    count, rates = 4 * UPDATES, {0: 0.05 / UPDATES}
    for step in range(UPDATES, count, UPDATES):
        progress = (step - UPDATES) / (count - UPDATES - 1)
        rates[step] = 0.05 * (1 + np.cos(np.pi * progress)) / 2
    found = {row["step"]: row["stability_threshold"] for row in run.tracked}
    assert found.pop(count) is None, "no rate is left at the end"
    for step, edge in found.items():
        assert edge == pytest.approx(2 * 1.9 / rates[step], rel=1e-5)


def test_a_clipped_step_has_no_published_threshold(tmp_path):
    (run,) = sf.train(study(tmp_path, ["top_eigenvalue"], train={"clip": 1.0}), tmp_path)
    assert {row["stability_threshold"] for row in run.tracked} == {None}
