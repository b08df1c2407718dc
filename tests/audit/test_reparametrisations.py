"""Changes of a network's parameters: the function stays, on inputs that nobody looked at too."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import Nnx

import sharpflat as sf
from sharpflat.audit.reparametrisations import (
    batch_norm_scale,
    logit_rescaling,
    permuted_units,
    relu_rescaling,
)
from sharpflat.networks.convolutional import Convolutional

KEEPING = {"relu": relu_rescaling, "norm": batch_norm_scale, "permuted": permuted_units}
NETWORKS = {
    "one hidden layer": (partial(sf.models["mlp"], width=7, depth=1), (5,)),
    "three hidden layers": (partial(sf.models["mlp"], width=(7, 6, 8), depth=3), (5,)),
    "batch norm": (partial(sf.models["mlp"], width=(7, 6, 8), depth=3, batch_norm=True), (5,)),
    "convolutions": (
        lambda outputs: Convolutional(
            outputs, stacks=((4,), (5,)), dense=(6,), kernel=3, pool=2, stack_dropout=(0.0, 0.0),
            flat_dropout=0.0, dense_dropout=0.0,
        ), (8, 8, 2)
    ),
}  # fmt: skip


def objective_of(module, shape, batch_norm="running", seed=0):
    """Random parameters and averages, none of them zero, in the default precision."""
    rng = np.random.default_rng(seed)

    def random(like):
        return jnp.asarray(0.5 * rng.normal(size=like.shape), jnp.result_type(float))

    inputs = random(np.empty((24, *shape)))
    model = sf.Model.of(module)
    params, state = jax.eval_shape(model.init, jax.random.key(seed), inputs)
    params = jax.tree.map(random, params)
    state = jax.tree.map(lambda like: jnp.abs(random(like)), state)
    data = (inputs, jnp.asarray(rng.integers(0, 3, 24)))
    return sf.Objective.from_model(model, params, state, data, batch_norm=batch_norm, chunk=12)


def outputs_on_others(objective, seed=5):
    """Outputs on inputs that are not the objective's."""
    old = objective.data
    inputs = np.random.default_rng(seed).normal(size=old.inputs.shape)
    data = sf.Batch(jnp.asarray(inputs, old.inputs.dtype), old.labels)
    return replace(objective, data=data).outputs(objective.params)


def relative(after, before):
    return float(jnp.linalg.norm(after - before) / jnp.linalg.norm(before))


def check_keeps(network, make, tolerance):
    make_module, shape = NETWORKS[network]
    objective = objective_of(make_module(3), shape)
    before = outputs_on_others(objective)
    hidden = [n.removesuffix("/kernel") for n in objective.layers() if n.endswith("kernel")][:-1]
    if network == "convolutions":
        hidden = ["Conv_0", "Conv_1", "Dense_0"]
    for layer in hidden:
        change = make(objective, layer=layer)
        assert change.layers[0] == layer
        assert change.deviation < tolerance
        assert relative(outputs_on_others(change.objective), before) < tolerance
        leaves = zip(
            *map(jax.tree.leaves, (change.objective.params, objective.params)), strict=True
        )
        assert sum(bool((a != b).any()) for a, b in leaves) >= 2
    everywhere = make(objective)
    assert set(hidden) <= set(everywhere.layers)
    assert everywhere.deviation < tolerance
    assert relative(outputs_on_others(everywhere.objective), before) < tolerance


CASES = [
    (network, kind) for network in NETWORKS for kind in KEEPING
    if kind != "norm" or network in ("batch norm", "convolutions")
]  # fmt: skip


@pytest.mark.parametrize(("network", "kind"), CASES)
def test_the_function_stays(network, kind):
    check_keeps(network, KEEPING[kind], 1e-5)


@pytest.mark.parametrize(("network", "kind"), CASES)
def test_the_function_stays_in_double_precision(x64, network, kind):
    check_keeps(network, KEEPING[kind], 1e-10)


@pytest.mark.parametrize(("network", "kind"), [case for case in CASES if case[1] != "permuted"])
def test_the_function_stays_for_any_factor(x64, network, kind):
    for alpha in (0.3, 10.0):
        check_keeps(network, partial(KEEPING[kind], alpha=alpha), 1e-10)


def params_of(objective):
    leaves = map(np.asarray, jax.tree.leaves(objective.params))
    return dict(zip(objective.layers(), leaves, strict=True))


def check_factors(change, objective, factors):
    before, after = params_of(objective), params_of(change.objective)
    for name in before:
        np.testing.assert_array_equal(after[name], factors.get(name, 1) * before[name])
    kernels = {name for name in before if name.endswith("/kernel")}
    assert set(change.untouched) == kernels - set(factors)


