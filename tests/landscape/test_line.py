"""The line between two points, against its closed form."""

import jax
import jax.numpy as jnp
import numpy as np

import sharpflat as sf


def test_loss_along_a_line_of_a_linear_model_is_a_parabola():
    model = sf.Model.from_functions(lambda key, x: jnp.zeros((2, 1)), lambda w, x: x @ w)
    inputs, labels = jnp.eye(2), jnp.zeros((2, 1))
    train, test = (
        sf.Objective.from_model(model, jnp.zeros((2, 1)), {}, (scale * inputs, labels),
                                loss="squared_error")
        for scale in (1.0, 2.0)
    )  # fmt: skip
    start, end = jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [1.0]])
    alphas = np.linspace(-1, 2, 7)
    seen = []
    arrays = sf.landscape.line(train, test, start, end, alphas.tolist(), seen.append)
    expected = 0.25 * ((1 - alphas) ** 2 + alphas**2)
    np.testing.assert_allclose(arrays["train_loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(arrays["test_loss"], 4 * expected, rtol=1e-6)
    np.testing.assert_array_equal(arrays["alpha"], alphas)
    assert seen == [1, 2, 3, 4, 5, 6, 7]


def test_recalibrated_averages_come_from_the_training_split():
    rng = np.random.default_rng(0)
    model = sf.Model.of(sf.models["mlp"](3, width=4, depth=1, batch_norm=True))
    data = [
        (jnp.asarray(rng.normal(shift, 1, (20, 5)), jnp.float32), jnp.arange(20) % 3)
        for shift in (0.0, 3.0)
    ]
    params, state = model.init(jax.random.key(0), data[0][0])
    train, test = (
        sf.Objective.from_model(model, params, state, part, batch_norm="recalibrated")
        for part in data
    )
    arrays = sf.landscape.line(train, test, params, params, [0.0])
    frozen = sf.Objective.from_model(model, params, train.state_at(params), data[1])
    np.testing.assert_allclose(arrays["test_loss"][0], frozen.loss(params), rtol=1e-6)
    assert abs(arrays["test_loss"][0] - float(test.loss(params))) > 1e-3
