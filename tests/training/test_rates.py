"""Rates of updates, and the numbers that no optimizer can do with."""

import numpy as np
import pytest
from runs.studies import write
from training.combined import close, walked

import sharpflat as sf
from sharpflat.training import (
    make_optimizer,
    rate_at,
)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("momentum", "decay"), ("nesterov", "decay"), ("rmsprop", "decay"), ("lars", "decay"),
        ("sam", "decay"), ("asam", "decay"),
        *((name, argument) for name in ("adam", "adamw", "lamb") for argument in ("b1", "b2")),
        ("schedule_free", "b1"),
    ],
)  # fmt: skip
def test_a_decay_of_one_is_refused_by_name(name, argument):
    with pytest.raises(sf.InputError, match=rf"{name}\.{argument}: .* less than 1, got 1\.0"):
        make_optimizer(name, {argument: 1.0})
    if name != "schedule_free":
        make_optimizer(name, {argument: 0.0})


def test_schedule_free_needs_a_part_of_its_average():
    with pytest.raises(sf.InputError, match=r"schedule_free\.b1: .* greater than 0, got 0\.0"):
        make_optimizer("schedule_free", {"b1": 0.0})


def test_a_decay_of_one_is_refused_in_a_config(tmp_path):
    train = {"batch_size": 8, "epochs": 1, "optimizer": {"name": "momentum", "decay": 1.0}}
    path = write(tmp_path, train=train, seeds=1, sweep=None)
    with pytest.raises(sf.InputError, match=r"train\.optimizer\.decay: .* less than 1, got 1\.0"):
        sf.train(sf.load_config(path), tmp_path / "r")


def scheduled(name, **given):
    about = {"schedule": {"name": "step", "at": [0.5], "factor": 0.1}, "updates": 5}
    points = walked(make_optimizer(name, given, **about), 4, grad_fn=lambda point: point)
    rates = [rate_at(step, given, **about) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])
    return points, rates


def test_a_schedule_multiplies_the_whole_sum_of_momentum():
    points, rates = scheduled("momentum", learning_rate=0.1, decay=0.6)
    for t in range(1, 5):
        total = sum(0.6**k * points[t - 1 - k]["kernel"] for k in range(t))
        step = points[t]["kernel"] - points[t - 1]["kernel"]
        np.testing.assert_allclose(step, -rates[t - 1] * total, rtol=1e-4)


def test_under_lars_each_gradient_keeps_its_own_rate():
    points, rates = scheduled("lars", learning_rate=0.1, decay=0.6)
    for t in range(1, 5):
        total = sum(0.6**k * rates[t - 1 - k] * points[t - 1 - k]["scale"] for k in range(t))
        step = points[t]["scale"] - points[t - 1]["scale"]
        np.testing.assert_allclose(step, -1e-3 * total, rtol=1e-3)  # ‖w‖ = ‖g‖ here


def test_schedule_free_weighs_each_update_by_its_own_rate():
    """Defazio et al. (2024): weights η² (the largest so far), under a warm-up."""
    rates, b1 = [0.125, 0.25, 0.375, 0.5, 0.5, 0.5], 0.9
    rule = make_optimizer("schedule_free", {"learning_rate": 0.5}, warmup=4.0, updates=6)
    points = walked(rule, 6, grad_fn=lambda point: point)
    x = z = y = points[0]["kernel"]
    for t, rate in enumerate(rates):
        z = z - rate * y
        x = x + rate**2 / sum(r**2 for r in rates[: t + 1]) * (z - x)
        y = (1 - b1) * z + b1 * x
        np.testing.assert_allclose(points[t + 1]["kernel"], y, rtol=1e-5)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({}, 0.2),
        ({"scale": 4.0}, 0.8),
        ({"warmup": 4.0, "updates": 9}, 0.15),
        ({"schedule": {"name": "cosine"}, "updates": 5}, 0.1),
    ],
    ids=["constant", "scaled", "warm-up alone", "schedule alone"],
)
def test_a_rate_needs_only_what_changes_it(factors, expected):
    assert rate_at(2, {"learning_rate": 0.2}, **factors) == pytest.approx(expected)


def test_the_last_update_of_a_cosine_to_nothing_changes_nothing():
    about = {"schedule": {"name": "cosine"}, "updates": 5}
    points = walked(make_optimizer("gradient_descent", {"learning_rate": 0.1}, **about), 5)
    close(points[5], points[4], rtol=0)
    assert not np.allclose(points[4]["kernel"], points[3]["kernel"], rtol=0, atol=1e-6)
