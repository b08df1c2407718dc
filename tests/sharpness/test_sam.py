"""One step along the gradient against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ONE, quadratic, rotated

import sharpflat as sf
from sharpflat.sharpness import critical, sam

H = rotated([9.0, 4.0, 1.0, 0.25])
WEIGHTS = np.array([1.0, -2.0, 0.5, 3.0])


def bowl(weights=WEIGHTS):
    objective = quadratic(H)
    params = {"w": jnp.asarray(weights, objective.params["w"].dtype)}
    return dataclasses.replace(objective, params=params)


def rise(step, weights=WEIGHTS):
    return step @ H @ weights + 0.5 * step @ H @ step


def linear(n=11):
    inputs = np.random.default_rng(1).normal(size=(n, 4))
    objective = sf.Objective.from_function(
        lambda w, batch: jnp.mean(batch.inputs @ w),
        jnp.asarray(WEIGHTS),
        (jnp.asarray(inputs), jnp.zeros(n)),
    )
    return objective, inputs


def check_rises(relative):
    gradient = H @ WEIGHTS
    step = 0.05 * gradient / np.linalg.norm(gradient)
    estimate = sf.measure(bowl(), "sam_sharpness")
    assert estimate.value == pytest.approx(rise(step), rel=relative)
    assert (estimate.standard_error, estimate.converged) == (0.0, True)
    size = np.abs(WEIGHTS) + 0.01
    step = 0.5 * size**2 * gradient / np.linalg.norm(size * gradient)
    estimate = sf.measure(bowl(), "asam_sharpness")
    assert estimate.value == pytest.approx(rise(step), rel=relative)
    assert (estimate.standard_error, estimate.converged) == (0.0, True)


def test_bowl_in_double_precision(x64):
    check_rises(1e-6)


def test_bowl_in_single_precision():
    check_rises(1e-3)


@pytest.mark.parametrize("name", ["sam_sharpness", "asam_sharpness"])
def test_a_tiny_gradient_is_not_zero(name):
    """1e-24 in single precision, whose square underflows, from weights of 1e-24 and of one."""
    estimate = sf.measure(bowl(1e-24 * WEIGHTS), name)
    assert estimate.value > 0
    assert estimate.converged
    slope = sf.Objective.from_function(
        lambda w, batch: 1e-24 * jnp.sum(w), jnp.ones(4, jnp.float32), ONE
    )
    estimate = sf.measure(slope, name, rho=0.5)
    assert estimate.details["gradient_norm"] == pytest.approx(2e-24, rel=0.02)
    assert estimate.value == pytest.approx(1e-24, rel=0.02)
    assert estimate.converged


def test_m_sharpness_is_the_mean_over_whole_disjoint_subsets(x64):
    """A linear loss over 11 examples, m = 3: rows 0–2, 3–5, 6–8; two are left out."""
    objective, inputs = linear()
    slopes = inputs[:9].reshape(3, 3, 4).mean(axis=1)
    expected = 0.1 * np.linalg.norm(slopes, axis=1)
    estimate = sf.measure(objective, "sam_sharpness", rho=0.1, m=3)
    np.testing.assert_allclose(estimate.details["rises"], expected, rtol=1e-6)
    assert estimate.value == pytest.approx(expected.mean(), rel=1e-6)
    size = np.abs(WEIGHTS) + 0.01
    estimate = sf.measure(objective, "asam_sharpness", rho=0.1, m=3)
    expected = 0.1 * np.linalg.norm(size * slopes, axis=1)
    np.testing.assert_allclose(estimate.details["rises"], expected, rtol=1e-6)
    whole = sf.measure(objective, "sam_sharpness", m=11).value
    assert whole == pytest.approx(sf.measure(objective, "sam_sharpness").value, rel=1e-9)


def test_zero_gradient_is_no_certificate_of_flatness():
    """Classic mistake 9: no step was made at this exact minimum; it is not flat."""
    for name in ("sam_sharpness", "asam_sharpness"):
        estimate = sf.measure(bowl(np.zeros(4)), name)
        assert estimate.value == 0
        assert not estimate.converged


def test_zero_weights_move_only_by_eta(x64):
    """Classic mistake 8: |w| = 0 divides nothing; with η = 0 the weight stays."""
    weights = np.array([1.0, 0.0, -2.0, 0.0])
    gradient = H @ weights
    for eta in (0.0, 0.01):
        size = np.abs(weights) + eta
        step = 0.5 * size**2 * gradient / np.linalg.norm(size * gradient)
        estimate = sf.measure(bowl(weights), "asam_sharpness", eta=eta)
        assert estimate.value == pytest.approx(rise(step, weights), rel=1e-6)


def test_asam_does_not_see_the_rescaling_of_a_relu_network(x64):
    """(α w₁, w₂ / α) is the same function (Dinh 2017); SAM's own rise changes with it."""
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(30, 4))), jnp.asarray(rng.normal(size=30))

    def loss(params, batch):
        hidden = jax.nn.relu(batch.inputs @ params["a"])
        return jnp.mean((hidden @ params["b"] - batch.labels) ** 2)

    def at(alpha):
        params = {"a": alpha * rng_a, "b": rng_b / alpha}
        return sf.Objective.from_function(loss, params, data)

    rng_a, rng_b = jnp.asarray(rng.normal(size=(4, 5))), jnp.asarray(rng.normal(size=5))
    adaptive = [sf.measure(at(a), "asam_sharpness", eta=0.0).value for a in (1.0, 5.0)]
    plain = [sf.measure(at(a), "sam_sharpness").value for a in (1.0, 5.0)]
    assert adaptive[0] == pytest.approx(adaptive[1], rel=1e-6)
    assert plain[0] != pytest.approx(plain[1], rel=0.1)


