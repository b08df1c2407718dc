"""The sharpness adaptive optimizers see, against dense matrices, for the states Optax keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import ONE, quadratic, rotated

import sharpflat as sf

SPECTRUM = [9.0, 4.0, 1.0, 0.5]
GRADIENT = np.array([0.5, -2.0, 0.1, 3.0])


def state_of(rule, params, updates=3):
    state = rule.init(params)
    for step in range(updates):
        gradient = {"w": jnp.asarray(GRADIENT * (1 + step), params["w"].dtype)}
        _, state = rule.update(gradient, state, params)
    return state


def preconditioner(name):
    """P by hand, after three gradients."""
    squares = np.array([(GRADIENT * (1 + step)) ** 2 for step in range(3)])
    if name == "adagrad":
        return np.sqrt(0.1 + squares.sum(axis=0) + 1e-7)
    decay = {"adam": 0.999, "adamw": 0.999, "rmsprop": 0.9}[name]
    average = sum((1 - decay) * decay ** (2 - step) * squares[step] for step in range(3))
    if name == "rmsprop":
        return np.sqrt(average + 1e-8)
    return np.sqrt(average / (1 - decay**3)) + 1e-8


@pytest.mark.parametrize(("precision", "tolerance"), [(True, 1e-6), (False, 1e-3)])
@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "adagrad"])
def test_against_the_dense_product(name, precision, tolerance):
    matrix = rotated(SPECTRUM)
    root = preconditioner(name) ** -0.5
    expected = np.linalg.eigvalsh(root[:, None] * matrix * root)[-1]
    with jax.enable_x64(precision):
        bowl = quadratic(matrix)
        state = state_of(sf.optimizers[name](), bowl.params)
        epsilon = 1e-7 if name == "adagrad" else 1e-8
        spec = {"preconditioned_sharpness": {"tolerance": tolerance / 10, "epsilon": epsilon}}
        estimate = sf.measure(bowl, spec, opt_state=state)
    assert estimate.converged
    assert estimate.value == pytest.approx(expected, rel=tolerance)


def test_only_some_of_the_parameters(x64):
    """A block of P^{−1/2} H P^{−1/2}."""
    matrix = rotated(SPECTRUM)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(3)}

    def loss(params, batch):
        flat = jnp.concatenate([params["a"], params["b"]])
        return 0.5 * flat @ jnp.asarray(matrix) @ flat

    objective = sf.Objective.from_function(loss, params, ONE)
    squares = np.array([4.0, 1.0, 0.25, 9.0])
    state = optax.ScaleByRssState({"a": jnp.asarray(squares[:1]), "b": jnp.asarray(squares[1:])})
    spec = {"preconditioned_sharpness": {"parameters": "b", "tolerance": 1e-7}}
    root = squares[1:] ** -0.25
    expected = np.linalg.eigvalsh(root[:, None] * matrix[1:, 1:] * root)[-1]
    estimate = sf.measure(objective, spec, opt_state=state)
    assert estimate.value == pytest.approx(expected, rel=1e-6)


def test_a_state_without_second_moments_is_refused():
    bowl = quadratic(rotated(SPECTRUM))
    state = optax.sgd(0.1, momentum=0.9).init(bowl.params)
    with pytest.raises(sf.InputError, match="holds no second moments"):
        sf.measure(bowl, "preconditioned_sharpness", opt_state=state)
    other = optax.adam(0.1).init({"w": jnp.zeros(3)})
    with pytest.raises(sf.InputError, match="of other parameters"):
        sf.measure(bowl, "preconditioned_sharpness", opt_state=other)
    with pytest.raises(sf.InputError, match="needs 'opt_state'"):
        sf.measure(bowl, "preconditioned_sharpness")
