"""The adversary that accuracy withstands, where the best one is known."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quadratic

import sharpflat as sf

NAMES = ["worst_case_radius", "worst_case_radius_magnitude"]
WEIGHTS = np.array([1.0, -0.5, 2.0, 0.0])
FINE = {"tolerance": 1e-8, "steps": 100}


def score(w, inputs):
    """Logits (0, w · x): class 1 where w · x > 0."""
    return jnp.stack([jnp.zeros(len(inputs)), inputs @ w], axis=1)


def classifier(inputs, weights=WEIGHTS):
    model = sf.Model.from_functions(lambda key, x: jnp.zeros(x.shape[1]), score)
    data = jnp.asarray(inputs), jnp.ones(len(inputs), int)
    return sf.Objective.from_model(model, jnp.asarray(weights, data[0].dtype), {}, data)


def agreeing(n=40):
    """Inputs of one sign pattern, all on the right side: one adversary is the worst for all."""
    size = np.abs(np.random.default_rng(0).normal(size=(5 * n, 4)))
    inputs = size * np.array([1.0, 1.0, 1.0, -1.0])
    return inputs[inputs @ WEIGHTS > 0][:n]


def margins(inputs, size):
    """The α at which each example falls: w · x / Σ size_i |x_i|, sorted."""
    return np.sort(inputs @ WEIGHTS / (np.abs(inputs) @ size))


def check_known_adversary(relative):
    """A tenth of 40 examples is 4: the fifth smallest margin is the one too many."""
    inputs = agreeing()
    for name, size in zip(NAMES, (np.ones(4), np.abs(WEIGHTS)), strict=True):
        arguments = {"tolerance": relative / 10, "steps": 100}
        estimate = sf.measure(classifier(inputs), {name: arguments})
        expected = margins(inputs, size)[4]
        assert estimate.value == pytest.approx(expected, rel=relative)
        assert estimate.converged
        assert estimate.standard_error is None
        assert estimate.details["inverse_square"] == pytest.approx(expected**-2, rel=2 * relative)


def test_known_adversary_in_double_precision(x64):
    check_known_adversary(1e-6)


def test_known_adversary_in_single_precision():
    check_known_adversary(1e-3)


def test_exactly_as_many_as_may_be_lost_are_not_too_many():
    """1 − 45/50 is above 0.1 in single precision; 0.11 · 50 = 5.5 allows five, and six pass it."""
    inputs = agreeing(50)
    fine = {"tolerance": 1e-4, "steps": 60}
    for drop, rank in ((0.1, 5), (0.11, 5), (0.12, 6)):
        estimate = sf.measure(classifier(inputs), {NAMES[0]: {**fine, "accuracy_drop": drop}})
        assert estimate.value == pytest.approx(margins(inputs, np.ones(4))[rank], rel=1e-3)


@pytest.mark.parametrize("drop", [0.0, 0.25, 0.5])
def test_accuracy_drop_chooses_the_example(drop, x64):
    inputs = agreeing()
    estimate = sf.measure(classifier(inputs), {NAMES[0]: {**FINE, "accuracy_drop": drop}})
    expected = margins(inputs, np.ones(4))[round(drop * 40)]
    assert estimate.value == pytest.approx(expected, rel=1e-6)


def test_between_the_best_vertex_and_the_one_of_the_largest_loss(x64):
    """Where examples disagree: above the true radius, below what the loss alone would find."""
    inputs = np.random.default_rng(1).normal(size=(40, 4))
    inputs = inputs * np.sign(inputs @ WEIGHTS)[:, None]
    vertices = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1).T

    def falls(alpha, by_loss):
        scores = (WEIGHTS + alpha * vertices) @ inputs.T
        lost = (scores <= 0).mean(axis=1)
        return lost[np.log1p(np.exp(-scores)).mean(axis=1).argmax()] if by_loss else lost.max()

    grid = np.linspace(0, 1, 2001)
    least, most = (next(a for a in grid if falls(a, by_loss) > 0.1) for by_loss in (False, True))
    estimate = sf.measure(classifier(inputs), {NAMES[0]: {"tolerance": 1e-3, "steps": 30}})
    assert least < most
    assert least - 1e-3 <= estimate.value <= most + 1e-3


def test_zero_gradient_does_not_stop_the_adversary(x64):
    """Classic mistake 9: logits (0, w₀² − w₁² + …) have no slope at 0 where accuracy is 1."""

    def curved(w, inputs):
        height = 1 - jnp.sum(w**2)
        return jnp.stack([jnp.zeros(len(inputs)), height * jnp.ones(len(inputs))], axis=1)

    model = sf.Model.from_functions(lambda key, x: jnp.zeros(3), curved)
    data = jnp.ones((10, 2)), jnp.ones(10, int)
    objective = sf.Objective.from_model(model, jnp.zeros(3), {}, data)
    estimate = sf.measure(objective, {NAMES[0]: FINE})
    assert estimate.value == pytest.approx(1 / np.sqrt(3), rel=1e-6)
    assert estimate.converged


def test_zero_weights_stay_where_they_are(x64):
    """Classic mistake 8: with |δ_i| ≤ α |w_i| a model of zeros cannot be attacked."""
    inputs = agreeing()
    objective = classifier(np.abs(inputs) * np.array([1.0, 0, 0, 1.0]), [1.0, 0.0, 0.0, 0.0])
    estimate = sf.measure(objective, {NAMES[1]: FINE})
    assert estimate.value == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_that_cannot_fall_has_no_radius(name):
    model = sf.Model.from_functions(lambda key, x: jnp.zeros((3, 1)), lambda w, x: x @ w)
    data = jnp.ones((5, 3)), jnp.zeros(5, int)
    objective = sf.Objective.from_model(model, jnp.ones((3, 1)), {}, data)
    estimate = sf.measure(objective, name)
    assert not estimate.converged
    assert np.isfinite(estimate.value)
    assert estimate.details["evaluations"] == 12


def test_too_few_steps_are_not_certified():
    objective = classifier(agreeing().astype(np.float32))
    assert not sf.measure(objective, {NAMES[0]: {"steps": 3}}).converged


def test_defaults_cost_seventy_gradients_at_most():
    for name in NAMES:
        entry = sf.metrics[name]
        assert entry.cost(1000, entry.arguments({})) <= 70


def hidden(params, inputs):
    return jnp.tanh(inputs @ params["a"]) @ params["b"]


def test_an_adversary_that_stops_early_is_not_certified():
    """Random networks, labels their own: one step of ascent finds half of what twenty find."""
    missed = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        shapes = {"inputs": (60, 4), "a": (4, 16), "b": (16, 3)}
        drawn = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
        inputs = drawn.pop("inputs")
        labels = hidden(drawn, inputs).argmax(axis=1)
        model = sf.Model.from_functions(lambda key, x: {}, hidden)
        objective = sf.Objective.from_model(model, drawn, {}, (inputs, labels))
        weak, strong = (
            sf.measure(objective, {NAMES[0]: {"ascent": ascent, "steps": 20}}) for ascent in (1, 20)
        )
        if weak.value > 1.1 * strong.value:
            missed.append(seed)
            assert not weak.details["withstood"]
            assert not weak.converged
    assert missed


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_accuracy_is_refused(name):
    with pytest.raises(sf.InputError, match=f"{name}: outputs: an objective made by from_function"):
        sf.measure(quadratic(np.eye(2)), name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accuracy_drop": -0.1}, "accuracy_drop"),
        ({"ascent": 0}, "ascent"),
        ({"steps": 0}, "steps"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_named(name, arguments, message):
    with pytest.raises(sf.InputError, match=f"{name}.{message}"):
        sf.measure(classifier(agreeing()), {name: arguments})
