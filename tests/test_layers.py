"""Names of parameters, and the order in which a forward pass uses them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers import ONE, Nnx

import sharpflat as sf
from sharpflat.objective.layers import kernels, modules, order_of_use

DATA = (jnp.linspace(-1.0, 1.0, 30).reshape(6, 5), jnp.arange(6) % 3)


def made(module):
    model = sf.Model.of(module)
    return sf.Objective.from_model(model, *model.init(jax.random.key(0), DATA[0]), DATA)


def test_kernels_follow_the_forward_pass_and_not_the_alphabet():
    deep = made(sf.models["mlp"](3, width=4, depth=10))
    assert list(kernels(deep)) == [f"Dense_{i}" for i in range(11)]
    assert deep.layers()[-1] == "Dense_9/kernel"


def test_shapes_alone_have_an_order():
    """A study is checked before its training, on arrays without numbers."""
    deep = made(sf.models["mlp"](3, width=4, depth=10, batch_norm=True))
    shapes = jax.eval_shape(lambda: deep)
    assert not isinstance(jax.tree.leaves(shapes)[0], jax.Array)
    assert order_of_use(shapes) == order_of_use(deep)
    assert modules(shapes)[-2:] == ["BatchNorm_9", "Dense_10"]


def test_compiled_parts_are_looked_into():
    def apply(params, x):
        return jax.nn.relu(x @ params["zeta"]) @ params["alpha"]

    params = {"alpha": jnp.ones((4, 3)), "unused": jnp.ones(2), "zeta": jnp.ones((5, 4))}
    for forward in (apply, jax.jit(apply), jax.checkpoint(apply)):
        model = sf.Model.from_functions(lambda key, x: params, forward)
        assert order_of_use(sf.Objective.from_model(model, params, {}, DATA)) == ["zeta", "alpha"]
    with pytest.raises(sf.InputError, match="from_function has no outputs"):
        order_of_use(sf.Objective.from_function(lambda w, batch: jnp.sum(w), jnp.ones(2), ONE))


def test_nnx_names_are_those_of_linen():
    objective = made(sf.Model.from_nnx(Nnx))
    assert objective.layers() == [
        "bn/bias", "bn/scale", "body/bias", "body/kernel", "hidden/bias", "hidden/kernel",
    ]  # fmt: skip
    assert modules(objective) == ["hidden", "bn", "body"]
    part = objective.restrict("*/kernel")
    assert part.layers() == ["body/kernel", "hidden/kernel"]
    np.testing.assert_array_equal(part.loss(part.params), objective.loss(objective.params))
    assert objective.restrict(["body/bias"]).layers() == ["body/bias"]


def test_a_parameter_of_ones_own_may_be_called_value():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            value = self.param("value", nn.initializers.ones, (5,))
            return nn.Dense(3)(x * value[None])

    class Nested(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Net(name="net")(x)

    assert "net/value" in made(Nested()).layers()


def test_measures_of_nnx_networks_go_by_layers_names():
    objective = made(sf.Model.from_nnx(Nnx))
    found = sf.measure(objective, "layerwise_hessian", probes=2)
    assert set(found.details["layers"]) == {"hidden", "bn", "body"}
    whole, part = (
        sf.measure(objective, "hessian_trace", probes=2, parameters=names)
        for names in ("*", "*/kernel")
    )
    assert part.value != whole.value
    default, named, first = (
        sf.measure(objective, "relative_flatness", draws=3, layer=layer)
        for layer in (None, "body/kernel", "hidden/kernel")
    )
    assert default.value == named.value != first.value
    assert default.details["layer"] == "body/kernel"


def test_the_start_of_an_nnx_network_may_be_a_plain_tree():
    objective = made(sf.Model.from_nnx(Nnx))
    start = nnx.to_pure_dict(jax.tree.map(jnp.zeros_like, objective.params))
    distance = sf.measure(objective, "distance_from_initialization", initial_params=start)
    assert distance.value == sf.measure(objective, "parameter_norm").value
    assert sf.measure(objective, "path_norm").value > 0
