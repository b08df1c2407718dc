"""Update rules, schedules and the factors on the learning rate, against their formulas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sharpflat as sf
from sharpflat.training import make_optimizer, scaling
from sharpflat.training.learning_rate import factor_of

MATRIX = np.array([[3.0, 1.0], [1.0, 2.0]])
POINT = np.array([1.0, -0.5])
KEY = jax.random.key(3)


def gradient(params):
    return jax.tree.map(lambda w: jnp.asarray(MATRIX, jnp.float32) @ w, params)


def steps(rule, count, point=POINT, grad=gradient):
    """The parameters after each of `count` updates."""
    params, points = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), point), []
    rule = optax.with_extra_args_support(rule)
    state = rule.init(params)
    for number in range(count):
        key = jax.random.fold_in(KEY, number)
        change, state = rule.update(grad(params), state, params, grad_fn=grad, key=key)
        params = optax.apply_updates(params, change)
        points.append(np.asarray(params))
    return np.stack(points)


# Each optimizer's formula, of layers `[layer, w]` that all have the loss ½ wᵀ MATRIX w.
def momentum(w, learning_rate, decay):
    m = 0.0
    while True:
        m = decay * m - learning_rate * w @ MATRIX
        yield (w := w + m)


def nesterov(w, learning_rate, decay):
    m = 0.0
    while True:
        g = w @ MATRIX
        m = decay * m - learning_rate * g
        yield (w := w + decay * m - learning_rate * g)


def adamw(w, learning_rate, b1, b2, epsilon, weight_decay=0.0, scale=lambda w, step: 1.0):
    m = v = 0.0
    for t in itertools.count(1):
        g = w @ MATRIX
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + epsilon) + weight_decay * w
        yield (w := w - learning_rate * scale(w, step) * step)


def lamb(w, **given):
    return adamw(w, **given, scale=lambda w, step: lengths(w) / lengths(step))


def lars(w, learning_rate, decay, weight_decay, trust):
    m = 0.0
    while True:
        g = w @ MATRIX + weight_decay * w
        m = decay * m - learning_rate * trust * lengths(w) / lengths(g) * g
        yield (w := w + m)


def adagrad(w, learning_rate):
    total = 0.1
    while True:
        g = w @ MATRIX
        total = total + g**2
        yield (w := w - learning_rate * g / np.sqrt(total + 1e-7))


def rmsprop(w, learning_rate, decay):
    v = 0.0
    while True:
        g = w @ MATRIX
        v = decay * v + (1 - decay) * g**2
        yield (w := w - learning_rate * g / np.sqrt(v + 1e-8))


def schedule_free(w, learning_rate, b1):
    x = z = w
    for t in itertools.count(1):
        z = z - learning_rate * w @ MATRIX
        x = x + (z - x) / t
        yield (w := (1 - b1) * z + b1 * x)


def sharpness_aware(w, learning_rate, decay, rho, eta=None):
    m = 0.0
    while True:
        g, scale = w @ MATRIX, 1.0 if eta is None else np.abs(w) + eta
        above = w + rho * scale**2 * g / np.linalg.norm(scale * g)
        m = decay * m - learning_rate * above @ MATRIX
        yield (w := w + m)


def lengths(layers):
    return np.linalg.norm(layers, axis=1, keepdims=True)


ADAM = {"b1": 0.7, "b2": 0.8, "epsilon": 0.1}
FORMULAS = {
    "gradient_descent": (lambda w, learning_rate: momentum(w, learning_rate, 0.0), {}),
    "momentum": (momentum, {"decay": 0.6}),
    "nesterov": (nesterov, {"decay": 0.6}),
    "adam": (adamw, ADAM),
    "adamw": (adamw, {**ADAM, "weight_decay": 0.3}),
    "adagrad": (adagrad, {}),
    "rmsprop": (rmsprop, {"decay": 0.6}),
    "schedule_free": (schedule_free, {"b1": 0.7}),
    "lars": (lars, {"decay": 0.6, "weight_decay": 0.3, "trust": 0.2}),
    "lamb": (lamb, {**ADAM, "weight_decay": 0.3}),
    "sam": (sharpness_aware, {"decay": 0.6, "rho": 0.3}),
    "asam": (sharpness_aware, {"decay": 0.6, "rho": 0.3, "eta": 0.4}),
}


@pytest.mark.parametrize("name", [name for name in sf.optimizers if name != "entropy_sgd"])
def test_three_updates_follow_the_formula(name):
    formula, given = FORMULAS[name]
    given, defaults = {"learning_rate": 0.05, **given}, sf.optimizers[name].arguments({})
    assert given.keys() == defaults.keys()
    assert all(given[key] != defaults[key] for key in given), "a dropped argument would not show"
    layers = (POINT, np.array([-20.0, 30.0]))
    found = steps(make_optimizer(name, given), 3, [w[:, None] for w in layers])[..., 0]
    expected = list(itertools.islice(formula(np.stack(layers), **given), 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["sam", "asam", "lars", "lamb", "entropy_sgd"])
def test_a_stationary_point_is_finite(name):
    points = steps(make_optimizer(name, {}), 3, point=np.zeros((2, 1)))
    assert np.isfinite(points).all()
    np.testing.assert_allclose(points, 0, atol=1e-3)  # the noise of Entropy-SGD is 1e-4


def test_entropy_sgd_moves_its_centre_to_the_mean_of_the_inner_iterates():
    given = {"learning_rate": 0.05, "outer_rate": 0.5, "steps": 3, "gamma": 2.0, "noise": 0.1}
    rule = make_optimizer("entropy_sgd", {**given, "averaging": 0.25, "growth": 1.0})
    found = steps(rule, 6)
    point = centre = mean = POINT
    for number in range(6):
        noise = np.asarray(sf.trees.random_like(
            jax.random.fold_in(KEY, number), jnp.zeros(2), sampler=jax.random.normal
        ))  # fmt: skip
        pull = 2.0 * (1 if number < 3 else 2)
        drift = MATRIX @ point + pull * (point - centre)
        point = point - 0.05 * drift + np.sqrt(0.05) * 0.1 * noise
        mean = 0.75 * mean + 0.25 * point
        if number % 3 == 2:
            point = centre = mean = 0.5 * (centre + mean)
        np.testing.assert_allclose(found[number], point, rtol=1e-4)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_steps_in_proportion_to_a_layers_norm(name):
    """Parameters times c, gradients over c: the step is times c too."""
    rule = make_optimizer(name, {})
    layer = POINT[:, None]
    one = steps(rule, 1, layer)[0] - layer
    other = steps(rule, 1, 8 * layer, lambda w: gradient(w / 8) / 8)[0] - 8 * layer
    np.testing.assert_allclose(other, 8 * one, rtol=1e-3)


def test_schedules():
    count = jnp.arange(10)
    cosine = factor_of("cosine", {"final": 0.2}, 0, 11)(jnp.arange(11))
    np.testing.assert_allclose(cosine[jnp.array([0, 5, 10])], [1, 0.6, 0.2], rtol=1e-6)
    drops = factor_of("step", {"at": [0.5], "factor": 0.1}, 0, 11)(count)
    np.testing.assert_allclose(drops, [1] * 5 + [0.1] * 5, rtol=1e-6)
    rising = factor_of("constant", {}, 4, 11)(count)
    np.testing.assert_allclose(rising, [0.25, 0.5, 0.75] + [1] * 7, rtol=1e-6)
    both = factor_of("cosine", {}, 4, 11)(jnp.arange(11))
    np.testing.assert_allclose(both[jnp.array([3, 4, 7, 10])], [1, 1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize("warmup", [0.4, 1.1, 3.5])
def test_a_warm_up_of_a_fraction_of_an_update_ends_at_the_rate(warmup):
    factors = [float(factor_of("constant", {}, warmup, 10)(count)) for count in range(10)]
    assert factors == pytest.approx([min((t + 1) / max(warmup, 1), 1) for t in range(10)])
    assert max(factors) == 1


def test_a_schedule_multiplies_the_learning_rate_of_each_update():
    given = {"learning_rate": 0.1}
    rule = make_optimizer("gradient_descent", given, schedule={"name": "cosine"}, updates=5)
    params = POINT
    for number, found in enumerate(steps(rule, 5)):
        params = params - 0.1 * (1 + np.cos(np.pi * number / 4)) / 2 * MATRIX @ params
        np.testing.assert_allclose(found, params, rtol=1e-5)


def test_equal_arguments_give_the_same_object():
    given = {"schedule": {"name": "step"}, "warmup": 2, "updates": 9, "scale": 4.0}
    assert make_optimizer("adam", {}, **given) is make_optimizer("adam", {}, **given)
    assert make_optimizer("adam", {}) is not make_optimizer("adam", {}, scale=2.0)


@pytest.mark.parametrize(("rule", "factor"), [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_scaling_rules(rule, factor):
    scale = scaling(rule, 128, 32)
    assert scale == factor
    found = steps(make_optimizer("gradient_descent", {"learning_rate": 0.01}, scale=scale), 1)[0]
    np.testing.assert_allclose(found, POINT - 0.01 * factor * MATRIX @ POINT, rtol=1e-6)


def test_refusals():
    with pytest.raises(sf.InputError, match="warmup: its 5 updates are not fewer than the 5 of al"):
        make_optimizer("adam", {}, warmup=5, updates=5)
    with pytest.raises(sf.InputError, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        make_optimizer("adam", {}, schedule={"name": "cosin"}, updates=5)
    with pytest.raises(sf.InputError, match="learning_rate"):
        make_optimizer("adam", {"learning_rate": 0.0})
