"""Gradient noise on bowls about scattered centers: g_i = A (w − x_i), H = A."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases.gradient_noise import CENTERS, MATRIX, alignment, bowl
from helpers import rotated
from jax.flatten_util import ravel_pytree

import sharpflat as sf

SHARING = [
    "gradient_covariance_trace",
    "gradient_diversity",
    "gradient_noise_scale",
    "noise_curvature_alignment",
    {"fisher_trace": {"kind": "empirical"}},
]
AT = 0.3
POPULATION = ("population", "population_low", "population_high")


def gradients(matrix=MATRIX, centers=CENTERS, at=AT):
    return (at - centers) @ matrix


@pytest.fixture(params=["double", "single"])
def tolerance(request):
    """Of relative errors: 1e-6 in double precision, 1e-3 in single."""
    with jax.enable_x64(request.param == "double"):
        yield 1e-6 if request.param == "double" else 1e-3


def network(batch_norm=False, policy="running", chunk=4):
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(12, 4))), jnp.asarray(rng.integers(0, 3, 12))
    model = sf.Model.of(sf.models["mlp"](3, width=4, depth=1, batch_norm=batch_norm))
    start = jax.jit(model.init)(jax.random.key(1), data[0])
    params, state = jax.tree.map(lambda leaf: leaf.astype(data[0].dtype), start)
    return sf.Objective.from_model(model, params, state, data, batch_norm=policy, chunk=chunk)


def one_by_one(objective):
    """The examples' gradients, `[n, p]`."""

    def gradient(i):
        return ravel_pytree(objective.subset(i[None]).value_and_grad(objective.params)[1])[0]

    return np.asarray(jax.lax.map(gradient, jnp.arange(objective.data.size)))


@pytest.mark.parametrize("chunk", [None, 7])
def test_covariance_trace_in_closed_form(tolerance, chunk):
    estimate = sf.measure(bowl(MATRIX, CENTERS, AT, chunk), "gradient_covariance_trace")
    expected = np.trace(MATRIX @ np.cov(CENTERS.T, ddof=0) @ MATRIX)
    assert estimate.value == pytest.approx(expected, rel=tolerance)
    assert estimate.details["unbiased"] == pytest.approx(expected * 20 / 19, rel=tolerance)
    square = np.mean(np.sum(gradients() ** 2, axis=1))
    assert estimate.details["mean_square_gradient"] == pytest.approx(square, rel=tolerance)
    mean = gradients().mean(axis=0)
    assert estimate.details["squared_gradient_norm"] == pytest.approx(mean @ mean, rel=tolerance)
    assert (estimate.standard_error, estimate.converged) == (0.0, True)


def test_covariance_trace_of_a_network_one_by_one(tolerance):
    objective = network()
    expected = np.trace(np.cov(one_by_one(objective).T, ddof=0))
    estimate = sf.measure(objective, "gradient_covariance_trace")
    assert estimate.value == pytest.approx(expected, rel=tolerance)


def test_covariance_trace_is_no_difference_of_large_numbers():
    """With ‖ḡ‖ a thousand times the spread, mean ‖g‖² − ‖ḡ‖² has no right digit left."""
    centers = np.asarray(CENTERS + 3000, np.float32)
    estimate = sf.measure(bowl(np.eye(8), centers), "gradient_covariance_trace")
    expected = np.trace(np.cov(centers.T.astype(np.float64), ddof=0))
    assert estimate.value == pytest.approx(expected, rel=1e-3)


def test_examples_given_twice_change_nothing_of_the_noise(x64):
    """A sum that is never averaged grows with the data (classic mistake 1)."""
    for metric in ("gradient_covariance_trace", "gradient_noise_scale"):
        once = sf.measure(bowl(MATRIX, CENTERS, AT), metric).value
        twice = sf.measure(bowl(MATRIX, np.concatenate([CENTERS, CENTERS]), AT), metric).value
        assert twice == pytest.approx(once, rel=1e-9)


def test_noise_scale_in_closed_form(tolerance):
    estimate = sf.measure(bowl(MATRIX, CENTERS, AT, 6), "gradient_noise_scale")
    mean = gradients().mean(axis=0)
    trace = np.trace(np.cov(gradients().T, ddof=0))
    assert estimate.value == pytest.approx(trace / (mean @ mean), rel=tolerance)
    assert estimate.details["covariance_trace"] == pytest.approx(trace, rel=tolerance)
    assert estimate.details["squared_gradient_norm"] == pytest.approx(mean @ mean, rel=tolerance)
    assert (estimate.standard_error, estimate.converged) == (0.0, True)


