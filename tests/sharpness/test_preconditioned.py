"""The sharpness adaptive optimizers see, against dense matrices, for the states Optax keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import ONE, diagonal, quadratic, rotated

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
    return (1 - 0.9**3) * (np.sqrt(average / (1 - decay**3)) + 1e-8)


@pytest.mark.parametrize(("precision", "tolerance"), [(True, 1e-6), (False, 1e-3)])
@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "adagrad"])
def test_against_the_dense_product(name, precision, tolerance):
    matrix = rotated(SPECTRUM)
    root = preconditioner(name) ** -0.5
    expected = np.linalg.eigvalsh(root[:, None] * matrix * root)[-1]
    with jax.enable_x64(precision):
        bowl = quadratic(matrix)
        state = state_of(sf.optimizers[name](), bowl.params)
        spec = {"preconditioned_sharpness": {"tolerance": tolerance / 10}}
        told = {**sf.optimizers[name].arguments({}), "name": name}
        estimate = sf.measure(bowl, spec, opt_state=state, hyperparams=told)
        guessed = sf.measure(bowl, spec, opt_state=state, hyperparams={"name": name})
    assert estimate.converged
    assert estimate.value == pytest.approx(expected, rel=tolerance)
    assert guessed.value == estimate.value
    assert not guessed.converged, "the numbers might be others"
    assert guessed.standard_error is None


NUMBERS = {"b1", "b2", "decay", "eps"}
RULES = {
    "adam": optax.scale_by_adam(b1=0.9, b2=0.99),
    "yogi": optax.scale_by_yogi(b1=0.9, b2=0.99, eps=1e-8),
    "amsgrad": optax.scale_by_amsgrad(b1=0.9, b2=0.99),
    "rmsprop": optax.scale_by_rms(decay=0.99),
    "corrected rmsprop": optax.scale_by_rms(decay=0.99, bias_correction=True),
    "centred rmsprop": optax.scale_by_stddev(decay=0.99),
    "corrected centred rmsprop": optax.scale_by_stddev(decay=0.99, bias_correction=True),
    "adagrad": optax.scale_by_rss(),
}
HISTORY = np.array([5.0, -1.0, 0.3, 2.0]) * GRADIENT, np.array([1.0, 1.0, -3.0, 0.2])


@pytest.mark.parametrize("name", RULES)
def test_it_is_what_the_optimizer_divides_its_step_by(name, x64):
    """P = m / step, m the average of gradients before its correction, with Optax's own step."""
    bowl, matrix = quadratic(rotated(SPECTRUM)), rotated(SPECTRUM)
    state = RULES[name].init(bowl.params)
    for gradient in HISTORY:
        gradient = {"w": jnp.asarray(gradient)}
        step, state = RULES[name].update(gradient, state)
    mean = gradient["w"]
    if name in ("adam", "yogi", "amsgrad"):
        mean = state.mu["w"]
    root = np.asarray(mean / step["w"]) ** -0.5
    expected = np.linalg.eigvalsh(root[:, None] * matrix * root)[-1]
    epsilon = 1e-7 if name == "adagrad" else 1e-8
    spec = {
        "preconditioned_sharpness": {"b1": 0.9, "b2": 0.99, "epsilon": epsilon, "tolerance": 1e-8}
    }
    estimate = sf.measure(bowl, spec, opt_state=(optax.EmptyState(), {"inner": (state,)}))
    assert estimate.value == pytest.approx(expected, rel=1e-6)
    assert estimate.converged
    taken = {key: float(estimate.details[key]) for key in NUMBERS & estimate.details.keys()}
    decay = {"decay": 0.99} if "rms" in name else {}
    kept = {"adam": {"b1": 0.9, "b2": 0.99}, "amsgrad": {"b1": 0.9}}
    assert taken == {"eps": epsilon, **kept.get(name.replace("yogi", "adam"), decay)}


@pytest.mark.parametrize("count", [1, 2, 50])
def test_the_bias_correction_of_the_first_moment_is_a_part_of_adams(count, x64):
    """P = (1 − β₁ᵗ)(√(ν/(1 − β₂ᵗ)) + ε): ten times smaller than √ν̂ after one update."""
    matrix = np.diag([3.0, 2.0])
    moments = {"w": jnp.array([4.0, 1.0])}
    state = optax.ScaleByAdamState(jnp.asarray(count), {"w": jnp.array([9.0, 9.0])}, moments)
    p = (1 - 0.8**count) * (np.sqrt(np.array([4.0, 1.0]) / (1 - 0.9**count)) + 0.5)
    spec = {"preconditioned_sharpness": {"b1": 0.8, "b2": 0.9, "epsilon": 0.5}}
    estimate = sf.measure(quadratic(matrix), spec, opt_state=state)
    assert estimate.value == pytest.approx(max(3 / p[0], 2 / p[1]), rel=1e-6)


