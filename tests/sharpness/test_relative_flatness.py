"""κ against its double sum over blocks of the dense Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ONE

import sharpflat as sf
from sharpflat.sharpness import check


@pytest.fixture
def network(x64):
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(20, 3))), jnp.asarray(rng.integers(0, 3, 20))
    model = sf.Model.of(sf.models["mlp"](3, width=4, depth=1))
    params, _ = model.init(jax.random.key(0), data[0])
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    return sf.Objective.from_model(model, params, {}, data)


def blocks(objective, layer):
    """Σ ⟨w_s, w_s'⟩ tr(H_{s,s'}) by its definition."""
    part = objective.restrict([layer])
    (kernel,), structure = jax.tree.flatten(part.params)
    hessian = jax.hessian(lambda w: part.loss(jax.tree.unflatten(structure, [w])))(kernel)
    return float(jnp.einsum("as,at,bsbt->", kernel, kernel, hessian))


@pytest.mark.parametrize("layer", ["Dense_0/kernel", "Dense_1/kernel"])
def test_double_sum_over_units(network, layer):
    estimate = sf.measure(network, "relative_flatness", layer=layer, draws=20000)
    assert abs(estimate.value - blocks(network, layer)) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.02 * estimate.value


@pytest.mark.parametrize(("precision", "tolerance"), [(True, 1e-6), (False, 1e-3)])
def test_scalar_curvature_is_exact(precision, tolerance):
    """H = c I: κ = c ‖W‖_F² × inputs; each draw gives c ‖R S Bᵀ‖², exact for one unit."""
    with jax.enable_x64(precision):
        kernel = jnp.linspace(1.0, 2.0, 6)[:, None]
        bowl = sf.Objective.from_function(
            lambda w, batch: 1.5 * jnp.sum(w["kernel"] ** 2), {"kernel": kernel}, ONE
        )
        estimate = sf.measure(bowl, "relative_flatness")
    assert estimate.value == pytest.approx(
        3 * float(np.sum(np.asarray(kernel) ** 2)) * 6, rel=tolerance
    )


@pytest.mark.parametrize(("precision", "tolerance"), [(True, 1e-6), (False, 1e-3)])
def test_several_units_that_share_curvature_are_exact(precision, tolerance):
    """H_{as,bt} = h_a δ_ab C_st: not random where C commutes with WᵀW; the units do couple."""
    kernel = np.array([[1.0, -2.0, 0.5], [0.3, 1.0, 2.0]])
    inner, h = kernel.T @ kernel, np.array([3.0, 0.5])
    coupling = 2 * np.eye(3) + inner
    with jax.enable_x64(precision):
        number = jnp.result_type(float)
        objective = sf.Objective.from_function(
            lambda w, batch: 0.5 * jnp.einsum(
                "a,as,st,at->", jnp.asarray(h, number), w["kernel"],
                jnp.asarray(coupling, number), w["kernel"],
            ),
            {"kernel": jnp.asarray(kernel, number)}, ONE,
        )  # fmt: skip
        estimate = sf.measure(objective, "relative_flatness", draws=5)
    assert estimate.value == pytest.approx(np.sum(inner * coupling) * h.sum(), rel=tolerance)
    assert estimate.standard_error < tolerance * estimate.value


def test_rescaling_layers_leaves_it_alone_and_moves_the_trace(network):
    """Dinh et al.: the function is the same, and the trace of the block is not."""
    a = 7.0
    params = {
        "Dense_0": jax.tree.map(lambda w: a * w, network.params["Dense_0"]),
        "Dense_1": {**network.params["Dense_1"], "kernel": network.params["Dense_1"]["kernel"] / a},
    }
    scaled = sf.Objective.from_model(network.model, params, {}, network.data)
    np.testing.assert_allclose(scaled.outputs(params), network.outputs(network.params), rtol=1e-9)
    before, after = (sf.measure(o, "relative_flatness", seed=3) for o in (network, scaled))
    assert after.value == pytest.approx(before.value, rel=1e-6)
    only = {"parameters": "Dense_1/kernel", "steps": 100}
    traces = [sf.measure(o, {"hessian_trace": only}).value for o in (network, scaled)]
    assert traces[1] == pytest.approx(a**2 * traces[0], rel=1e-6)


def test_a_kernel_that_is_not_there_is_named(network):
    with pytest.raises(sf.InputError, match="relative_flatness: layer: no kernel is called 'Dense_1/kernal'; did you mean 'Dense_1/kernel'"):  # noqa: E501  # fmt: skip
        sf.measure(network, "relative_flatness", layer="Dense_1/kernal")
    flat = sf.Objective.from_function(lambda w, b: jnp.sum(w**2), jnp.ones(3), ONE)
    with pytest.raises(sf.InputError, match="no parameter has two axes"):
        sf.measure(flat, "relative_flatness")


def test_the_last_layer_is_that_of_the_forward_pass():
    """Of Dense_0 to Dense_10 the alphabet's last is Dense_9."""
    inputs = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
    model = sf.Model.of(sf.models["mlp"](3, width=4, depth=10))
    params, state = model.init(jax.random.key(0), inputs)
    deep = sf.Objective.from_model(model, params, state, (inputs, jnp.arange(4) % 3))
    default, last = (
        sf.measure(deep, "relative_flatness", layer=layer, draws=5)
        for layer in (None, "Dense_10/kernel")
    )
    assert default.details["layer"] == "Dense_10/kernel"
    assert default.value == last.value
    shapes = jax.eval_shape(lambda: deep)
    check(sf.metrics["relative_flatness"], shapes, {"layer": None, "draws": 5})


def test_kernels_of_a_plain_loss_have_no_order():
    def bowl(params):
        return sf.Objective.from_function(
            lambda w, batch: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(w)), params, ONE
        )

    one = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}
    assert sf.measure(bowl(one), "relative_flatness").details["layer"] == "a"
    several = {**one, "c": jnp.ones((2, 3))}
    with pytest.raises(sf.InputError, match=r"layer: which is the last .* \['a', 'c'\]"):
        sf.measure(bowl(several), "relative_flatness")
    assert sf.measure(bowl(several), "relative_flatness", layer="c").details["layer"] == "c"