def test_a_loss_that_is_not_finite_there_is_not_certified():
    cliff = sf.Objective.from_function(
        lambda w, batch: jnp.where(w[0] > 1.01, jnp.inf, w[0]), jnp.ones(1), ONE
    )
    assert not sf.measure(cliff, "sam_sharpness").converged


def test_metrics_of_one_call_share_the_gradient(monkeypatch):
    calls = []

    def counted(objective, key):
        calls.append(1)
        return objective.value_and_grad(objective.params)

    monkeypatch.setattr(sam, "loss_and_gradient", counted)
    monkeypatch.setattr(critical, "loss_and_gradient", counted)
    names = ["sam_sharpness", "asam_sharpness", "critical_sharpness", "directional_sharpness"]
    together = sf.measure(bowl(), names)
    assert len(calls) == 1
    alone = [sf.measure(bowl(), name) for name in names]
    assert len(calls) == 5
    assert [e.value for e in together] == [e.value for e in alone]


def test_batch_norm_by_the_chunk_needs_whole_chunks():
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(40, 6)), jnp.float32), jnp.asarray(rng.integers(0, 3, 40))
    model = sf.models["mlp"](3, width=5, depth=1, batch_norm=True)
    params, state = sf.Model.of(model).init(jax.random.key(0), data[0])
    objective = sf.Objective.from_model(model, params, state, data, batch_norm="batch", chunk=20)
    with pytest.raises(sf.InputError, match="m: the objective's chunk of 20 does not divide"):
        sf.measure(objective, "sam_sharpness", m=30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": 0}, "rho"),
        ({"m": 12}, "m: 12 is above the 11 examples"),
        ({"m": 0}, "sharpness.m"),
        ({"radius": 1.0}, "unknown key 'radius'"),
    ],
)
@pytest.mark.parametrize("name", ["sam_sharpness", "asam_sharpness"])
def test_bad_arguments_are_named(name, arguments, message):
    with pytest.raises(sf.InputError, match=message):
        sf.measure(linear()[0], {name: arguments})


def test_eta_is_not_negative():
    with pytest.raises(sf.InputError, match="asam_sharpness.eta"):
        sf.measure(bowl(), "asam_sharpness", eta=-0.1)
