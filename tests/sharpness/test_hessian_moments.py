"""Trace, Frobenius norm, density and layers of the Hessian against dense ones."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ONE, quadratic, rotated
from jax.flatten_util import ravel_pytree

import sharpflat as sf
from sharpflat.curvature.krylov import Krylov

EXACT = {"steps": 1000, "probes": 2}
SPECTRUM = [9.0, 4.0, 1.0, 0.5, 0.0, -0.25, -2.0]


def dense_hessian(objective):
    flat, unravel = ravel_pytree(objective.params)
    return np.asarray(jax.hessian(lambda w: objective.loss(unravel(w)))(flat))


@pytest.fixture
def network(x64):
    """A two-layer ReLU net on 30 examples, in chunks that leave a smaller last one."""
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(30, 4))), jnp.asarray(rng.integers(0, 3, 30))
    model = sf.Model.of(sf.models["mlp"](3, width=5, depth=1))
    params, _ = model.init(jax.random.key(0), data[0])
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    return sf.Objective.from_model(model, params, {}, data, chunk=7)


@pytest.mark.parametrize(("precision", "tolerance"), [(True, 1e-6), (False, 1e-3)])
def test_prescribed_spectrum(precision, tolerance):
    with jax.enable_x64(precision):
        bowl = quadratic(rotated(SPECTRUM))
        trace, norm, bottom, density = sf.measure(
            bowl,
            [
                {"hessian_trace": EXACT},
                {"hessian_frobenius_norm": EXACT},
                {"hessian_bottom_eigenvalue": {"tolerance": tolerance / 10}},
                {"hessian_spectral_density": {"probes": 40}},
            ],
        )
    assert trace.value == pytest.approx(sum(SPECTRUM), rel=tolerance)
    assert trace.standard_error == 0
    assert norm.value == pytest.approx(np.linalg.norm(SPECTRUM), rel=tolerance)
    assert norm.standard_error == 0
    assert bottom.value == pytest.approx(-2, rel=tolerance)
    nodes = density.details["nodes"][density.details["weights"] > 1e-4]
    apart = np.abs(nodes[:, None] - np.array(SPECTRUM)).min(axis=1)
    assert apart.max() < max(SPECTRUM) * tolerance


def test_gauss_newton_and_layers_in_single_precision():
    """½ E (x · w)² per layer's inputs: both matrices are E x xᵀ, block by block."""
    inputs = np.random.default_rng(2).normal(size=(50, 12)) * np.linspace(0.3, 2, 12)
    model = sf.Model.from_functions(
        lambda key, x: None,
        lambda w, x: (x[:, :5] @ w["first"]["kernel"] + x[:, 5:] @ w["second"]["kernel"])[:, None],
    )
    params = {"first": {"kernel": jnp.zeros(5)}, "second": {"kernel": jnp.zeros(7)}}
    data = jnp.asarray(inputs, jnp.float32), jnp.zeros((50, 1))
    fit = sf.Objective.from_model(model, params, {}, data, loss="squared_error")
    dense = inputs.T @ inputs / 50
    blocks = [dense[:5, :5], dense[5:, 5:]]
    top, trace, layers = sf.measure(
        fit, ["ggn_top_eigenvalues", {"ggn_trace": EXACT}, {"layerwise_hessian": EXACT}]
    )
    assert top.value == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-3)
    assert trace.value == pytest.approx(np.trace(dense), rel=1e-3)
    tops = [np.linalg.eigvalsh(block)[-1] for block in blocks]
    np.testing.assert_allclose(layers.details["top_eigenvalues"], tops, rtol=1e-3)
    np.testing.assert_allclose(layers.details["traces"], list(map(np.trace, blocks)), rtol=1e-3)
    assert layers.converged


def test_relu_network_against_its_dense_hessian(network):
    dense = dense_hessian(network)
    trace, norm = sf.measure(network, [{"hessian_trace": EXACT}, {"hessian_frobenius_norm": EXACT}])
    assert trace.value == pytest.approx(np.trace(dense), rel=1e-6)
    assert norm.value == pytest.approx(np.linalg.norm(dense), rel=1e-6)
    bottom = sf.measure(network, "hessian_bottom_eigenvalue", tolerance=1e-7)
    assert bottom.value == pytest.approx(np.linalg.eigvalsh(dense)[0], rel=1e-6)


