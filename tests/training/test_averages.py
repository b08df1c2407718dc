"""Averages of the parameters: against plain sums, and what a training then stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sharpflat.training import evaluated, make_optimizer

START = jnp.array([1.0, -0.5])


def walked(name="momentum", count=6, **about):
    """Each update's parameters, and what is evaluated after it."""
    arguments = {"learning_rate": 0.1}
    rule = optax.with_extra_args_support(make_optimizer(name, arguments, **about))
    params, state, points, read = START, rule.init(START), [], []
    for _ in range(count):
        change, state = rule.update(params * jnp.array([3.0, 1.0]), state, params)
        params = optax.apply_updates(params, change)
        points.append(np.asarray(params))
        read.append(np.asarray(evaluated(state, params)))
    return np.stack(points), np.stack(read)


def test_the_moving_average_weighs_by_powers_of_its_decay():
    points, read = walked(average=("ema", 0.8))
    plain, same = walked()
    np.testing.assert_allclose(points, plain, rtol=1e-6)
    np.testing.assert_array_equal(plain, same)
    for number in range(1, 7):
        weights = 0.8 ** np.arange(number)[::-1]
        expected = weights @ plain[:number] / weights.sum()
        np.testing.assert_allclose(read[number - 1], expected, rtol=1e-5)


def test_the_stochastic_average_is_the_mean_of_some_points():
    points, read = walked(average=("swa", 2, 2))
    np.testing.assert_allclose(read[0], points[0])
    np.testing.assert_allclose(read[1], points[1], rtol=1e-6)
    np.testing.assert_allclose(read[2], points[1], rtol=1e-6)
    np.testing.assert_allclose(read[4], points[[1, 3]].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(read[5], points[[1, 3, 5]].mean(axis=0), rtol=1e-6)


def test_schedule_free_stands_for_the_average_of_its_steps():
    """x_{t+1} = (1 − c) x_t + c z_{t+1}, c = 1/(t + 1) at a constant rate; y = (1 − β) z + β x."""
    points, read = walked("schedule_free")
    x = y = z = np.asarray(START)
    for number in range(6):
        z = z - 0.1 * np.array([3.0, 1.0]) * y
        x = x + (z - x) / (number + 1)
        y = 0.1 * z + 0.9 * x
        np.testing.assert_allclose(points[number], y, rtol=1e-5)
        np.testing.assert_allclose(read[number], x, rtol=1e-4)


@pytest.mark.parametrize("average", [("ema", 0.9), ("swa", 1, 1)])
def test_averages_hand_on_what_a_rule_asks_for(average):
    rule = make_optimizer("sam", {}, average=average)
    key = jax.random.key(0)
    state = rule.init(START)
    change, state = rule.update(START, state, START, grad_fn=lambda point: point, key=key)
    point = optax.apply_updates(START, change)
    np.testing.assert_allclose(evaluated(state, point), point, rtol=1e-6)
