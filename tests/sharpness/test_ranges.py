"""Numbers at the edge of what single precision holds: right all the same, or not certified."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import ONE, diagonal
from scipy.optimize import brentq

import sharpflat as sf
from sharpflat.curvature.krylov import in_range

SPECTRUM = np.array([4.0, *np.linspace(0.1, 1, 49)])
KNOWN = {
    "hessian_top_eigenvalues": 4.0,
    "hessian_bottom_eigenvalue": 0.1,
    "hessian_trace": SPECTRUM.sum(),
    "hessian_frobenius_norm": np.linalg.norm(SPECTRUM),
    "hessian_spectral_density": SPECTRUM.mean(),
}


@pytest.mark.parametrize("scale", [1e-17, 1e-19, 1e-25, 1e25])
def test_curvature_whose_squares_leave_the_range(scale):
    found = sf.measure(diagonal(scale * SPECTRUM), [*KNOWN])
    for name, estimate in zip(KNOWN, found, strict=True):
        allowed = 3 * estimate.standard_error / scale + 1e-2 * KNOWN[name]
        assert estimate.value / scale == pytest.approx(KNOWN[name], abs=allowed), name
        assert estimate.converged, name


def test_no_curvature_at_all():
    plane = sf.Objective.from_function(lambda w, _: jnp.sum(w), jnp.zeros(50), ONE)
    for estimate in sf.measure(plane, [*KNOWN]):
        assert estimate[:3] == (0.0, 0.0, True)
    density = sf.measure(plane, "hessian_spectral_density").details
    assert np.trapezoid(density["density"], density["grid"]) == pytest.approx(1, rel=1e-3)


class Coarse(nn.Module):
    """Parameters in single precision, products in half of it."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(16, dtype=jnp.bfloat16)(x))
        return nn.Dense(4, dtype=jnp.bfloat16)(x).astype(jnp.float32)


def coarse():
    inputs = jax.random.normal(jax.random.key(0), (64, 8))
    labels = jax.random.randint(jax.random.key(1), (64,), 0, 4)
    model = sf.Model.of(Coarse())
    return sf.Objective.from_model(model, *model.init(jax.random.key(2), inputs), (inputs, labels))


@pytest.mark.parametrize("k", [1, 2])
def test_the_residual_knows_how_coarse_the_products_are(k):
    """The recurrence's own says 1e-5 here, and nothing of products in bfloat16."""
    found = sf.measure(coarse(), {"hessian_top_eigenvalues": {"k": k}})
    assert found.details["residuals"].max() > 1e-3
    assert not found.converged


@pytest.mark.parametrize("gap", [10.0, 40.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_fisher_trace_where_the_model_is_sure(gap, classes):
    """tr F = mean ‖x‖² tr(diag p − ppᵀ), nearly all of it from what p lacks of 1."""
    model = sf.Model.from_functions(lambda key, x: None, lambda w, x: x @ w)
    weights = jnp.zeros((200, classes)).at[:, 0].set(gap)
    data = (jnp.eye(200), jnp.zeros(200, int))
    objective = sf.Objective.from_model(model, weights, {}, data)
    p = 1 / (np.exp(gap) + classes - 1)
    expected = (classes - 1) * p * (1 - p) + (classes - 1) * p * (1 - (classes - 1) * p)
    found = sf.measure(objective, "fisher_trace")
    allowed = 4 * found.standard_error + 1e-5 * expected
    assert found.value == pytest.approx(expected, abs=allowed)
    if classes == 2:
        assert found.standard_error < 1e-2 * expected, "two labels leave little to chance"


@pytest.mark.parametrize("scale", [1.0, 1e-21])
def test_gradients_whose_squares_leave_the_range(scale):
    rows = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]])
    data = (jnp.asarray(rows), jnp.zeros(3))
    line = sf.Objective.from_function(
        lambda w, batch: scale * jnp.mean(batch.inputs @ w), jnp.ones(2), data
    )
    empirical = {"fisher_trace": {"kind": "empirical"}}
    plane = sf.measure(line, ["gradient_covariance_trace", empirical, "gradient_diversity"])
    values = np.array([estimate.value for estimate in plane]) / [scale**2, scale**2, 1]
    centred = rows - rows.mean(axis=0)
    squares = float((rows**2).sum()), float((rows.sum(axis=0) ** 2).sum())
    expected = [(centred**2).sum() / 3, squares[0] / 3, squares[0] / squares[1]]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize("rows", [[1.0, -1.0, 1e-22], [1e-21, -1e-21], [1e25, -1e25]])