def test_gauss_newton_against_its_dense_matrix(network):
    flat, unravel = ravel_pytree(network.params)
    jacobian = np.asarray(jax.jacobian(lambda w: network.outputs(unravel(w)))(flat))
    p = np.asarray(jax.nn.softmax(network.outputs(network.params)))
    curvature = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]
    dense = np.einsum("nap,nab,nbq->pq", jacobian, curvature, jacobian) / len(p)
    trace = sf.measure(network, {"ggn_trace": EXACT})
    assert trace.value == pytest.approx(np.trace(dense), rel=1e-6)
    top = sf.measure(network, "ggn_top_eigenvalues", k=3, tolerance=1e-7)
    np.testing.assert_allclose(
        top.details["eigenvalues"], np.linalg.eigvalsh(dense)[::-1][:3], rtol=1e-6
    )


def test_logistic_regression(x64):
    """H = (1/n) Xᵀ diag(p (1 − p)) X, and no network curvature: H is its own Gauss–Newton part."""
    rng = np.random.default_rng(1)
    inputs, w = rng.normal(size=(40, 5)), rng.normal(size=5)
    model = sf.Model.from_functions(
        lambda key, x: jnp.zeros(5), lambda w, x: jnp.stack([x @ w, 0 * x[:, 0]], axis=1)
    )
    data = jnp.asarray(inputs), jnp.asarray(rng.integers(0, 2, 40))
    objective = sf.Objective.from_model(model, jnp.asarray(w), {}, data)
    p = 1 / (1 + np.exp(-inputs @ w))
    dense = (inputs * (p * (1 - p))[:, None]).T @ inputs / 40
    for name in ("hessian_trace", "ggn_trace"):
        estimate = sf.measure(objective, {name: EXACT})
        assert estimate.value == pytest.approx(np.trace(dense), rel=1e-6)
    top = sf.measure(objective, "hessian_top_eigenvalues", tolerance=1e-7)
    assert top.value == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-6)


def test_deep_linear_network_at_its_minimum(x64):
    """½ (w₂ w₁ x − y)² at w₂ w₁ = 1 with E x² = 1: H = [[w₂², 1], [1, w₁²]], λ = 0, w₁² + w₂²."""
    w1, w2 = 2.0, 0.5
    objective = sf.Objective.from_function(
        lambda w, b: 0.5 * jnp.mean((w["2"] * w["1"] * b.inputs - b.labels) ** 2),
        {"1": jnp.array([w1]), "2": jnp.array([w2])},
        (jnp.array([1.0, -1.0]), jnp.array([1.0, -1.0])),
    )
    top, trace, layers = sf.measure(
        objective, ["hessian_top_eigenvalues", {"hessian_trace": EXACT}, "layerwise_hessian"]
    )
    assert top.value == pytest.approx(w1**2 + w2**2, rel=1e-6)
    assert trace.value == pytest.approx(w1**2 + w2**2, rel=1e-6)
    np.testing.assert_allclose(layers.details["top_eigenvalues"], [w2**2, w1**2], rtol=1e-6)


def test_only_some_of_the_parameters(network):
    """A pattern selects a block of the Hessian; what it leaves out is held fixed."""
    dense, names = dense_hessian(network), network.layers()
    sizes = [leaf.size for leaf in jax.tree.leaves(network.params)]
    mask = np.repeat([name.startswith("Dense_1/") for name in names], sizes)
    block = dense[np.ix_(mask, mask)]
    only = {"parameters": "Dense_1/*"}
    trace, norm, top = sf.measure(
        network,
        [
            {"hessian_trace": {**EXACT, **only}},
            {"hessian_frobenius_norm": {**EXACT, **only}},
            {"hessian_top_eigenvalues": {"tolerance": 1e-7, **only}},
        ],
    )
    assert trace.value == pytest.approx(np.trace(block), rel=1e-6)
    assert norm.value == pytest.approx(np.linalg.norm(block), rel=1e-6)
    assert top.value == pytest.approx(np.linalg.eigvalsh(block)[-1], rel=1e-6)
    assert top.details["parameters"] == mask.sum()
    with pytest.raises(sf.InputError, match="none is called 'Dense_9/.'; did you mean 'Dense"):
        sf.measure(network, "hessian_trace", parameters="Dense_9/*")
    with pytest.raises(sf.InputError, match="k: 4 is above the 3 parameters"):
        sf.measure(network, "hessian_top_eigenvalues", k=4, parameters="Dense_1/bias")


def test_layers_against_dense_blocks(network):
    dense, names = dense_hessian(network), network.layers()
    sizes = [leaf.size for leaf in jax.tree.leaves(network.params)]
    estimate = sf.measure(network, "layerwise_hessian", tolerance=1e-7, steps=100)
    assert list(estimate.details["layers"]) == ["Dense_0", "Dense_1"]
    for row, layer in enumerate(estimate.details["layers"]):
        mask = np.repeat([name.startswith(f"{layer}/") for name in names], sizes)
        block = dense[np.ix_(mask, mask)]
        assert estimate.details["traces"][row] == pytest.approx(np.trace(block), rel=1e-6)
        top = np.linalg.eigvalsh(block)[-1]
        assert estimate.details["top_eigenvalues"][row] == pytest.approx(top, rel=1e-6)
        assert estimate.details["sizes"][row] == mask.sum()
    assert estimate.value == max(estimate.details["top_eigenvalues"])


