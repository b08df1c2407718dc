"""From a config's keys to what an update is made of: each key reaches its place, and only that."""

import jax
import numpy as np
import pytest
from runs.studies import UPDATES, sharpflat, write

import sharpflat as sf
from sharpflat import config as configs
from sharpflat.config.cells import LATER
from sharpflat.runs.build import build_recipe, epochs_of, optimizer_arguments
from sharpflat.training import Adversarial, Augmentation

OF_RECIPE = {
    "clip": (0.01, {"clip": 0.01}),
    "gradient_penalty": (0.5, {"gradient_penalty": 0.5}),
    "accumulate": (2, {"chunk": 4}),
    "ghost_batch_norm": (4, {"ghost": 4}),
    "augment": (
        {"flip": True, "rotate": 10.0, "shift": 0.2},
        {"augmentation": Augmentation(flip=True, rotate=10.0, shift=0.2)},
    ),
    "label_noise": ({"fraction": 0.5, "draw": 1, "resample": True}, {"relabel": (3, 0.5, 1)}),
    "adversarial": (
        {"epsilon": 0.3, "share": 0.25, "norm": "l2", "steps": 2},
        {"adversarial": Adversarial(0.3, 0.25, "l2", 2)},
    ),
    "matmul_precision": ("highest", {"matmul_precision": "highest"}),
    "compute_dtype": ("bfloat16", {"compute_dtype": "bfloat16"}),
}  # fmt: skip

OF_OPTIMIZER = {
    "schedule": ({"name": "cosine"}, {"schedule": {"name": "cosine", "final": 0.0}}),
    "warmup": (1.0, {"warmup": 1.0 * UPDATES}),
    "learning_rate_rule": ({"rule": "sqrt", "reference": 2}, {"scale": 2.0}),
    "regime_adaptation": ({"reference": 4}, {"updates": 2 * 3 * UPDATES}),
    "ema": ({"decay": 0.5}, {"average": ("ema", 0.5)}),
    "swa": ({"start": 2, "every": 3}, {"average": ("swa", 2 * UPDATES, 3 * UPDATES)}),
    "conservative": (
        {"strength": 0.5, "steps": 2}, {"conservative": (0.5, 2), "updates": 2 * 3 * UPDATES},
    ),
}  # fmt: skip

KEYS = {**OF_RECIPE, **OF_OPTIMIZER}
ON_CPU_THE_SAME = ("matmul_precision",)
PICTURES = '''
import numpy as np
import sharpflat as sf
from sharpflat.data import Dataset


@sf.dataset
def squares() -> Dataset:
    """Pictures of noise."""
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(60, 5, 5, 1)).astype(np.float32)
    labels = draw.integers(0, 3, 60).astype(np.int32)
    parts = [sf.Batch(inputs[:40], labels[:40]), sf.Batch(inputs[40:], labels[40:])]
    return Dataset("squares", *parts, classes=3)
'''


@pytest.fixture
def study(tmp_path):
    """`study(key=value)` is one run of pictures, with batch norm, and keys of `train`."""
    (tmp_path / "squares.py").write_text(PICTURES)

    def made(**train):
        base = {"batch_size": 8, "epochs": 3, "optimizer": {"name": "momentum"}}
        return sf.load_config(write(
            tmp_path, dataset={"name": "squares"}, plugins=["squares.py"], seeds=1, sweep=None,
            model={"name": "mlp", "width": 8, "depth": 1, "batch_norm": True},
            train={**base, **train},
        ))  # fmt: skip

    return made


def resolved(config):
    (cell,) = configs.cells(config)
    return cell.resolved()


def test_every_key_that_came_later_has_its_place_here():
    assert set(KEYS) == set(LATER)


@pytest.mark.parametrize("key", OF_RECIPE)
def test_what_a_key_makes_of_the_recipe(study, key):
    value, expected = OF_RECIPE[key]
    plain, made = (build_recipe(resolved(study(**train))) for train in ({}, {key: value}))
    changed = {name for name in vars(plain) if getattr(plain, name) != getattr(made, name)}
    assert {name: getattr(made, name) for name in changed} == expected


