"""Sweeps and overrides."""

import pytest
from config.given import cells, load, refusal, sizes

from sharpflat import config as configs


def test_seeds(tmp_path):
    assert load(tmp_path, "seeds=3").seed_list == [0, 1, 2]
    assert [run.seed for run in cells(tmp_path, "seeds=[7, 2]", "sweep={}")] == [7, 2]
    assert [run.seed for run in cells(tmp_path, "seeds=[2, 2]", "sweep={}")] == [2]


def test_a_sweep_of_keys_gives_every_combination(tmp_path):
    sweep = {"train.batch_size": [8, 40], "model.width": [4, 6, 8]}
    runs = cells(tmp_path, sweep=sweep, seeds=2)
    assert len({run.id for run in runs}) == len(runs) == 12
    met = {(r.train["batch_size"], r.model["width"], r.seed) for r in runs}
    assert met == {(b, w, s) for b in (8, 40) for w in (4, 6, 8) for s in (0, 1)}
    assert runs[0].swept == {"train.batch_size": 8, "model.width": 4}


def test_a_sweep_of_settings_takes_each_as_it_stands(tmp_path):
    sweep = [{"train.batch_size": 8, "train.epochs": 2}, {"train.batch_size": 40}]
    runs = cells(tmp_path, sweep=sweep, seeds=1)
    assert [(r.train["batch_size"], r.train["epochs"]) for r in runs] == [(8, 2), (40, 3)]
    assert runs[1].swept == {"train.batch_size": 40, "train.epochs": 3}


def test_whole_entries_can_be_swept(tmp_path):
    sweep = {"model": [{"name": "mlp", "width": 4}, {"name": "f1"}]}
    assert [run.model["name"] for run in cells(tmp_path, sweep=sweep, seeds=1)] == ["mlp", "f1"]


def test_equal_settings_count_once(tmp_path):
    assert sizes(cells(tmp_path, sweep={"train.batch_size": [8, 8, 40]}, seeds=1)) == [8, 40]


def test_an_override_replaces_a_swept_axis(tmp_path):
    runs = cells(tmp_path, "train.batch_size=16")
    assert sizes(runs) == [16, 16]
    assert runs[0].swept == {"train.batch_size": 16}
    other = {"train.batch_size": [8, 40], "model.width": [4, 8]}
    runs = cells(tmp_path, "train.batch_size=16", sweep=other, seeds=1)
    assert [(r.train["batch_size"], r.model["width"]) for r in runs] == [(16, 4), (16, 8)]


def test_an_override_is_dropped_from_each_setting(tmp_path):
    sweep = [
        {"train.batch_size": 8, "train.epochs": 2},
        {"train.batch_size": 40, "train.epochs": 5},
        {"train.batch_size": 20, "train.epochs": 5},
    ]
    config = load(tmp_path, "train.batch_size=16", sweep=sweep, seeds=1)
    assert config.sweep == [{"train.epochs": 2}, {"train.epochs": 5}]
    assert [run.train["epochs"] for run in configs.cells(config)] == [2, 5]
    assert set(sizes(configs.cells(config))) == {16}


def test_overrides_are_read_as_yaml(tmp_path):
    config = load(tmp_path, "seeds=[3, 4]", "train.stop={patience: 2}", "train.drop_last=true")
    assert config.seeds == [3, 4]
    assert config.train.stop.patience == 2
    assert config.train.drop_last is True
    assert load(tmp_path, "train.stop.patience=2").train.stop.patience == 2


def test_an_override_replaces_a_whole_entry(tmp_path):
    run = cells(tmp_path, "dataset={name: digits}")[0]
    assert run.dataset == {"name": "digits", "train_examples": 1000, "split_seed": 0}


@pytest.mark.parametrize(
    ("override", "swept"),
    [
        ("train={batch_size: 16, epochs: 2, optimizer: {name: adam}}", {"train.batch_size": [8]}),
        ("model.width=16", {"model": [{"name": "mlp"}, {"name": "f1"}]}),
    ],
)
def test_an_override_that_the_sweep_would_undo_is_refused(tmp_path, override, swept):
    key = override.partition("=")[0]
    for sweep in (swept, [{name: values[0] for name, values in swept.items()}]):
        message = refusal(tmp_path, override, sweep=sweep)
        assert message.startswith(f"override {key}: '{next(iter(swept))}' is swept")


def test_later_overrides_win(tmp_path):
    assert load(tmp_path, "seeds=1", "seeds=4").seeds == 4


@pytest.mark.parametrize("override", ["train.epochs", "=3", "", "train.epochs: 3"])
def test_an_override_needs_key_and_value(tmp_path, override):
    assert "expected key=value" in refusal(tmp_path, override)


def test_overrides_below_what_is_no_mapping(tmp_path):
    assert refusal(tmp_path, "seeds.first=3").startswith("seeds.first: ")
    assert refusal(tmp_path, "train.epochs=[1,").startswith("override train.epochs")
