"""The Fisher trace and norm against closed forms, dense matrices and Liang's identity."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.fisher import linear, linear_start, probabilities, softmax_regression, true_trace
from jax.flatten_util import ravel_pytree

import sharpflat as sf
from sharpflat.sharpness.fisher import _softmax_root


@pytest.fixture(params=["double", "single"])
def tolerance(request):
    """Of relative errors: 1e-6 in double precision, 1e-3 in single."""
    with jax.enable_x64(request.param == "double"):
        yield 1e-6 if request.param == "double" else 1e-3


def line(loss="squared_error"):
    """f = w·x with one output: J_i = x_i."""
    number, rng = jnp.result_type(float), np.random.default_rng(0)
    data = (jnp.asarray(rng.normal(size=(9, 2)), number), jnp.asarray(rng.normal(size=9), number))
    model = sf.Model.from_functions(linear_start, linear)
    params = jnp.asarray([[0.5], [-2.0]], number)
    return sf.Objective.from_model(model, params, {}, data, loss=loss, chunk=4)


def rectifiers(params, inputs):
    *hidden, last = params
    for kernel in hidden:
        inputs = jax.nn.relu(inputs @ kernel)
    return inputs @ last


def no_start(key, inputs):
    return []


def network(loss="cross_entropy", factors=(1.0, 1.0, 1.0)):
    """Two hidden layers of rectifiers without biases, their kernels times `factors`."""
    number, rng = jnp.result_type(float), np.random.default_rng(4)
    shapes = ((4, 6), (6, 5), (5, 3))
    params = [
        jnp.asarray(factor * rng.normal(size=shape) / 2, number)
        for shape, factor in zip(shapes, factors, strict=True)
    ]
    data = (jnp.asarray(rng.normal(size=(15, 4)), number), jnp.asarray(rng.integers(0, 3, 15)))
    model = sf.Model.from_functions(no_start, rectifiers)
    return sf.Objective.from_model(model, params, {}, data, loss=loss, chunk=6)


def normalised(policy):
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(20, 4))), jnp.asarray(rng.integers(0, 3, 20))
    model = sf.Model.of(sf.models["mlp"](3, width=4, depth=1, batch_norm=True))
    params, state = jax.jit(model.init)(jax.random.key(1), data[0])
    return sf.Objective.from_model(model, params, state, data, batch_norm=policy, chunk=10)


def example_gradients(objective):
    return np.array(
        jax.vmap(lambda tree: ravel_pytree(tree)[0])(
            objective.per_example_gradients(objective.params)
        )
    )


def gauss_newton(objective):
    vector, unravel = ravel_pytree(objective.params)

    def row(unit):
        return ravel_pytree(objective.ggn_vp(objective.params, unravel(unit)))[0]

    return np.asarray(jax.lax.map(row, jnp.eye(len(vector), dtype=vector.dtype)))


def test_empirical_trace_of_softmax_regression(tolerance):
    """∇ℓ_i = x_i (p − e_y)ᵀ."""
    objective = softmax_regression(20)
    wrong = probabilities(objective) - np.eye(3)[np.asarray(objective.data.labels)]
    squares = np.sum(np.asarray(objective.data.inputs, np.float64) ** 2, axis=1)
    estimate = sf.measure(objective, "fisher_trace", kind="empirical")
    expected = np.mean(squares * np.sum(wrong**2, axis=1))
    assert estimate.value == pytest.approx(expected, rel=tolerance)
    assert (estimate.standard_error, estimate.converged) == (0.0, True)


def test_true_trace_with_one_gaussian_label_has_no_randomness(tolerance):
    objective = line()
    estimate = sf.measure(objective, "fisher_trace")
    expected = np.mean(np.sum(np.asarray(objective.data.inputs) ** 2, axis=1))
    assert estimate.value == pytest.approx(expected, rel=tolerance)
    assert estimate.standard_error <= tolerance * expected
    assert estimate.converged


def test_signs_through_the_softmax_root_have_the_labels_covariance(x64):
    """The mean over all signs of (B r)(B r)ᵀ is diag(p) − p pᵀ."""
    outputs = jnp.array([[2.0, -1.0, 0.5, 0.0]])
    p = np.asarray(jax.nn.softmax(outputs[0]))
    slope = jax.grad(lambda f, r: jnp.sum(_softmax_root(f, r)))
    pulls = [
        np.asarray(slope(outputs, jnp.array([signs])))[0]
        for signs in itertools.product((-1.0, 1.0), repeat=4)
    ]
    covariance = np.mean([np.outer(pull, pull) for pull in pulls], axis=0)
    np.testing.assert_allclose(covariance, np.diag(p) - np.outer(p, p), atol=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_true_trace_of_a_network_is_that_of_its_gauss_newton_matrix(loss, x64):
    objective = network(loss)
    expected = np.trace(gauss_newton(objective))
    estimate = sf.measure(objective, "fisher_trace", draws=3000)
    assert abs(estimate.value - expected) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.01 * expected


def test_a_sure_model_has_a_trace_that_its_draws_find():
    """Labels drawn from the softmax would all but never be wrong, and the trace nearly zero."""
    objective = softmax_regression(400, scale=30.0)
    assert np.median(probabilities(objective).max(axis=1)) > 1 - 1e-6
    estimate = sf.measure(objective, "fisher_trace")
    truth = true_trace(objective)
    assert abs(estimate.value - truth) < 3 * estimate.standard_error
    assert estimate.standard_error < 0.4 * truth


def test_one_draw_has_no_error():
    estimate = sf.measure(softmax_regression(20), "fisher_trace", draws=1)
    assert estimate.standard_error is None
    assert estimate.details["by_draw"].shape == (1,)


@pytest.mark.parametrize("kind", ["empirical", "true"])
def test_norm_against_dense_fisher_matrices(kind, tolerance):
    objective = network()
    theta = np.asarray(ravel_pytree(objective.params)[0], np.float64)
    gradients = example_gradients(objective)
    dense = gauss_newton(objective) if kind == "true" else gradients.T @ gradients / 15
    estimate = sf.measure(objective, "fisher_rao_norm", kind=kind)
    assert estimate.value == pytest.approx(theta @ dense @ theta, rel=tolerance)
    assert estimate.details["norm"] == pytest.approx(np.sqrt(estimate.value), rel=1e-6)
    assert (estimate.standard_error, estimate.converged) == (0.0, True)


def test_norm_of_softmax_regression_in_closed_form(tolerance):
    """θᵀ F θ = (1/n) Σ f_iᵀ (diag p − p pᵀ) f_i, and ((p − e_y)·f_i)² for the data's labels."""
    objective = softmax_regression(20)
    p, f = probabilities(objective), np.asarray(objective.outputs(objective.params), np.float64)
    true = np.mean(np.sum(p * f**2, axis=1) - np.sum(p * f, axis=1) ** 2)
    wrong = p - np.eye(3)[np.asarray(objective.data.labels)]
    for kind, expected in (("true", true), ("empirical", np.mean(np.sum(wrong * f, axis=1) ** 2))):
        found = sf.measure(objective, "fisher_rao_norm", kind=kind).value
        assert found == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_norm_by_liangs_identity(loss, tolerance):
    """(L + 1)² E⟨∂ℓ/∂f, f⟩², for L hidden layers of rectifiers without biases."""
    objective = network(loss)
    outputs = objective.outputs(objective.params)
    slopes = jax.vjp(lambda f: objective.function(f, objective.data.labels), outputs)[1]
    along = np.sum(slopes(jnp.ones(15, outputs.dtype))[0] * outputs, axis=1)
    expected = 3**2 * np.mean(np.asarray(along, np.float64) ** 2)
    found = sf.measure(objective, "fisher_rao_norm").value
    assert found == pytest.approx(expected, rel=tolerance)


