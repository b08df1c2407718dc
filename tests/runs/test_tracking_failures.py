"""What fails while it watches, or cannot be watched: its own error, and the training goes on."""

import pytest
from runs.studies import BATCH_NORM, sharpflat, write
from runs.watched import seen, study

import sharpflat as sf
from sharpflat.runs import trackers, tracking


def test_a_run_that_diverges_says_so_in_its_lines(tmp_path):
    wild = {"name": "gradient_descent", "learning_rate": 1e30}
    every = {"every": 1, "unit": "updates"}
    track = [{"top_eigenvalue": every}, {"parameter_norm": every}]
    (run,) = sf.train(study(tmp_path, track, wild), tmp_path)
    assert run.status["status"] == "diverged"
    last = run.tracked[-1]
    assert last["value"] is None
    assert not last["converged"]
    assert "not finite" in last["error"]


FAILING = '''
import sharpflat as sf


@sf.metric
def sometimes(objective, key) -> sf.Estimate:
    """A metric that fails."""
    raise RuntimeError("no more")
'''


def test_a_metric_that_fails_leaves_the_others_and_the_training(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    track = ["sometimes", "parameter_norm"]
    config = study(tmp_path, track, plugins=[str(tmp_path / "failing.py")])
    (run,) = sf.train(config, tmp_path)
    assert run.finished
    assert all("no more (failing.py, line 8)" in row["error"] for row in seen(run, "sometimes"))
    assert all(row["value"] > 0 for row in seen(run, "parameter_norm"))


PICKY = """
import sharpflat as sf


def refuse(objective, arguments):
    if float(sf.trees.norm(objective.params)) > 0:
        raise TypeError("not [here]")


@sf.metric(checks=(refuse,))
def picky(objective, key) -> sf.Estimate:
    \"\"\"A metric whose check looks at numbers.\"\"\"
    return sf.Estimate(1.0, 0.0, True)
"""


def raising(*_, **__):
    raise ValueError("out of luck")


def test_what_refuses_at_a_look_leaves_the_others_and_the_training(tmp_path, monkeypatch):
    (tmp_path / "picky.py").write_text(PICKY)
    track = ["picky", "parameter_norm", "distance_from_initialization"]
    config = study(tmp_path, track, plugins=[str(tmp_path / "picky.py")])
    monkeypatch.setattr(tracking, "load_tree", raising)
    (run,) = sf.train(config, tmp_path)
    assert run.finished
    assert len(seen(run, "picky")) == 5
    assert all("TypeError: not [here]" in row["error"] for row in seen(run, "picky"))
    far = seen(run, "distance_from_initialization")
    assert all("out of luck" in row["error"] for row in far)
    norms = seen(run, "parameter_norm")
    assert len(norms) == 5
    assert not any(row["error"] for row in norms)


def test_an_objective_that_cannot_be_made_is_the_error_of_what_looks_at_it(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.Look, "objective", raising)
    (run,) = sf.train(study(tmp_path, ["parameter_norm", "snapshots"]), tmp_path)
    assert run.finished
    assert {row["error"] for row in run.tracked} == {"ValueError: out of luck"}
    assert len(list(run.folder.glob("snapshots/*.npz"))) == 5


def test_a_threshold_that_fails_leaves_the_curvature(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "stability_threshold", raising)
    (run,) = sf.train(study(tmp_path, ["hessian_top_eigenvalues"]), tmp_path)
    assert run.finished
    for row in run.tracked:
        assert row["value"] > 0
        assert row["stability_threshold"] is None
        assert row["error"] == "stability_threshold: ValueError: out of luck"


def test_a_full_disk_stops_the_training(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(trackers, "save_tree", full)
    sf.train(study(tmp_path, ["snapshots"]), tmp_path)
    (run,) = sf.load_runs(tmp_path)
    assert run.status["status"] == "failed"
    assert "no space left" in run.status["reason"]


def test_a_loss_that_is_not_finite_is_each_ones_error(tmp_path):
    """Parameters of 1e14 or so, whose squared error is beyond float32."""
    wild = {"name": "gradient_descent", "learning_rate": 1e15}
    track = [{"parameter_norm": {"unit": "updates"}}, {"gradient_norm": {"unit": "updates"}}]
    train = {"loss": "squared_error"}
    (run,) = sf.train(study(tmp_path, track, wild, train=train), tmp_path)
    assert run.status["status"] == "diverged"
    for name in ("parameter_norm", "gradient_norm"):
        row = next(row for row in seen(run, name) if row["step"] == 1)
        assert row["value"] is None
        assert "loss: is inf at these parameters" in row["error"]


BAD = [
    ("[top_eigenvalu]", "train.track: unknown 'top_eigenvalu'; did you mean 'top_eigenvalue'?"),
    ("[{top_eigenvalue: {evry: 2}}]", "evry"),
    ("[{top_eigenvalue: {every: 0}}]", "train.track.top_eigenvalue.every"),
    ("[{top_eigenvalue: 5}]", "train.track.top_eigenvalue: expected a mapping of arguments, got 5"),
    ("[{snapshots: {unit: steps}}]", "train.track.snapshots.unit"),
    ("[{top_eigenvalue: {}, snapshots: {}}]", "train.track: expected a name"),
    ("[{top_eigenvalue: {examples: 30, chunk: 20}}]", "train.track.top_eigenvalue.chunk: 20"),
    ("[{parameter_norm: {batch_norm: none}}]", "train.track.parameter_norm.batch_norm"),
    ("[{batch_sharpness: {batch_size: 41}}]", "batch_size: 41 is above the 40 examples"),
    ("[preconditioned_sharpness]", "holds no second moments"),
]


@pytest.mark.parametrize(("track", "said"), BAD, ids=[track for track, _ in BAD])
def test_what_cannot_be_watched_is_refused_before_any_work(tmp_path, track, said):
    optimizer = {"name": "gradient_descent", "learning_rate": 0.1}
    train = {"batch_size": 8, "epochs": 2, "optimizer": optimizer}
    path = write(tmp_path, model=BATCH_NORM, train=train, sweep=None)
    outcome = sharpflat("train", path, f"train.track={track}", "--root", tmp_path / "results")
    assert said in outcome.complaint
    assert not list(tmp_path.glob("results/runs/*"))


ABSENT = """
import sharpflat as sf


@sf.dataset
def absent(*, size: int = 4) -> sf.Batch:
    raise RuntimeError("nothing there")
"""


def test_a_data_set_that_raises_fails_its_own_run_alone(tmp_path):
    """Whether it is watched or not."""
    (tmp_path / "absent.py").write_text(ABSENT)
    good = study(tmp_path, ["parameter_norm"]).dataset
    content = {
        "plugins": [str(tmp_path / "absent.py")],
        "sweep": {"dataset": [{"name": "absent"}, good]},
    }
    config = study(tmp_path, ["parameter_norm"], **content)
    for _ in range(2):  # the first leaves a record of what failed
        statuses = [run.status["status"] for run in sf.train(config, tmp_path / "results")]
        assert sorted(statuses) == ["failed", "finished"]