def test_what_is_rescaled():
    """What a middle layer gains on one side is not taken off on the other."""
    objective = objective_of(sf.models["mlp"](3, width=7, depth=3), (5,))
    factors = {
        "Dense_0/kernel": 8, "Dense_0/bias": 8, "Dense_1/kernel": 1 / 64, "Dense_1/bias": 1 / 8,
        "Dense_2/kernel": 64, "Dense_2/bias": 8, "Dense_3/kernel": 1 / 8,
    }  # fmt: skip
    change = relu_rescaling(objective, alpha=8.0)
    check_factors(change, objective, factors)
    assert change.layers == ("Dense_0", "Dense_1", "Dense_2", "Dense_3")
    assert change.untouched == ()
    one = {"Dense_1/kernel": 8, "Dense_1/bias": 8, "Dense_2/kernel": 1 / 8}
    change = relu_rescaling(objective, alpha=8.0, layer="Dense_1")
    check_factors(change, objective, one)
    assert change.layers == ("Dense_1", "Dense_2")


def test_with_batch_norm_between_its_scale_and_bias_are_rescaled():
    """No two places share an array there, and a product over kernels would not see α and 1/α."""
    objective = objective_of(sf.models["mlp"](3, width=7, depth=2, batch_norm=True), (5,))
    factors = {
        "BatchNorm_0/scale": 8, "BatchNorm_0/bias": 8, "Dense_1/kernel": 1 / 8,
        "BatchNorm_1/scale": 8, "BatchNorm_1/bias": 8, "Dense_2/kernel": 1 / 8,
    }  # fmt: skip
    change = relu_rescaling(objective, alpha=8.0)
    check_factors(change, objective, factors)
    assert change.layers == ("Dense_0", "BatchNorm_0", "Dense_1", "BatchNorm_1", "Dense_2")
    assert change.untouched == ("Dense_0/kernel",)
    states = (change.objective.model_state, objective.model_state)
    assert jax.tree.all(jax.tree.map(np.array_equal, *states))


def test_every_layer_before_batch_norm_grows_and_the_last_stays():
    objective = objective_of(sf.models["mlp"](3, width=7, depth=2, batch_norm=True), (5,))
    layers = [f"Dense_{i}/{part}" for i in (0, 1) for part in ("kernel", "bias")]
    change = batch_norm_scale(objective, alpha=8.0)
    check_factors(change, objective, dict.fromkeys(layers, 8))
    assert change.untouched == ("Dense_2/kernel",)


def test_batch_norms_averages_follow_the_scale_of_what_they_see(x64):
    objective = objective_of(sf.models["mlp"](3, width=7, depth=1, batch_norm=True), (5,))
    change = batch_norm_scale(objective, alpha=3.0)
    before, after = (
        o.model_state["batch_stats"]["BatchNorm_0"] for o in (objective, change.objective)
    )
    np.testing.assert_allclose(after["mean"], 3 * before["mean"])
    np.testing.assert_allclose(after["var"] + 1e-3, 9 * (before["var"] + 1e-3), rtol=1e-10)


@pytest.mark.parametrize("policy", ["batch", "recalibrated"])
def test_what_epsilon_leaves_is_said(x64, policy):
    """The data's own statistics do not know of ε, and the outputs move."""
    module = sf.models["mlp"](3, width=7, depth=1, batch_norm=True)
    objective = objective_of(module, (5,), batch_norm=policy)
    change = batch_norm_scale(objective)
    before = objective.outputs(objective.params)
    after = change.objective.outputs(change.objective.params)
    assert change.deviation == pytest.approx(relative(after, before), rel=1e-6)
    assert 1e-6 < change.deviation < 1e-2
    for make in (relu_rescaling, permuted_units):
        assert make(objective).deviation < 1e-10