@pytest.mark.parametrize("key", OF_OPTIMIZER)
def test_what_a_key_makes_of_the_optimizer(study, key):
    value, expected = OF_OPTIMIZER[key]
    plain, made = (optimizer_arguments(resolved(study(**train)))[2] for train in ({}, {key: value}))
    assert {name: made[name] for name in made if made[name] != plain[name]} == expected


@pytest.mark.parametrize("key", KEYS)
def test_a_key_changes_what_is_trained(study, tmp_path, key):
    (plain,), (other,) = (
        sf.train(study(**train), tmp_path / "results") for train in ({}, {key: KEYS[key][0]})
    )
    assert plain.id != other.id
    assert other.finished
    pairs = zip(jax.tree.leaves(plain.params), jax.tree.leaves(other.params), strict=True)
    same = all(np.array_equal(a, b) for a, b in pairs)
    assert same == (key in ON_CPU_THE_SAME)


def test_regime_adaptation_makes_as_many_updates_at_each_batch_size(tmp_path):
    train = {"batch_size": 4, "epochs": 2, "optimizer": {"name": "adam"}}
    train["regime_adaptation"] = {"reference": 4}
    runs = sf.train(sf.load_config(write(
        tmp_path, train=train, seeds=1, sweep={"train.batch_size": [4, 40]}
    )), tmp_path / "results")  # fmt: skip
    assert [epochs_of(run.config["train"]) for run in runs] == [2, 20]
    assert [run.history[-1]["epoch"] for run in runs] == [2, 20]
    assert [run.history[-1]["step"] for run in runs] == [20, 20]


def test_swa_is_the_mean_of_the_ends_of_epochs(tmp_path):
    train = {"batch_size": 8, "epochs": 6, "optimizer": {"name": "adam"}, "track": ["snapshots"]}
    averaged = {**train, "swa": {"start": 2, "every": 3}}
    plain, run = (
        sf.train(sf.load_config(write(tmp_path, train=given, seeds=1, sweep=None)), tmp_path)[0]
        for given in (train, averaged)
    )
    points = [plain.snapshot(epoch).params for epoch in (2, 5)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *points)
    for a, b in zip(jax.tree.leaves(run.params), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_parts_of_a_batch_say_what_batch_norm_sees(tmp_path):
    def said(folder, **changes):
        train = {"batch_size": 40, "epochs": 1, "optimizer": {"name": "adam"}, "accumulate": 4}
        path = write(tmp_path, train=train, seeds=1, sweep=None, **changes)
        outcome = sharpflat("train", path, "--root", tmp_path / folder)
        assert outcome.code == 0
        return outcome.err

    line = "batch norm sees 10 examples at a time, not the batch of 40 (ghost statistics)"
    normed = {"name": "mlp", "width": 8, "depth": 1, "batch_norm": True}
    assert f"train.accumulate: {line}" in said("normed", model=normed)
    assert "ghost" not in said("plain")


def test_ghosts_of_a_network_without_batch_norm_are_refused(tmp_path):
    train = {"batch_size": 8, "epochs": 1, "optimizer": {"name": "adam"}, "ghost_batch_norm": 4}
    path = write(tmp_path, train=train, seeds=1, sweep=None)
    said = sharpflat("train", path, "--root", tmp_path / "results").complaint
    assert said.startswith(
        "train.ghost_batch_norm: changes nothing, for 'mlp' with these arguments"
    )


def test_what_follows_the_epochs_follows_the_adapted_ones(tmp_path):
    """Warm-up and averages of a large batch that trains for more epochs than were asked for."""
    for extra in ({"warmup": 3.0}, {"swa": {"start": 5}}):
        train = {"batch_size": 40, "epochs": 2, "optimizer": {"name": "adam"}, **extra}
        train["regime_adaptation"] = {"reference": 8}
        config = sf.load_config(write(tmp_path, train=train, seeds=1, sweep=None))
        (run,) = sf.train(config, tmp_path / "results")
        assert run.finished
        assert run.history[-1]["epoch"] == 10
