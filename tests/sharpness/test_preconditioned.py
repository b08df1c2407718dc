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


RULES = {
    "adam": optax.scale_by_adam(b1=0.9, b2=0.99),
    "yogi": optax.scale_by_yogi(b1=0.9, b2=0.99, eps=1e-8),
    "amsgrad": optax.scale_by_amsgrad(b1=0.9, b2=0.99),
    "rmsprop": optax.scale_by_rms(decay=0.99),
    "corrected rmsprop": optax.scale_by_rms(decay=0.99, bias_correction=True),
    "centred rmsprop": optax.scale_by_stddev(decay=0.99),
    "corrected centred rmsprop": optax.scale_by_stddev(decay=0.99, bias_correction=True),
    "adagrad": optax.scale_by_rss(eps=1e-8),
}
HISTORY = np.array([5.0, -1.0, 0.3, 2.0]) * GRADIENT, np.array([1.0, 1.0, -3.0, 0.2])


@pytest.mark.parametrize("name", RULES)
def test_it_is_what_the_optimizer_divides_its_step_by(name, x64):
    """P = m̂ / step, with Optax's own step: for AMSGrad from the largest ν, for none by β₁."""
    bowl, matrix = quadratic(rotated(SPECTRUM)), rotated(SPECTRUM)
    state = RULES[name].init(bowl.params)
    for gradient in HISTORY:
        gradient = {"w": jnp.asarray(gradient)}
        step, state = RULES[name].update(gradient, state)
    mean = gradient["w"]
    if name in ("adam", "yogi", "amsgrad"):
        mean = state.mu["w"] / (1 - 0.9**2)
    root = np.asarray(mean / step["w"]) ** -0.5
    expected = np.linalg.eigvalsh(root[:, None] * matrix * root)[-1]
    spec = {"preconditioned_sharpness": {"b2": 0.99, "tolerance": 1e-8}}
    estimate = sf.measure(bowl, spec, opt_state=(optax.EmptyState(), {"inner": (state,)}))
    assert estimate.value == pytest.approx(expected, rel=1e-6)
    assert estimate.converged


def test_a_parameter_that_adagrad_never_moved_is_held_fixed(x64):
    matrix = rotated(SPECTRUM)
    state = optax.ScaleByRssState({"w": jnp.array([4.0, 0.0, 1.0, 9.0])})
    root = np.array([4.0, np.inf, 1.0, 9.0]) ** -0.25
    expected = np.linalg.eigvalsh(root[:, None] * matrix * root)[-1]
    estimate = sf.measure(quadratic(matrix), "preconditioned_sharpness", opt_state=state)
    assert estimate.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("state", ["adam", optax.adam(1e-3)])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(sf.InputError, match="opt_state: holds no second moments known here"):
        sf.measure(quadratic(np.eye(2)), "preconditioned_sharpness", opt_state=state)


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
    with pytest.raises(sf.InputError, match="no second moments known here, but TraceState, Empty"):
        sf.measure(bowl, "preconditioned_sharpness", opt_state=state)
    for rule, its in ((optax.adabelief, "ScaleByBelief"), (optax.novograd, "ScaleByNovograd")):
        with pytest.raises(sf.InputError, match=f"but {its}State, .* one of ScaleByAdamState"):
            sf.measure(bowl, "preconditioned_sharpness", opt_state=rule(0.1).init(bowl.params))
    with pytest.raises(sf.InputError, match="but nothing; expected"):
        sf.measure(bowl, "preconditioned_sharpness", opt_state={"nu": bowl.params})
    other = optax.adam(0.1).init({"w": jnp.zeros(3)})
    with pytest.raises(sf.InputError, match="of other parameters"):
        sf.measure(bowl, "preconditioned_sharpness", opt_state=other)
    with pytest.raises(sf.InputError, match="needs 'opt_state'"):
        sf.measure(bowl, "preconditioned_sharpness")