def test_units_are_permuted_and_not_lost():
    objective = objective_of(sf.models["mlp"](3, width=7, depth=1), (5,))
    before, after = params_of(objective), params_of(permuted_units(objective).objective)
    order = [6, 0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(after["Dense_0/kernel"], before["Dense_0/kernel"][:, order])
    np.testing.assert_array_equal(after["Dense_0/bias"], before["Dense_0/bias"][order])
    np.testing.assert_array_equal(after["Dense_1/kernel"], before["Dense_1/kernel"][order])
    np.testing.assert_array_equal(after["Dense_1/bias"], before["Dense_1/bias"])


def test_logits_are_multiplied_and_predictions_stay():
    objective = objective_of(sf.models["mlp"](3, width=7, depth=2), (5,))
    before = objective.outputs(objective.params)
    change = logit_rescaling(objective, alpha=8.0)
    after = change.objective.outputs(change.objective.params)
    np.testing.assert_allclose(after, 8 * before, rtol=1e-5)
    np.testing.assert_array_equal(after.argmax(1), before.argmax(1))
    assert (change.layers, change.preserves) == (("Dense_2",), False)
    assert change.deviation == pytest.approx(7, rel=1e-5)


class Net(nn.Module):
    """Layers with names in no order, and whatever lies between them."""

    between: str = "relu"
    skip: bool = False
    last: str = "linear"

    @nn.compact
    def __call__(self, x):
        act = {"relu": nn.relu, "tanh": nn.tanh}[self.between]
        x = act(nn.Dense(5, name="zeta")(x) + (x if self.skip else 0))
        x = act(nn.Dense(5, name="alpha")(x))
        self.param("unused", nn.initializers.ones, (3,))
        x = nn.Dense(3, name="mid")(x)
        return x if self.last == "linear" else nn.softmax(x)


def test_layers_follow_the_forward_pass_and_not_the_alphabet():
    objective = objective_of(Net(), (5,))
    assert relu_rescaling(objective).layers == ("zeta", "alpha", "mid")
    assert logit_rescaling(objective).layers == ("mid",)
    deep = objective_of(sf.models["mlp"](3, width=5, depth=11), (5,))
    assert permuted_units(deep, layer="Dense_10").layers == ("Dense_10", "Dense_11")
    assert relu_rescaling(deep, layer="Dense_2").layers == ("Dense_2", "Dense_3")
    assert permuted_units(deep).layers == tuple(f"Dense_{i}" for i in range(12))


def test_a_change_that_moves_the_outputs_is_not_used():
    """The input that is added behind the first layer is not rescaled with it."""
    objective = objective_of(Net(skip=True), (5,))
    assert relu_rescaling(objective).layers == ("alpha", "mid")
    assert permuted_units(objective).layers == ("alpha", "mid")
    with pytest.raises(sf.InputError, match="relu_rescaling: moves the outputs"):
        relu_rescaling(objective, layer="zeta")


def test_what_is_not_homogeneous_cannot_be_rescaled_but_permuted():
    objective = objective_of(Net(between="tanh"), (5,))
    with pytest.raises(sf.InputError, match="relu_rescaling: moves the outputs"):
        relu_rescaling(objective)
    assert permuted_units(objective).deviation < 1e-6


def test_outputs_that_are_no_logits_do_not_grow():
    with pytest.raises(sf.InputError, match="logit_rescaling: the outputs do not grow"):
        logit_rescaling(objective_of(Net(last="softmax"), (5,)))


@pytest.mark.parametrize("make", KEEPING.values())
def test_nnx_modules(make):
    objective = objective_of(sf.Model.from_nnx(Nnx), (5,))
    change = make(objective)
    assert change.layers == ("hidden", "bn", "body")
    assert relative(outputs_on_others(change.objective), outputs_on_others(objective)) < 1e-5


def test_networks_without_a_place_for_it():
    linear = objective_of(nn.Dense(3), (5,))
    plain = sf.Model.from_functions(lambda key, x: {"w": jnp.ones((5, 3))}, lambda w, x: x @ w["w"])
    for make in KEEPING.values():
        with pytest.raises(sf.InputError, match="none is a kernel"):
            make(objective_of(plain, (5,)))
    with pytest.raises(sf.InputError, match="none is a kernel"):
        relu_rescaling(linear)  # its own kernel has no layer's name
    objective = objective_of(sf.models["mlp"](3, width=7, depth=2), (5,))
    with pytest.raises(sf.InputError, match="batch_norm_scale: the network has no layers"):
        batch_norm_scale(objective)
    with pytest.raises(sf.InputError, match="'Dense_2'; did you mean 'Dense_"):
        relu_rescaling(objective, layer="Dense_2")
    loss = sf.Objective.from_function(lambda w, batch: w**2, jnp.ones(()), objective.data)
    for make in (*KEEPING.values(), logit_rescaling):
        with pytest.raises(sf.InputError, match="from_function has no outputs"):
            make(loss)


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.0, float("nan"), float("inf")])
def test_factors_that_are_none(alpha):
    objective = objective_of(sf.models["mlp"](3, width=7, depth=2), (5,))
    for make in (relu_rescaling, batch_norm_scale, logit_rescaling):
        with pytest.raises(sf.InputError, match="alpha: expected a positive number other than 1"):
            make(objective, alpha=alpha)
