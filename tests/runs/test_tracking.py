"""What is watched while a run trains: the right numbers at the right times, and no bit changed."""

import numpy as np
import pytest
from runs.kills import history, same
from runs.studies import sharpflat, write
from runs.test_groups import stop_after
from runs.test_resume import interrupted

import sharpflat as sf
from sharpflat.runs import trackers, tracking, train_run
from sharpflat.runs.build import state_like
from sharpflat.runs.snapshots import load_tree
from sharpflat.training.batching import epoch_order

UPDATES = 5
"""An epoch, at batch size 8."""

BATCH_NORM = {"name": "mlp", "width": 8, "depth": 1, "batch_norm": True}
MOMENTUM = {"name": "momentum", "learning_rate": 0.05, "decay": 0.9}
EVERYTHING = [
    "top_eigenvalue",
    {"batch_losses": {"every": 2, "unit": "updates"}},
    {"snapshots": {"every": 2}},
    {"distance_from_initialization": {"every": 3, "unit": "updates"}},
    {"batch_sharpness": {"batch_size": 8, "examples": 40, "chunk": 40}},
    {"gradient_noise_scale": {"chunk": 40, "batch_norm": "running"}},
]


def study(folder, track, optimizer=MOMENTUM, **changes):
    train = {"batch_size": 8, "epochs": 4, "optimizer": optimizer, "track": track}
    train |= changes.pop("train", {})
    given = {"sweep": None, "seeds": 1, "train": train, **changes}
    return sf.load_config(write(folder, **given))


def seen(run, name):
    return [row for row in run.tracked if row["track"] == name]


def untimed(run):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in run.tracked]


def test_each_is_looked_at_when_it_is_due(tmp_path):
    (run,) = sf.train(study(tmp_path, EVERYTHING), tmp_path)
    steps = {name: [row["step"] for row in seen(run, name)] for name in (
        "top_eigenvalue", "batch_losses", "distance_from_initialization", "batch_sharpness",
        "gradient_noise_scale")}  # fmt: skip
    assert steps == {
        "top_eigenvalue": [0, 5, 10, 15, 20],
        "batch_losses": [*range(0, 21, 2)],
        "distance_from_initialization": [*range(0, 21, 3)],
        "batch_sharpness": [0, 5, 10, 15, 20],
        "gradient_noise_scale": [0, 5, 10, 15, 20],
    }
    assert [row["epoch"] for row in seen(run, "batch_losses")][:3] == [0.0, 0.4, 0.8]
    assert not any(row["error"] for row in run.tracked)
    kept = sorted(int(path.stem) for path in run.folder.glob("snapshots/*.npz"))
    assert kept == [0, 10, 20]
    assert {row["batch_norm"] for row in seen(run, "gradient_noise_scale")} == {"running"}


def test_the_numbers_are_those_of_the_metrics_there(tmp_path):
    track = ["top_eigenvalue", "distance_from_initialization", "hessian_top_eigenvalues"]
    (run,) = sf.train(study(tmp_path, [*track, "snapshots"]), tmp_path)
    for epoch in range(4):
        state = run.snapshot(epoch)
        objective = sf.Objective.from_model(
            *_network(run), state.params, state.model_state, _data(run), batch_norm="batch"
        )
        exact = sf.measure(objective, "hessian_top_eigenvalues", tolerance=1e-5).value
        far = sf.measure(
            objective, "distance_from_initialization", initial_params=run.initial_params
        )
        rows = {name: seen(run, name)[epoch] for name in track}
        assert rows["top_eigenvalue"]["converged"]
        assert rows["top_eigenvalue"]["value"] == pytest.approx(exact, rel=1e-2)
        assert rows["hessian_top_eigenvalues"]["value"] == pytest.approx(exact, rel=1e-2)
        assert rows["distance_from_initialization"]["value"] == pytest.approx(far.value, rel=1e-5)


def _network(run):
    from sharpflat.runs.build import build_recipe

    return (build_recipe(run.config).model,)


def _data(run):
    from sharpflat.runs.build import resident

    return resident(run.config["dataset"]).train


@pytest.mark.parametrize("ghost", [None, 4])
def test_batch_losses_by_hand(tmp_path, ghost):
    train = {"batch_size": 16, "ghost_batch_norm": ghost, "epochs": 1}
    model = BATCH_NORM if ghost else {"name": "mlp", "width": 8, "depth": 1}
    config = study(tmp_path, ["batch_losses"], model=model, train=train)
    (run,) = sf.train(config, tmp_path)
    order, data = np.asarray(epoch_order(0, 1, 40)), _data(run)
    start = load_tree(run.folder / "snapshots" / "0.npz", state_like(run.config))
    expected = []
    for indices in (order[:16], order[16:32], order[32:]):
        part = sf.Batch(data.inputs[indices], data.labels[indices])
        objective = sf.Objective.from_model(
            *_network(run), start.params, start.model_state, part, batch_norm="batch",
            chunk=ghost or 16,
        )  # fmt: skip
        expected.append(float(objective.loss(start.params)))
    row = seen(run, "batch_losses")[0]
    assert row["details"]["losses"] == pytest.approx(expected, rel=1e-5)
    assert row["value"] == pytest.approx(np.average(expected, weights=[16, 16, 8]), rel=1e-5)
    assert row["details"]["standard_deviation"] == pytest.approx(np.std(expected), rel=1e-4)