def test_intervals_of_the_layers_traces_cover():
    """Value ± 1.96 standard errors, over 200 seeds."""
    matrix = rotated([30.0, 12.0, 5.0, *np.linspace(-0.5, 2, 57)])
    curvature = jnp.asarray(matrix, jnp.float32)

    def loss(params, _):
        w = jnp.concatenate([params["first"]["w"], params["second"]["w"]])
        return 0.5 * w @ curvature @ w

    params = {"first": {"w": jnp.zeros(20)}, "second": {"w": jnp.zeros(40)}}
    bowl = sf.Objective.from_function(loss, params, ONE)
    spec = {"layerwise_hessian": {"steps": 5}}
    found = [sf.measure(bowl, spec, seed=seed).details for seed in range(200)]
    traces = np.array([details["traces"] for details in found])
    errors = np.array([details["trace_standard_errors"] for details in found])
    truths = np.array([np.trace(matrix[:20, :20]), np.trace(matrix[20:, 20:])])
    covered = (np.abs(traces - truths) <= 1.96 * errors).mean(axis=0)
    assert ((covered >= 0.90) & (covered <= 0.99)).all()


def test_layers_are_certified_like_the_whole():
    """A block whose bulk is at one place, and its outlier out of sight of one step."""
    spectrum = jnp.ones(50_000).at[0].set(2.0)
    params = {"first": {"w": jnp.zeros(50_000)}, "second": {"w": jnp.zeros(1)}}
    bowl = sf.Objective.from_function(
        lambda p, _: 0.5 * jnp.sum(spectrum * p["first"]["w"] ** 2) + p["second"]["w"][0] ** 2 / 4,
        params, ONE,
    )  # fmt: skip
    spec = {"probes": 2, "steps": 1, "tolerance": 1e-2}
    estimate = sf.measure(bowl, "layerwise_hessian", **spec)
    assert estimate.converged
    np.testing.assert_allclose(estimate.details["top_eigenvalues"], [2.0, 0.5], rtol=1e-2)
    few = sf.measure(bowl, "layerwise_hessian", **spec, max_steps=1)
    assert (few.details["residuals"] <= 1e-2).all()
    assert few.details["missed"][0] > 0.01
    assert not few.converged


OUTLIER = [20.0, *np.linspace(-1, 1, 59)]


def test_density_has_mass_one_and_its_outlier_is_one_of_sixty(x64):
    """A probe's weight there is a Beta(1/2, 59/2): mean 1/60, spread 0.023."""
    spec = {"hessian_spectral_density": {"probes": 200, "steps": 12}}
    estimate = sf.measure(quadratic(rotated(OUTLIER)), spec)
    details = estimate.details
    grid, density = details["grid"], details["density"]
    assert np.trapezoid(density, grid) == pytest.approx(1, rel=1e-5)
    masses = np.sum(details["weights"] * (details["nodes"] > 10), axis=1)
    error = masses.std(ddof=1) / np.sqrt(200)
    assert error == pytest.approx(np.sqrt(2 * 59 / 62) / 60 / np.sqrt(200), rel=0.3)
    assert abs(masses.mean() - 1 / 60) < 4 * error < 0.5 / 60
    smooth = np.trapezoid(density[grid > 10], grid[grid > 10])
    assert smooth == pytest.approx(masses.mean(), rel=1e-3)


def test_density_band_is_the_spread_over_seeds(x64):
    bowl, grid = quadratic(rotated(OUTLIER)), np.linspace(-1.5, 21, 400)
    spec = {"hessian_spectral_density": {"probes": 8, "steps": 12}}
    densities, bands = [], []
    for seed in range(40):
        details = sf.measure(bowl, spec, seed=seed).details
        densities.append(np.interp(grid, details["grid"], details["density"]))
        bands.append(np.interp(grid, details["grid"], details["density_standard_error"]))
    for part in (grid < 10, grid > 10):
        spread = np.var(densities, axis=0, ddof=1)[part].mean()
        told = np.mean(np.square(bands), axis=0)[part].mean()
        assert np.sqrt(told / spread) == pytest.approx(1, rel=0.25)


def test_density_of_enough_steps_is_called_converged(x64):
    assert sf.measure(quadratic(rotated(OUTLIER)), "hessian_spectral_density", probes=30).converged