def test_the_numbers_are_the_optimizers_own(x64):
    """Those of `hyperparams`, or of a state that carries them; an argument goes before both."""
    own = {"b1": 0.8, "b2": 0.9, "eps": 1e-2}
    bowl = quadratic(rotated(SPECTRUM))
    state = state_of(optax.adam(0.1, **own), bowl.params)
    injected = state_of(optax.inject_hyperparams(optax.adam)(0.1, **own), bowl.params)

    def value(opt_state, hyperparams=None, **arguments):
        spec = {"preconditioned_sharpness": {"tolerance": 1e-8, **arguments}}
        return sf.measure(bowl, [spec], opt_state=opt_state, hyperparams=hyperparams)[0].value

    given = {"b1": 0.8, "b2": 0.9, "epsilon": 1e-2}
    right = value(state, **given)
    assert value(state, {"learning_rate": 0.1, **own}) == pytest.approx(right, rel=1e-6)
    assert value(state, given) == pytest.approx(right, rel=1e-6)
    assert value(injected) == pytest.approx(right, rel=1e-6)
    wrong = {"b1": 0.5, "b2": 0.99, "epsilon": 1.0}
    assert value(injected, wrong) == pytest.approx(value(state, **wrong), rel=1e-6)
    assert value(injected, wrong, **given) == pytest.approx(right, rel=1e-6)
    assert abs(value(state) / right - 1) > 0.1, "Optax's defaults are others"
    assert value(state) == pytest.approx(value(state, b1=0.9, b2=0.999, epsilon=1e-8), rel=1e-6)
    with pytest.raises(sf.InputError, match="hyperparams: expected numbers by name, got 0.9"):
        value(state, 0.9)


def test_the_decay_of_rmsprop_is_its_own(x64):
    bowl = quadratic(rotated(SPECTRUM))
    rule = optax.scale_by_rms(decay=0.7, bias_correction=True)
    state = state_of(rule, bowl.params)
    name = "preconditioned_sharpness"
    handed = sf.measure(bowl, name, opt_state=state, hyperparams={"decay": 0.7, "b2": 0.1}).value
    assert handed == sf.measure(bowl, name, opt_state=state, b2=0.7).value
    assert handed != sf.measure(bowl, name, opt_state=state).value
    only = sf.measure(bowl, name, opt_state=state, hyperparams={"b2": 0.7}).value
    assert only == handed, "as Schedule-Free's AdamW has it"


def moments(name, squares):
    """A state whose second moments are these."""
    tree, count = {"w": jnp.asarray(squares)}, jnp.asarray(3)
    zeros = jax.tree.map(jnp.zeros_like, tree)
    return {
        "adam": lambda: optax.ScaleByAdamState(count, zeros, tree),
        "amsgrad": lambda: optax.ScaleByAmsgradState(count, zeros, tree, tree),
        "rmsprop": lambda: optax.ScaleByRmsState(tree),
        "centred": lambda: optax.ScaleByRStdDevState(zeros, tree),
        "adagrad": lambda: optax.ScaleByRssState(tree),
    }[name]()


@pytest.mark.parametrize("name", ["adam", "amsgrad", "rmsprop", "centred", "adagrad"])
def test_moments_that_are_none_are_refused(name):
    bowl, asked = quadratic(rotated(SPECTRUM)), "preconditioned_sharpness"
    estimate = sf.measure(bowl, asked, opt_state=moments(name, [1.0, 1e-6, 0.0, 2.0]))
    assert np.isfinite(estimate.value)
    with pytest.raises(sf.InputError, match="opt_state: its second moments are negative or not"):
        sf.measure(bowl, asked, opt_state=moments(name, [1.0, -1e-3, 0.0, 2.0]))
    for broken in (np.nan, np.inf):
        with pytest.raises(
            sf.InputError, match="opt_state: its second moments are negative or not"
        ):
            sf.measure(bowl, asked, opt_state=moments(name, [1.0, broken, 1.0, 2.0]))


def test_adamax_is_refused_where_its_moments_tell():
    bowl = quadratic(rotated(SPECTRUM))
    for updates in (1, 3, 30):
        state = state_of(optax.adamax(0.1), bowl.params, updates)
        with pytest.raises(sf.InputError, match="opt_state: its moments are as Adamax keeps them"):
            sf.measure(bowl, "preconditioned_sharpness", opt_state=state)
        state = state_of(optax.adam(0.1), bowl.params, updates)
        assert sf.measure(bowl, "preconditioned_sharpness", opt_state=state).value > 0
    large = optax.ScaleByAdamState(jnp.asarray(9), {"w": jnp.ones(4)}, {"w": jnp.full(4, 4.0)})
    with pytest.raises(sf.InputError, match="as Adamax keeps them"):
        sf.measure(bowl, "preconditioned_sharpness", opt_state=large, hyperparams={"name": "mine"})
    for known in ({"b2": 0.999}, {"hyperparams": {"name": "adam"}}):
        assert sf.measure(bowl, "preconditioned_sharpness", opt_state=large, **known).value > 0


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


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (optax.scale_by_rms(), {"eps_in_sqrt": False}),
        (optax.scale_by_adam(), {"eps_root": 1e-2}),
        (optax.scale_by_adam(), {"nesterov": True}),
    ],
)
def test_arguments_that_make_another_preconditioner_are_refused(rule, told):
    bowl = diagonal([3.0, 2.0])
    state, ((name, value),) = rule.init(bowl.params), told.items()
    said = f"^preconditioned_sharpness: hyperparams: {name}={value!r} makes another"
    with pytest.raises(sf.InputError, match=said):
        sf.measure(bowl, "preconditioned_sharpness", opt_state=state, hyperparams=told)
    usual = {"eps_in_sqrt": True, "eps_root": 0.0, "nesterov": name == "eps_in_sqrt"}
    sf.measure(bowl, "preconditioned_sharpness", opt_state=state, hyperparams=usual)