def test_deviations_whose_size_the_mean_does_not_tell(rows):
    data = (jnp.array(rows), jnp.zeros(len(rows)))
    line = sf.Objective.from_function(
        lambda w, batch: jnp.mean(batch.inputs * w), jnp.array(1.0), data
    )
    found = sf.measure(line, "gradient_covariance_trace")
    assert found.value == pytest.approx(np.var(rows), rel=1e-5)


def test_the_scale_of_squares_is_a_power_of_two():
    for largest in (3e38, 1.5, 1.0, 2e-38):
        small, power = in_range(jnp.array([largest, -largest / 4]))
        assert np.isfinite(power)
        assert np.frexp(float(power))[0] == 0.5
        assert float(small[0]) * float(power) == float(np.float32(largest))
        assert 1 <= float(small[0]) <= 4
    small, power = in_range(jnp.zeros(2))
    assert (float(power), float(small.sum())) == (1.0, 0.0)


@pytest.mark.parametrize("n", [1, 30])
def test_examples_that_are_alike_have_no_noise_to_align(n):
    """Their deviations are rounding, of which a ratio would be made."""
    model = sf.Model.from_functions(lambda key, x: None, lambda w, x: x @ w)
    one = jax.random.normal(jax.random.key(0), (1, 5))
    weights = jax.random.normal(jax.random.key(1), (5, 3))
    data = (jnp.repeat(one, n, axis=0), jnp.zeros(n, int))
    alike = sf.Objective.from_model(model, weights, {}, data)
    found = sf.measure(alike, "noise_curvature_alignment")
    assert np.isnan(found.value)
    assert not found.converged


def test_an_ascent_on_slopes_whose_squares_leave_the_range():
    """max ½ Σ h (1 + z)² over ‖z‖ ≤ 1 less its start: there h (1 + z) = μ z, and μ > max h."""
    h = np.array([4.0, 1.0, 0.5])
    z = h / (brentq(lambda mu: np.sum((h / (mu - h)) ** 2) - 1, 4.01, 100.0) - h)
    curvature = jnp.asarray(1e-20 * h, jnp.float32)
    bowl = sf.Objective.from_function(
        lambda w, _: 0.5 * jnp.sum(curvature * w**2), jnp.ones(3), ONE
    )
    ball = {"rho": 1.0, "norm": "l2", "adaptive": False}
    found = sf.measure(bowl, {"worst_case_sharpness": ball})
    assert found.value == pytest.approx(0.5e-20 * np.sum(h * ((1 + z) ** 2 - 1)), rel=1e-3)
    assert found.converged


RISES = [
    {"sam_sharpness": {"rho": 1e-4}},
    {"asam_sharpness": {"rho": 1e-2}},
    {"keskar_sharpness": {"epsilon": 1e-4}},
    {"worst_case_sharpness": {"rho": 1e-4, "adaptive": False}},
]


@pytest.mark.parametrize("spec", RISES, ids=[next(iter(spec)) for spec in RISES])
@pytest.mark.parametrize(("floor", "held"), [(1.0, False), (0.0, True)])
def test_a_rise_that_the_losss_rounding_hides_is_not_certified(spec, floor, held):
    bowl = sf.Objective.from_function(
        lambda w, _: floor + 0.5 * jnp.sum(w**2), jnp.full(3, 1e-3), ONE
    )
    assert sf.measure(bowl, spec).converged is held


def mixed(kernel, inputs):
    """A perceptron whose kernels and inputs have these dtypes, and its biases single precision."""
    x = jax.random.normal(jax.random.key(0), (24, 4), inputs)
    model = sf.Model.of(sf.models["mlp"](3, width=4, depth=1))
    params, state = model.init(jax.random.key(2), x)
    params = jax.tree.map(lambda leaf: leaf.astype(kernel) if leaf.ndim > 1 else leaf, params)
    return sf.Objective.from_model(model, params, state, (x, jnp.arange(24) % 3))


QUICK = {
    "local_entropy": {"steps": 3, "burn_in": 2},
    "local_learning_coefficient": {"chains": 2, "steps": 4, "burn_in": 2, "batch_size": 8},
}


def test_parameters_of_several_dtypes_can_be_measured():
    objective = mixed("bfloat16", "float32")
    given = {
        "initial_params": objective.params,
        "opt_state": optax.adam(1e-3).init(objective.params),
        "hyperparams": {},
    }
    specs = [{name: QUICK.get(name, {})} for name in sf.metrics]
    for name, found in zip(sf.metrics, sf.measure(objective, specs, **given), strict=True):
        assert np.isfinite(found.value), name


def test_single_precision_under_double(x64):
    found = sf.measure(mixed("float32", "float64"), "worst_case_sharpness")
    assert found.value > 0
