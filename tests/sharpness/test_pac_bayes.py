"""The noise that accuracy withstands: linear classifiers, scales, edges."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.pac_bayes import CASES, WEIGHTS, classifier
from helpers import quadratic

import sharpflat as sf

NAMES = ["pac_bayes_flatness", "pac_bayes_flatness_magnitude"]


def doubled(factor, dtype):
    objective = classifier()
    data = sf.Batch(objective.data.inputs.astype(dtype), objective.data.labels)
    params = jnp.asarray(factor * WEIGHTS, dtype)
    return dataclasses.replace(objective, params=params, data=data)


def check_scaling(dtype, relative):
    """Weights and noise k times as large classify alike: σ goes with k, or not at all (relative).

    At one seed the draws are the same, so that this holds to the bracket's width.
    """
    one, four = doubled(1, dtype), doubled(4, dtype)
    arguments = {"tolerance": relative / 10, "steps": 80}
    values = [sf.measure(o, {NAMES[0]: arguments}).value for o in (one, four)]
    assert values[0] == pytest.approx(16 * values[1], rel=relative)
    arguments["epsilon"] = 0.0
    values = [sf.measure(o, {NAMES[1]: arguments}).value for o in (one, four)]
    assert values[0] == pytest.approx(values[1], rel=relative)


def test_scaling_in_double_precision(x64):
    check_scaling(jnp.float64, 1e-6)


def test_scaling_in_single_precision():
    check_scaling(jnp.float32, 1e-3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.metric)
def test_sigma_is_a_standard_deviation(case):
    """Classic mistake 5: the code this comes from passes σ² where σ belongs."""
    estimate = sf.measure(case.objective(), {case.metric: {**case.arguments, "draws": 1000}})
    assert estimate.converged
    assert abs(estimate.value - case.truth) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.1 * case.truth
    assert estimate.value == pytest.approx(estimate.details["sigma"] ** -2)


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_at_sigma_is_as_much_lower_as_was_asked(name):
    estimate = sf.measure(classifier(), {name: {"draws": 200, "accuracy_drop": 0.2}})
    assert estimate.details["accuracy"] == 1.0
    assert estimate.details["accuracies"].mean() == pytest.approx(0.8, abs=0.005)
    assert estimate.details["low"] <= estimate.details["sigma"] <= estimate.details["high"]
    assert estimate.details["slope"] < 0


def test_epsilon_moves_weights_of_zero():
    """The fourth weight is 0: only ε moves it, and alone it may cost more than is allowed."""
    objective = classifier()
    still = sf.measure(objective, {NAMES[1]: {"epsilon": 0.0, "draws": 50}})
    moved = sf.measure(objective, {NAMES[1]: {"epsilon": 0.3, "draws": 50}})
    assert still.converged
    assert moved.value > still.value
    shaken = sf.measure(objective, {NAMES[1]: {"epsilon": 100.0}})
    assert not shaken.converged
    assert np.isfinite(shaken.value)


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_that_never_falls_has_no_sigma(name):
    """One class only: nothing can be lost. The value is the last σ's, and not certified."""
    model = sf.Model.from_functions(lambda key, x: jnp.zeros((3, 1)), lambda w, x: x @ w)
    data = jnp.ones((5, 3)), jnp.zeros(5, int)
    objective = sf.Objective.from_model(model, jnp.ones((3, 1)), {}, data)
    estimate = sf.measure(objective, name)
    assert not estimate.converged
    assert np.isfinite(estimate.value)
    assert estimate.details["evaluations"] == 15
    assert estimate.standard_error is None


def test_too_few_steps_are_not_certified():
    assert not sf.measure(classifier(), {NAMES[0]: {"steps": 4}}).converged
    assert sf.measure(classifier(), {NAMES[0]: {"steps": 15}}).converged


def lifted(b, inputs):
    """Logits (0, x + b): class 1 while b > −x."""
    return jnp.concatenate([jnp.zeros_like(inputs), inputs + b[None]], axis=1)