def test_negative_mass_is_the_share_of_eigenvalues_below_zero(x64):
    """Twelve of sixty, and not the six that the smoothing cannot tell from zero."""
    bowl = quadratic(rotated([*np.linspace(-6, -5, 12), *[-0.01] * 6, *np.linspace(1, 20, 42)]))
    spec = {"hessian_spectral_density": {"probes": 60, "steps": 20}}
    details = sf.measure(bowl, spec).details
    error = np.sqrt(0.2 * 0.8 / 31 / 60)
    assert abs(details["negative_mass"] - 12 / 60) < 4 * error < 6 / 60
    positive = sf.measure(quadratic(rotated([*np.linspace(1, 20, 60)])), spec)
    assert positive.details["negative_mass"] == 0


def test_one_space_at_a_time_beside_the_shared_one(monkeypatch):
    """A basis of thirty vectors a probe, all at once, would be most of the memory."""
    spaces, most = weakref.WeakSet(), []
    grow = Krylov.grow

    def watched(self, *arguments):
        spaces.add(self)
        most.append(len(spaces))
        return grow(self, *arguments)

    monkeypatch.setattr(Krylov, "grow", watched)
    sf.measure(quadratic(rotated(OUTLIER)), "hessian_spectral_density", steps=5)
    assert len(most) == 12
    assert max(most) == 2


def test_a_grid_coarser_than_the_smoothing_is_refused():
    """With so few points a node falls between two of them, and its mass is lost or doubled."""
    bowl = quadratic(rotated(SPECTRUM))
    spec = {"hessian_spectral_density": {"width": 0.003, "points": 344}}
    with pytest.raises(sf.InputError, match="points: 344 are too few for width 0.003, .* 345"):
        sf.measure(bowl, spec)
    spec["hessian_spectral_density"]["points"] = 345
    details = sf.measure(bowl, spec).details
    nodes = details["nodes"][details["weights"] > 0]
    s = 0.003 * (nodes.max() - nodes.min())
    assert np.diff(details["grid"]).max() <= s * (1 + 1e-6)
    assert np.trapezoid(details["density"], details["grid"]) == pytest.approx(1, rel=1e-5)


def test_density_of_too_few_steps_is_not_called_converged():
    spectrum = [-30.0, -10.0, -3.0, 0.0, 5.0, 12.0, 25.0] * 8
    few = sf.measure(quadratic(rotated(spectrum)), "hessian_spectral_density", steps=4)
    assert not few.converged


def test_density_of_one_step_is_refused():
    """The mean alone: it would agree with itself, and leave out forty outliers."""
    bowl = quadratic(rotated([100.0] * 40 + [0.0] * 60))
    with pytest.raises(sf.InputError, match="steps: 1 is too few, at least 2"):
        sf.measure(bowl, "hessian_spectral_density", steps=1)


def test_density_of_an_edge_that_is_not_resolved_is_not_called_converged():
    """The mass of ten outliers among two thousand is nothing to a density."""
    spectrum = jnp.asarray([*np.linspace(10, 20, 10), *np.linspace(-0.1, 0.1, 1990)], jnp.float32)
    bowl = sf.Objective.from_function(
        lambda w, _: 0.5 * jnp.sum(spectrum * w**2), jnp.zeros(2000), ONE
    )
    few, more = (sf.measure(bowl, {"hessian_spectral_density": {"steps": m}}) for m in (4, 30))
    assert few.details["change"] <= 0.05
    assert few.details["edge_change"] > 0.2
    assert not few.converged
    assert more.converged
    assert more.details["nodes"].max() == pytest.approx(20, rel=1e-3)


def test_density_of_one_parameter_is_exact():
    assert sf.measure(quadratic([[2.0]]), "hessian_spectral_density").converged


def test_measured_together_costs_less_than_the_sum(monkeypatch):
    """All measures of one Hessian share a Krylov space and its probes."""
    made = []
    step = Krylov._step
    monkeypatch.setattr(Krylov, "_step", lambda *a: (made.append(1), step(*a))[1])
    bowl = quadratic(rotated([*np.linspace(-1, 5, 60)]))
    names = [
        "hessian_top_eigenvalues", "hessian_bottom_eigenvalue", "hessian_trace",
        "hessian_frobenius_norm", {"hessian_spectral_density": {"probes": 1}},
    ]  # fmt: skip
    together = sf.measure(bowl, names)
    shared, alone = len(made), []
    made.clear()
    for name in names:
        alone.append(sf.measure(bowl, name))
    assert shared < 0.5 * len(made)
    assert [e.value for e in together] == [e.value for e in alone]
