"""Stability thresholds: just below them the iterates stay bounded, just above they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs.studies import write

import sharpflat as sf
from sharpflat.training import make_optimizer, rate_at, stability_threshold
from sharpflat.training.stability import adam, heavy_ball

ORDINARY = [
    ("gradient_descent", {"learning_rate": 0.1}),
    ("momentum", {"learning_rate": 0.1, "decay": 0.9}),
    ("nesterov", {"learning_rate": 0.1, "decay": 0.9}),
]


def norm():
    raise AssertionError("only SAM's threshold needs the gradient's norm")


def complete(name, given):
    return sf.optimizers[name].arguments(given)


def farthest(rule, curvature, steps=3000, gradient=None):
    """|x| at the most of the last ten iterates on h x²/2, from 1."""
    with jax.enable_x64(True):
        gradient = gradient or (lambda x: curvature * x)

        def step(carry, _):
            x, state = carry
            updates, state = rule.update(gradient(x), state, x)
            x = optax.apply_updates(x, updates)
            return (x, state), jnp.abs(x)

        x = jnp.ones(())
        _, sizes = jax.lax.scan(step, (x, rule.init(x)), length=steps)
        return float(sizes[-10:].max())


@pytest.mark.parametrize(("name", "given"), ORDINARY, ids=lambda value: str(value))
def test_the_threshold_parts_bounded_from_unbounded(name, given):
    arguments = complete(name, given)
    edge = stability_threshold(name, arguments, given["learning_rate"], norm)
    rule = make_optimizer(name, arguments)
    assert farthest(rule, 0.99 * edge) < 1e-3
    assert not farthest(rule, 1.01 * edge) < 1e3


@pytest.mark.parametrize(
    ("name", "given", "preconditioned", "expected"),
    [
        ("gradient_descent", {}, False, 20.0),
        ("momentum", {"decay": 0.9}, False, 38.0),
        ("momentum", {"decay": 0.5}, False, 30.0),
        ("nesterov", {"decay": 0.9}, False, 3.8 / 0.28),
        ("nesterov", {"decay": 0.5}, False, 15.0),
        ("sam", {"decay": 0.0, "rho": 0.5}, False, 2 * (21**0.5 - 1)),
        ("adam", {}, True, 380.0),
        ("adam", {"b1": 0.5}, True, 60.0),
        ("adamw", {"weight_decay": 0.0}, True, 380.0),
        ("rmsprop", {}, True, 20.0),
        ("adagrad", {}, True, 20.0),
    ],
)
def test_published_thresholds_at_a_rate_of_a_tenth(name, given, preconditioned, expected):
    """SAM's where the gradient's norm is 2."""
    found = stability_threshold(name, complete(name, given), 0.1, lambda: 2.0, preconditioned)
    assert found == pytest.approx(expected)


def watched(folder, optimizer, **train):
    """A run of full batches, and the threshold beside λmax after each."""
    track = ["top_eigenvalue", "snapshots"]
    train = {"batch_size": 40, "epochs": 3, "optimizer": optimizer, "track": track, **train}
    (run,) = sf.train(sf.load_config(write(folder, train=train, seeds=1, sweep=None)), folder)
    rows = [row for row in run.tracked if row["track"] == "top_eigenvalue"]
    return run, [row["stability_threshold"] for row in rows]


def test_the_threshold_follows_the_rate_of_a_run(tmp_path):
    """η times the batch's factor of 2 and 1, ¾, ½ of the schedule, whose end is the last."""
    rates = {
        "schedule": {"name": "cosine", "final": 0.5},
        "learning_rate_rule": {"rule": "linear", "reference": 20},
    }
    optimizer = {"name": "gradient_descent", "learning_rate": 0.05}
    _, edges = watched(tmp_path, optimizer, **rates)
    np.testing.assert_allclose(edges, [20, 20 / 0.75, 40, 40], rtol=1e-5)


def test_the_threshold_of_sam_follows_the_gradient_of_a_run(tmp_path):
    optimizer = {"name": "sam", "learning_rate": 0.05, "decay": 0.0, "rho": 0.1}
    run, edges = watched(tmp_path, optimizer)
    inputs, labels = run.objective("train").data

    def loss(params):
        first, last = params["Dense_0"], params["Dense_1"]
        hidden = jax.nn.relu(inputs @ first["kernel"] + first["bias"][None])
        outputs = hidden @ last["kernel"] + last["bias"][None]
        return -jnp.mean(jax.nn.log_softmax(outputs)[jnp.arange(40), labels])

    for epoch, edge in enumerate(edges):
        g = float(optax.tree.norm(jax.grad(loss)(run.snapshot(epoch).params)))
        assert edge == pytest.approx(g / 0.2 * ((1 + 0.8 / (0.05 * g)) ** 0.5 - 1), rel=1e-4)
    assert len(set(edges)) == 4


def frozen_adam(rate, b1, weight_decay=0.0):
    """Adam with a preconditioner of 1 that does not change."""
    return optax.chain(
        optax.ema(b1, debias=False), optax.add_decayed_weights(weight_decay), optax.scale(-rate)
    )


@pytest.mark.parametrize("weight_decay", [0.0, 2.0])
def test_adams_threshold_is_that_of_the_average_of_gradients(weight_decay):
    edge = adam(0.1, 0.9, weight_decay)
    rule = frozen_adam(0.1, 0.9, weight_decay)
    assert farthest(rule, 0.99 * edge) < 1e-3
    assert not farthest(rule, 1.01 * edge) < 1e3
    assert adam(0.1, 0.9) == pytest.approx(38 / 0.1)


def test_sams_edge_is_where_it_oscillates():
    """On h x²/2 it settles on the two points ±ρh/(2/η − h)."""
    rate, rho, h = 0.1, 0.05, 12.0
    size = rho * h / (2 / rate - h)

    def sam_gradient(x):
        return h * (x + rho * jnp.sign(x))

    x = size
    for _ in range(2):
        x = x - rate * float(sam_gradient(x))
    assert x == pytest.approx(size), "an orbit of period two"
    given = complete("sam", {"learning_rate": rate, "rho": rho, "decay": 0.0})
    edge = stability_threshold("sam", given, rate, lambda: h * size)
    assert edge == pytest.approx(h)
    assert edge < heavy_ball(rate), "SAM's edge is below that of gradient descent"
    assert stability_threshold("sam", given, rate, lambda: 0.0) == 0.0


def test_no_threshold_where_none_is_published():
    adam_arguments = complete("adam", {})
    assert stability_threshold("adam", adam_arguments, 1e-3, norm) is None
    held = stability_threshold("adam", adam_arguments, 1e-3, norm, preconditioned=True)
    assert held == pytest.approx(38e3)
    assert stability_threshold("lars", complete("lars", {}), 1e-3, norm) is None
    assert stability_threshold("momentum", complete("momentum", {}), 0.0, norm) is None


def test_the_rate_follows_schedule_warm_up_and_batch_size_rule():
    factors = {"scale": 2.0, "schedule": {"name": "cosine"}, "warmup": 10, "updates": 110}
    rates = [rate_at(step, {"learning_rate": 0.1}, **factors) for step in (0, 5, 10, 60, 109)]
    assert rates[0] < rates[1] < rates[2] == pytest.approx(0.2, rel=0.1)
    assert rates[3] == pytest.approx(0.1, rel=0.05)
    assert rates[4] < 1e-3
    assert np.all(np.isfinite(rates))
    assert rate_at(7, {"learning_rate": 0.1}) == pytest.approx(0.1)
