"""Layer shapes against the paper's description."""

import jax
import jax.numpy as jnp
import pytest

import sharpflat as sf


def shapes(network, inputs):
    params, state = jax.eval_shape(sf.Model.of(network).init, jax.random.key(0), jnp.zeros(inputs))
    kernels = [params[name]["kernel"].shape for name in params if name.startswith("Dense")]
    biases = [params[name]["bias"].shape for name in params if name.startswith("Dense")]
    norms = [name for name in params if name.startswith("BatchNorm")]
    assert biases == [kernel[1:] for kernel in kernels]
    assert len(jax.tree.leaves(state)) == 2 * len(norms)
    return kernels, len(norms)


@pytest.mark.parametrize(
    ("name", "outputs", "inputs", "kernels"),
    [
        ("f1", 10, (1, 28, 28, 1), [(784, 512), *[(512, 512)] * 4, (512, 10)]),
        ("f2", 1973, (1, 360), [(360, 512), *[(512, 512)] * 6, (512, 1973)]),
    ],
)
def test_the_papers_networks(name, outputs, inputs, kernels):
    assert shapes(sf.models[name](outputs), inputs) == (kernels, len(kernels) - 1)


def test_mlp_width_depth_and_batch_norm():
    mlp = sf.models["mlp"]
    assert shapes(mlp(10, width=7, depth=3), (1, 8, 8)) == ([(64, 7), (7, 7), (7, 7), (7, 10)], 0)
    assert shapes(mlp(2, width=(5, 3), batch_norm=True), (1, 4)) == ([(4, 5), (5, 3), (3, 2)], 2)


def test_f1_normalises_before_the_relu():
    """Batch norm sits between dense and ReLU: scale 0 and bias −1 silence the last hidden layer."""
    model = sf.Model.of(sf.models["f1"](10))
    params, state = model.init(jax.random.key(0), jnp.zeros((1, 784)))
    inputs = jax.random.normal(jax.random.key(1), (4, 784))
    last = "BatchNorm_4"
    params[last] = {"scale": jnp.zeros(512), "bias": -jnp.ones(512)}
    outputs, _ = model.apply(params, state, inputs, batch_statistics=False, dropout=False)
    assert (outputs == params["Dense_5"]["bias"][None]).all()
