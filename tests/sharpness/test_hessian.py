"""λmax against prescribed spectra and dense Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import diagonal, quadratic, rotated
from jax.flatten_util import ravel_pytree

import sharpflat as sf

SPECTRA = {
    "spread": np.linspace(0, 10, 60),
    "outlier": [100.0, *np.linspace(0, 1, 40)],
    "clustered": [5.0, 5.0, 5.0, 1.0, 0.5, *[0.0] * 30],
    "identity": [3.0] * 5,
    "indefinite": [4.0, 1.0, 0.5, -9.0, -20.0],
    "negative": [-1.0, -2.0, -3.0],
}


@pytest.mark.parametrize(
    ("name", "k"),
    [
        ("spread", 3),
        ("outlier", 1),
        ("clustered", 4),
        ("identity", 3),
        ("indefinite", 3),
        ("negative", 1),
    ],
)
def test_prescribed_spectrum_in_double_precision(name, k, x64):
    """Any multiplicity is found and nothing twice (classic mistake 4); 1e-6 relative."""
    spectrum = np.sort(SPECTRA[name])[::-1]
    estimate = sf.measure(
        quadratic(rotated(spectrum)), "hessian_top_eigenvalues", k=k, tolerance=1e-7
    )
    assert estimate.converged
    np.testing.assert_allclose(estimate.details["eigenvalues"], spectrum[:k], rtol=1e-6, atol=1e-9)
    assert k == 1 or (estimate.details["residuals"] <= 1e-7).all()
    assert estimate.value == estimate.details["eigenvalues"][0]


@pytest.mark.parametrize("name", ["spread", "clustered", "indefinite"])
def test_prescribed_spectrum_in_single_precision(name):
    estimate = sf.measure(quadratic(rotated(SPECTRA[name])), "hessian_top_eigenvalues")
    assert estimate.converged
    assert estimate.value == pytest.approx(max(SPECTRA[name]), rel=1e-3)


def test_no_curvature_at_all():
    estimate = sf.measure(quadratic(np.zeros((4, 4))), "hessian_top_eigenvalues")
    assert (estimate.value, estimate.converged) == (0.0, True)


def test_relu_network_against_its_dense_hessian(x64):
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(30, 6))), jnp.asarray(rng.integers(0, 3, 30))
    model = sf.Model.of(sf.models["mlp"](3, width=5, depth=1))
    params, _ = model.init(jax.random.key(0), data[0])
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    objective = sf.Objective.from_model(model, params, {}, data, chunk=7)
    vector, unravel = ravel_pytree(params)
    dense = jax.hessian(lambda w: objective.loss(unravel(w)))(vector)
    expected = np.linalg.eigvalsh(dense)[::-1][:4]
    estimate = sf.measure(objective, "hessian_top_eigenvalues", k=4, tolerance=1e-7)
    np.testing.assert_allclose(estimate.details["eigenvalues"], expected, rtol=1e-6)


@pytest.mark.parametrize("near", [0.99, 0.98, 0.97])
@pytest.mark.parametrize("seed", range(10))
def test_a_close_pair_is_not_taken_for_one(near, seed, x64):
    """Before the pair comes apart one Ritz value stands between them, far from all others."""
    spectrum = [1.0, near, *np.linspace(-0.1, 0.1, 198)]
    estimate = sf.measure(quadratic(rotated(spectrum)), "hessian_top_eigenvalues", seed=seed)
    assert estimate.converged
    assert estimate.value == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_true_error_where_the_gap_is_small(seed, x64):
    spectrum = [1.0, 0.97, 0.93, *np.linspace(-0.2, 0.9, 200)]
    estimate = sf.measure(quadratic(rotated(spectrum)), "hessian_top_eigenvalues", seed=seed)
    assert (estimate.converged, estimate.standard_error) == (True, 0.0)
    assert abs(estimate.value - 1) <= estimate.details["residuals"][0] <= 1e-3


TOP, BOTTOM = "hessian_top_eigenvalues", "hessian_bottom_eigenvalue"


@pytest.mark.parametrize(("metric", "outlier"), [(TOP, 2.0), (TOP, 1.02), (BOTTOM, -0.5)])
def test_an_outlier_of_a_bulk_at_one_place(metric, outlier):
    """The start is an eigenvector of the bulk but for a part of p^(−1/2): its residual is small."""
    bowl = diagonal([1.0] * 99_999 + [outlier])
    for seed in range(20):
        estimate = sf.measure(bowl, metric, seed=seed)
        assert estimate.converged
        assert estimate.value == pytest.approx(outlier, rel=1e-3)


@pytest.mark.parametrize(("metric", "tolerance"), [(TOP, 1e-3), (BOTTOM, 1e-2)])
def test_of_a_close_pair_the_lower_one_is_not_certified(metric, tolerance):
    """The confidence of 99 %: of 250 starts 2.5 may be off by more than the tolerance."""
    sign = 1 if metric == TOP else -1
    bowl = diagonal([sign, 0.97 * sign, *np.linspace(-0.1, 0.1, 998)])
    found = [sf.measure(bowl, metric, seed=seed) for seed in range(250)]
    assert all(estimate.converged for estimate in found)
    errors = np.abs([estimate.value - sign for estimate in found])
    assert np.sum(errors > tolerance) <= 2
    assert np.sum(errors > 10 * tolerance) == 0


def test_a_small_residual_is_not_enough():
    """One step of a start in the bulk: near an eigenvalue, and not near the smallest."""
    bowl = diagonal([1.0] * 99_999 + [-0.5])
    estimate = sf.measure(bowl, BOTTOM, max_steps=1)
    assert estimate.details["residuals"][0] <= 1e-2 < estimate.details["missed"]
    assert (estimate.converged, estimate.standard_error) == (False, None)


def test_too_few_steps_are_not_called_converged():
    """A fixed small number of steps gives a wrong value without a word (classic mistake 17)."""
    spectrum = np.linspace(0, 1, 400) ** 0.25
    estimate = sf.measure(
        quadratic(rotated(spectrum)), "hessian_top_eigenvalues", max_steps=4, tolerance=1e-4
    )
    assert not estimate.converged
    assert estimate.standard_error is None
    assert estimate.details["residuals"][0] > 1e-4


def test_steps_grow_until_the_residual_holds():
    spectrum = 1 - np.arange(300) / 3e4
    estimate = sf.measure(
        quadratic(rotated(spectrum)), "hessian_top_eigenvalues", tolerance=1e-6, max_steps=300
    )
    assert estimate.converged
    assert estimate.details["products"] > 17, "the space outgrows its first allotment"
    assert estimate.value == pytest.approx(1.0, rel=2e-5)


def test_k_above_the_number_of_parameters_is_refused():
    with pytest.raises(sf.InputError, match="k: 6 is above the 5 parameters"):
        sf.measure(quadratic(np.eye(5)), "hessian_top_eigenvalues", k=6)
    with pytest.raises(sf.InputError, match="k: 4 is above max_steps, 3"):
        sf.measure(quadratic(np.eye(5)), "hessian_top_eigenvalues", k=4, max_steps=3)