def test_norm_is_fooled_by_no_rescaling_between_layers(x64):
    for kind in ("empirical", "true"):
        plain = sf.measure(network(), "fisher_rao_norm", kind=kind).value
        scaled = sf.measure(network(factors=(5.0, 0.5, 0.4)), "fisher_rao_norm", kind=kind).value
        assert scaled == pytest.approx(plain, rel=1e-9)


def test_norm_of_a_plain_function_takes_its_examples_gradients(tolerance):
    data = (jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.zeros(2))
    params = {"a": jnp.array(2.0), "b": jnp.array(0.5)}
    plane = sf.Objective.from_function(
        lambda w, b: jnp.mean(w["a"] * b.inputs[:, 0] + w["b"] * b.inputs[:, 1]), params, data
    )
    expected = ((2 + 1) ** 2 + (6 - 0.5) ** 2) / 2
    found = sf.measure(plane, "fisher_rao_norm").value
    assert found == pytest.approx(expected, rel=tolerance)


def own_loss(outputs, labels):
    return jnp.sum(outputs**2, axis=1)


@pytest.mark.parametrize("metric", ["fisher_trace", "fisher_rao_norm"])
def test_what_has_no_labels_of_its_own_is_refused(metric):
    spec = {metric: {"kind": "true"}}
    with pytest.raises(sf.InputError, match="kind: 'true' needs .* cross_entropy and squared_err"):
        sf.measure(line(own_loss), spec)
    plain = sf.Objective.from_function(lambda w, b: jnp.sum(w), jnp.ones(2), (jnp.ones(3),) * 2)
    with pytest.raises(sf.InputError, match="from_function has no outputs"):
        sf.measure(plain, spec)
    for kind in ("true", "empirical"):
        with pytest.raises(sf.InputError, match="not defined under batch_norm 'batch'"):
            sf.measure(normalised("batch"), {metric: {"kind": kind}})
    with pytest.raises(sf.InputError, match=f"{metric}.kind"):
        sf.measure(line(), {metric: {"kind": "exact"}})