def test_exactly_as_many_as_may_be_lost_are_not_too_many():
    """Margins 1 to 50 and one draw of noise: the k-th example falls at k times the first one's σ.

    A tenth of 50 is 5, though 1 − 45/50 is above 0.1 in single precision; 0.11 · 50 = 5.5 allows 5.
    """
    data = jnp.arange(1.0, 51.0)[:, None], jnp.ones(50, int)
    model = sf.Model.from_functions(lambda key, x: jnp.zeros(1), lifted)
    objective = sf.Objective.from_model(model, jnp.zeros(1), {}, data)
    seed = next(
        seed for seed in range(20)
        if sf.measure(objective, NAMES[0], seed=seed, draws=1).converged
    )  # fmt: skip
    first, *others = (
        sf.measure(
            objective,
            {NAMES[0]: {"draws": 1, "accuracy_drop": drop, "tolerance": 1e-4, "steps": 60}},
            seed=seed,
        ).details["sigma"]
        for drop in (0.0, 0.1, 0.11, 0.12)
    )
    np.testing.assert_allclose(np.array(others) / first, [6, 6, 7], rtol=1e-3)


def test_where_no_sigma_was_found_there_is_no_error():
    """Accuracy falls about the last σ that was tried, but by less than may be lost."""
    for steps, known in ((3, False), (4, True)):
        estimate = sf.measure(classifier(), {NAMES[0]: {"draws": 50, "steps": steps}})
        assert estimate.details["slope"] < 0
        assert np.isfinite(estimate.details["high"]) == known
        assert (estimate.standard_error is not None) == known
        assert not estimate.converged


def test_where_every_sigma_costs_too_much_there_is_no_error():
    """Weights a tenth as large: the first two σ cost more than may be lost."""
    for steps, known in ((2, False), (3, True)):
        estimate = sf.measure(doubled(0.1, jnp.float32), {NAMES[0]: {"draws": 50, "steps": steps}})
        assert estimate.details["slope"] < 0
        assert np.isfinite(estimate.details["high"])
        assert (estimate.details["low"] > 0) == known
        assert (estimate.standard_error is not None) == known
        assert not estimate.converged


def test_one_draw_has_no_error():
    assert sf.measure(classifier(), {NAMES[0]: {"draws": 1}}).standard_error is None


def test_the_search_sees_the_same_draws_at_every_sigma():
    """Reproducible by seed, and different between seeds."""
    one, again, other = (sf.measure(classifier(), NAMES[0], seed=s).value for s in (1, 1, 2))
    assert one == again
    assert one != other


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_accuracy_is_refused(name):
    with pytest.raises(sf.InputError, match=f"{name}: outputs: an objective made by from_function"):
        sf.measure(quadratic(np.eye(2)), name)
    model = sf.Model.from_functions(lambda key, x: jnp.zeros(2), lambda w, x: x @ w)
    data = jnp.ones((4, 2)), jnp.ones(4)
    regression = sf.Objective.from_model(model, jnp.ones(2), {}, data, loss="squared_error")
    with pytest.raises(sf.InputError, match="labels: accuracy needs integers for classes"):
        sf.measure(regression, name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accuracy_drop": 1.5}, "accuracy_drop"),
        ({"draws": 0}, "draws"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"sigma": 0.1}, "unknown key 'sigma'"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_named(name, arguments, message):
    with pytest.raises(sf.InputError, match=message):
        sf.measure(classifier(), {name: arguments})


def test_network_in_single_precision_under_x64(x64):
    """Parameters of single precision stay so."""
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(20, 4)), jnp.float32), jnp.asarray(rng.integers(0, 3, 20))
    model = sf.Model.of(sf.models["mlp"](3, width=5, depth=1))
    params, _ = model.init(jax.random.key(0), data[0])
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    estimate = sf.measure(sf.Objective.from_model(model, params, {}, data), NAMES[0], draws=3)
    assert estimate.details["low"].dtype == np.float32
