"""What is watched while a run trains: the right numbers at the right times, and no bit changed."""

import numpy as np
import pytest
from runs.interrupted import interrupted
from runs.kills import history, same
from runs.studies import BATCH_NORM
from runs.watched import seen, study

import sharpflat as sf
from sharpflat.runs import tracking, train_run
from sharpflat.runs.build import state_like
from sharpflat.runs.snapshots import load_tree
from sharpflat.training.batching import epoch_order

EVERYTHING = [
    "top_eigenvalue",
    {"batch_losses": {"every": 2, "unit": "updates"}},
    {"snapshots": {"every": 2}},
    {"distance_from_initialization": {"every": 3, "unit": "updates"}},
    {"batch_sharpness": {"batch_size": 8, "examples": 40, "chunk": 40}},
    {"gradient_noise_scale": {"chunk": 40, "batch_norm": "running"}},
]


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
        for name, rel in (("batch_losses", 1e-5), ("top_eigenvalue", 2e-3)):
            values = [
                [r["value"] for r in run.tracked if r["track"] == name] for run in (one, other)
            ]
            assert len(values[0]) > 1
            assert values[0] == pytest.approx(values[1], rel=rel)


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
        interrupted(config, tmp_path / "broken", monkeypatch, saves)
    for one, other in zip(sf.train(config, tmp_path / "broken"), unbroken, strict=True):
        assert len(one.provenance["resumed"]) == 2
        assert untimed(one) == untimed(other)
        assert same(one, other)