@pytest.mark.parametrize("model", [None, BATCH_NORM], ids=["plain", "batch norm"])
def test_watching_changes_no_bit(tmp_path, model):
    model = model or {"name": "mlp", "width": 8, "depth": 1}
    (watched,) = sf.train(study(tmp_path, EVERYTHING, model=model), tmp_path)
    (alone,) = sf.train(study(tmp_path, [], model=model), tmp_path)
    assert watched.id != alone.id
    assert same(watched, alone)
    assert history(watched) == history(alone)


def test_off_leaves_nothing(tmp_path):
    (run,) = sf.train(study(tmp_path, []), tmp_path)
    assert not (run.folder / "tracked.jsonl").exists()
    assert run.tracked == []
    assert sorted(path.stem for path in run.folder.glob("snapshots/*.npz")) == ["0", "20"]


def test_what_is_resumed_was_watched_as_if_unbroken(tmp_path, monkeypatch):
    config = study(tmp_path, EVERYTHING, train={"epochs": 7})
    (unbroken,) = sf.train(config, tmp_path / "unbroken")
    for saves in (2, 3):
        interrupted(config, tmp_path / "broken", monkeypatch, saves)
    (resumed,) = sf.train(config, tmp_path / "broken")
    assert len(resumed.provenance["resumed"]) == 2
    assert untimed(resumed) == untimed(unbroken)
    assert same(resumed, unbroken)


def test_runs_together_are_watched_as_alone(tmp_path):
    track = ["top_eigenvalue", {"batch_losses": {"every": 3, "unit": "updates"}}]
    config = study(tmp_path, track, seeds=2)
    alone = sf.train(config, tmp_path / "alone")
    grouped = study(tmp_path, track, seeds=2, together=True)
    for one, other in zip(alone, sf.train(grouped, tmp_path / "together"), strict=True):
        assert "together" in other.provenance
        assert [row["step"] for row in one.tracked] == [row["step"] for row in other.tracked]
        values = [[row["value"] for row in run.tracked] for run in (one, other)]
        assert values[0] == pytest.approx(values[1], rel=2e-2)


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

    monkeypatch.setattr(tracking, "load_tree", full)
    sf.train(study(tmp_path, ["distance_from_initialization"]), tmp_path)
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


def test_off_it_costs_nothing(tmp_path, monkeypatch):
    given, begun = [], train_run.advance

    def advance(*arguments, **options):
        given.append(options["stops_at"])
        return begun(*arguments, **options)

    def look(*_):
        raise AssertionError("nothing is to be looked at")

    monkeypatch.setattr(train_run, "advance", advance)
    monkeypatch.setattr(tracking, "Look", look)
    config = study(tmp_path, [])
    (run,) = sf.train(config, tmp_path)
    assert run.finished
    assert given == [[]], "no segment ends for it"
    assert tracking.Tracking(run.config, run.folder, None, None).carried.size == 0


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


def test_what_is_streamed_is_watched_as_what_is_on_the_device(tmp_path):
    streamed = study(tmp_path, EVERYTHING, model=BATCH_NORM, dataset_on_device=False)
    (one,) = sf.train(streamed, tmp_path / "streamed")
    (other,) = sf.train(study(tmp_path, EVERYTHING, model=BATCH_NORM), tmp_path / "on the device")
    assert one.provenance["layout"]["streamed"]
    assert [row["step"] for row in one.tracked] == [row["step"] for row in other.tracked]
    for row, expected in zip(one.tracked, other.tracked, strict=True):
        assert row["value"] == pytest.approx(expected["value"], rel=1e-4)


def test_a_resumed_group_was_watched_as_if_unbroken(tmp_path, monkeypatch):
    config = study(tmp_path, EVERYTHING, train={"epochs": 7}, seeds=2, together=True)
    unbroken = sf.train(config, tmp_path / "unbroken")
    for saves in (2, 3):
        stop_after(saves, config, tmp_path / "broken", monkeypatch)
    for one, other in zip(sf.train(config, tmp_path / "broken"), unbroken, strict=True):
        assert len(one.provenance["resumed"]) == 2
        assert untimed(one) == untimed(other)
        assert same(one, other)