def test_population_noise_scale_is_the_papers_estimate_for_batches_of_1_and_n(x64):
    n, small = len(CENTERS), np.mean(np.sum(gradients() ** 2, axis=1))
    large = np.sum(gradients().mean(axis=0) ** 2)
    signal = (n * large - small) / (n - 1)
    noise = (small - large) / (1 - 1 / n)
    details = sf.measure(bowl(MATRIX, CENTERS, AT), "gradient_noise_scale").details
    assert details["population_squared_gradient_norm"] == pytest.approx(signal, rel=1e-6)
    assert details["population_covariance_trace"] == pytest.approx(noise, rel=1e-6)
    assert details["population"] == pytest.approx(noise / signal, rel=1e-6)
    assert details["population_low"] < details["population"] < details["population_high"]


@pytest.mark.parametrize(("n", "at"), [(60, 0.6), (200, 0.2)])
def test_populations_interval_covers_over_draws_of_the_data(n, at, x64):
    """Gaussian gradients A (w − x), x ~ N(0, I): S = tr A², |G|² = ‖A w‖²."""
    matrix = rotated([3.0, 2.0, 1.0, 0.5])
    mean = matrix @ np.full(4, at)
    truth = np.trace(matrix @ matrix) / (mean @ mean)
    inside = []
    for seed in range(200):
        centers = np.random.default_rng(seed).normal(size=(n, 4))
        details = sf.measure(bowl(matrix, centers, at), "gradient_noise_scale").details
        inside.append(details["population_low"] <= truth <= details["population_high"])
    assert 0.90 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize("metric", ["gradient_noise_scale", "gradient_diversity"])
def test_a_mean_gradient_of_rounding_is_not_called_a_signal(metric):
    estimate = sf.measure(bowl(MATRIX, CENTERS - CENTERS.mean(axis=0)), metric)
    assert 1e6 < estimate.value < np.inf
    assert not estimate.converged
    still = sf.measure(bowl(np.eye(1), [[1.0], [-1.0]]), metric)
    assert (still.value, still.converged) == (np.inf, False)
    nothing = sf.measure(bowl(np.eye(1), [[0.0], [0.0]]), metric)
    assert np.isnan(nothing.value)
    assert not nothing.converged


def test_population_noise_scale_at_a_fitted_minimum_is_not_known():
    centers = np.concatenate([CENTERS, -CENTERS])
    details = sf.measure(bowl(MATRIX, centers), "gradient_noise_scale").details
    assert details["population_squared_gradient_norm"] < 0
    assert all(np.isnan(details[name]) for name in POPULATION)


def test_population_noise_scale_of_a_signal_that_the_examples_cannot_tell_has_no_upper_end(x64):
    details = sf.measure(bowl(MATRIX, CENTERS, 0.1), "gradient_noise_scale").details
    assert details["population_high"] == np.inf
    assert 0 < details["population_low"] < details["population"]


def test_few_examples_have_no_population():
    details = sf.measure(bowl(np.eye(2), np.eye(2), AT), "gradient_noise_scale").details
    assert all(np.isnan(details[name]) for name in POPULATION)
    alone = sf.measure(bowl(np.eye(2), np.eye(2)[:1], AT), "gradient_covariance_trace")
    assert alone.value == 0.0
    assert np.isnan(alone.details["unbiased"])


def slopes(rows):
    """The mean of w·x_i: its examples' gradients are the rows x_i."""
    rows = jnp.asarray(rows, jnp.result_type(float))
    return sf.Objective.from_function(
        lambda w, batch: jnp.mean(batch.inputs @ w), jnp.zeros(rows.shape[1]),
        (rows, jnp.zeros(len(rows))),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(np.ones((5, 3)), 1 / 5), (np.eye(4), 1.0), ([[1.0, 0.0], [2.0, 2.0]], 9 / 13)],
)
def test_diversity_in_closed_form(rows, expected, tolerance):
    estimate = sf.measure(slopes(rows), "gradient_diversity")
    assert estimate.value == pytest.approx(expected, rel=tolerance)
    bound = expected * len(rows)
    assert estimate.details["batch_size_bound"] == pytest.approx(bound, rel=tolerance)
    assert (estimate.standard_error, estimate.converged) == (0.0, True)


def test_alignment_with_equal_curvature_everywhere_is_one(tolerance):
    estimate = sf.measure(bowl(3 * np.eye(8), CENTERS, AT, 7), "noise_curvature_alignment")
    assert estimate.value == pytest.approx(1.0, rel=tolerance)
    assert estimate.details["mean_eigenvalue"] == pytest.approx(3.0, rel=tolerance)
    assert estimate.standard_error <= tolerance
    assert estimate.converged


def test_alignment_of_noise_along_one_direction(tolerance):
    """Its curvature over the mean of all: neither sum is left unaveraged (classic mistake 1)."""
    matrix, centers = np.diag([4.0, 1.0, 1.0]), np.zeros((5, 3))
    centers[:, 0] = np.arange(5)
    estimate = sf.measure(bowl(matrix, centers, AT), "noise_curvature_alignment", draws=4)
    assert estimate.value == pytest.approx(4.0 / 2.0, rel=tolerance)
    assert estimate.details["noise_weighted_curvature"] == pytest.approx(4.0, rel=tolerance)
    assert estimate.details["mean_eigenvalue"] == pytest.approx(2.0, rel=tolerance)