@pytest.mark.parametrize("kind", ["true", "empirical"])
def test_recalibrated_averages_are_held_fixed(kind):
    objective = normalised("recalibrated")
    state = objective.state_at(objective.params)
    fixed = sf.Objective.from_model(
        objective.model, objective.params, state, objective.data, chunk=10
    )
    for metric in ("fisher_trace", "fisher_rao_norm"):
        value = sf.measure(objective, metric, kind=kind).value
        assert value == pytest.approx(sf.measure(fixed, metric, kind=kind).value, rel=1e-4)


def test_where_the_loss_overflows_nothing_is_measured():
    huge = network(factors=(1e13, 1e13, 1e13))
    for metric in ("fisher_rao_norm", "fisher_trace"):
        with pytest.raises(sf.InputError, match="^loss: is"):
            sf.measure(huge, metric, kind="empirical")


@pytest.mark.parametrize("kind", ["true", "empirical"])
def test_only_some_of_the_parameters(kind, x64):
    """Trace and norm of a block, from the examples' gradients by the parameters it selects."""
    rng = np.random.default_rng(3)
    data = jnp.asarray(rng.normal(size=(20, 4))), jnp.asarray(rng.integers(0, 3, 20))
    model = sf.Model.of(sf.models["mlp"](3, width=5, depth=1))
    params, _ = model.init(jax.random.key(0), data[0])
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    objective = sf.Objective.from_model(model, params, {}, data)
    part = objective.restrict("Dense_1/*")
    arguments = {"kind": kind, "parameters": "Dense_1/*"}
    trace, norm = sf.measure(
        objective, [{"fisher_trace": {**arguments, "draws": 400}}, {"fisher_rao_norm": arguments}]
    )
    if kind == "true":
        exact = sf.measure(part, {"ggn_trace": {"steps": 100}}).value
        assert abs(trace.value - exact) < 4 * trace.standard_error
        gauss_newton = part.ggn_vp(part.params, part.params)
        assert norm.value == pytest.approx(
            float(sf.trees.vdot(part.params, gauss_newton)), rel=1e-9
        )
        return
    rows = objective.per_example_gradients(params)["Dense_1"]
    squares = sum(np.sum(np.asarray(leaf) ** 2) for leaf in jax.tree.leaves(rows)) / 20
    assert trace.value == pytest.approx(squares, rel=1e-9)
    slopes = sum(
        jnp.sum((g * w[None]).reshape(20, -1), axis=1)
        for g, w in zip(jax.tree.leaves(rows), jax.tree.leaves(params["Dense_1"]), strict=True)
    )
    assert norm.value == pytest.approx(float(jnp.mean(slopes**2)), rel=1e-9)