def test_alignment_of_a_network_against_dense_matrices(x64):
    objective = network()
    vector, unravel = ravel_pytree(objective.params)
    hessian = np.asarray(jax.hessian(lambda w: objective.loss(unravel(w)))(vector))
    covariance = np.cov(one_by_one(objective).T, ddof=0)
    seen = np.trace(hessian @ covariance) / np.trace(covariance)
    estimate = sf.measure(objective, "noise_curvature_alignment", draws=3000)
    details = estimate.details
    for name, truth in (
        ("noise_weighted_curvature", seen),
        ("mean_eigenvalue", np.trace(hessian) / len(vector)),
    ):
        assert abs(details[name] - truth) < 4 * details[f"{name}_standard_error"]
        assert details[f"{name}_standard_error"] < 0.1 * abs(truth)


def test_one_loud_example_does_not_hide_from_the_draws(x64):
    """It carries nearly all the noise; drawn uniformly it would be met once in a thousand."""
    matrix = np.diag([5.0, 1.0])
    centers = np.zeros((1000, 2))
    centers[:, 1] = 0.01 * np.random.default_rng(0).normal(size=1000)
    centers[17] = [30.0, 0.0]
    estimate = sf.measure(bowl(matrix, centers, 0.0), "noise_curvature_alignment")
    assert estimate.value == pytest.approx(alignment(matrix, centers), rel=0.02)


def test_alignment_holds_recalibrated_averages_fixed(x64):
    objective = network(batch_norm=True, policy="recalibrated")
    state = objective.state_at(objective.params)
    fixed = dataclasses.replace(objective, model_state=state, batch_norm="running")
    found, expected = (
        sf.measure(each, ["noise_curvature_alignment", "gradient_covariance_trace"])
        for each in (objective, fixed)
    )
    for one, other in zip(found, expected, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-9)


def test_alignment_over_a_trace_that_may_be_zero_is_not_called_converged(x64):
    estimate = sf.measure(
        bowl(rotated([1.0, -1.0, 2.0, -2.0]), CENTERS[:, :4], AT), "noise_curvature_alignment"
    )
    assert not estimate.converged
    assert abs(estimate.details["mean_eigenvalue"]) <= (
        1.96 * estimate.details["mean_eigenvalue_standard_error"]
    )


def test_alignment_where_all_examples_agree_is_no_number():
    estimate = sf.measure(bowl(np.eye(2), np.ones((4, 2))), "noise_curvature_alignment")
    assert np.isnan(estimate.value)
    assert (estimate.standard_error, estimate.converged) == (None, False)


def test_alignment_of_one_draw_has_no_error_and_no_certificate():
    estimate = sf.measure(bowl(MATRIX, CENTERS, AT), "noise_curvature_alignment", draws=1)
    assert (estimate.standard_error, estimate.converged) == (None, False)


def test_one_pass_over_the_examples_serves_all(monkeypatch):
    passes, whole = [], sf.Objective.map_gradients

    def counted(self, function, params, *args):
        passes.append(function)
        return whole(self, function, params, *args)

    monkeypatch.setattr(sf.Objective, "map_gradients", counted)
    together = sf.measure(network(), SHARING)
    assert len(passes) == 1
    apart = [sf.measure(network(), spec) for spec in SHARING]
    assert len(passes) == 1 + len(SHARING)
    assert [one.value for one in together] == [one.value for one in apart]


@pytest.mark.parametrize("spec", SHARING, ids=str)
def test_where_an_example_has_no_gradient_of_its_own_it_is_refused(spec):
    objective = network(batch_norm=True, policy="batch")
    with pytest.raises(sf.InputError, match="not defined under batch_norm 'batch'"):
        sf.measure(objective, spec)


def test_noise_of_a_bare_array_of_parameters(tolerance):
    estimates = sf.measure(slopes([[1.0, 0.0], [3.0, 0.0]]), SHARING[:3])
    np.testing.assert_allclose([e.value for e in estimates], [1.0, 10 / 16, 1 / 4], rtol=tolerance)


def test_gradients_whose_squares_overflow():
    huge, usual = (sf.measure(bowl(c * MATRIX, CENTERS, AT), SHARING) for c in (1e25, 1.0))
    for name, there, here in zip(SHARING, huge, usual, strict=True):
        squared = name in ("gradient_covariance_trace", SHARING[-1])
        scale = 1e50 if squared else 1.0
        assert there.value == pytest.approx(scale * here.value, rel=1e-4), name
        assert there.converged
