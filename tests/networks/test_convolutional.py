import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpflat.networks.convolutional import Convolutional, c1, c2, c3, c4
from sharpflat.registry import models

KEY = jax.random.key(0, impl="rbg")  # compiles faster than the default


def shapes(module, collection, size=2):
    """Shapes of one collection of variables, by layer and name; nothing is computed."""
    inputs = jax.ShapeDtypeStruct((size, 32, 32, 3), jnp.float32)

    def init(key, inputs):
        return module.init(key, inputs, batch_statistics=True, dropout=False)

    variables = jax.eval_shape(init, KEY, inputs)[collection]
    return {
        f"{layer}.{name}": leaf.shape
        for layer, leaves in variables.items()
        for name, leaf in leaves.items()
    }


def expected(convolutions, dense):
    """Kernels with biases, and a batch norm's scale and bias for every layer but the last."""
    layers = {f"Conv_{i}": shape for i, shape in enumerate(convolutions)}
    layers |= {f"Dense_{i}": shape for i, shape in enumerate(dense)}
    widths = [shape[-1] for shape in layers.values()]
    norms = {f"BatchNorm_{i}": width for i, width in enumerate(widths[:-1])}
    return (
        {f"{layer}.kernel": shape for layer, shape in layers.items()}
        | {f"{layer}.bias": shape[-1:] for layer, shape in layers.items()}
        | {f"{norm}.scale": (width,) for norm, width in norms.items()}
        | {f"{norm}.bias": (width,) for norm, width in norms.items()}
    )


@pytest.mark.parametrize(("entry", "outputs"), [(c1, 10), (c3, 100)])
def test_c1_and_c3_have_the_papers_layers(entry, outputs):
    convolutions = [(5, 5, 3, 64), (5, 5, 64, 64)]
    dense = [(8 * 8 * 64, 384), (384, 192), (192, outputs)]
    assert shapes(entry(outputs), "params") == expected(convolutions, dense)


@pytest.mark.parametrize(("entry", "outputs"), [(c2, 10), (c4, 100)])
def test_c2_and_c4_have_the_papers_layers(entry, outputs):
    features = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    channels = [3, *features[:-1]]
    convolutions = [(3, 3, c, f) for c, f in zip(channels, features, strict=True)]
    dense = [(512, 512), (512, outputs)]
    assert shapes(entry(outputs), "params") == expected(convolutions, dense)
    assert shapes(entry(outputs, dropout=True), "params") == expected(convolutions, dense)


def test_every_batch_norm_has_averages():
    assert len(shapes(c1(10), "batch_stats")) == 2 * 4
    assert len(shapes(c2(10), "batch_stats")) == 2 * 14


def test_equal_arguments_make_equal_modules():
    assert c1(10) == c1(10)
    assert hash(c2(10)) == hash(c2(10))
    assert c1(10) != c1(10, dropout=0.1)
    assert c3(100) == c1(100)
    assert c4(100, dropout=True) == c2(100, dropout=True) != c4(100)


@pytest.mark.parametrize("name", ["c1", "c2", "c3", "c4"])
def test_registered_with_dropout_as_the_only_argument(name):
    assert models[name].arguments({}) == {"dropout": 0.5 if name in ("c1", "c3") else False}


def apply(module, variables, inputs, **flags):
    return module.apply(variables, inputs, mutable=["batch_stats"], rngs={"dropout": KEY}, **flags)


def test_the_two_flags_are_separate():
    module = Convolutional(
        3, stacks=((2, 2),), dense=(4,), kernel=3, pool=2,
        stack_dropout=(0.5,), flat_dropout=0.5, dense_dropout=0.5,
    )  # fmt: skip
    inputs = jnp.sin(jnp.arange(5 * 4 * 4 * 1.0)).reshape(5, 4, 4, 1)
    variables = jax.eval_shape(
        lambda key, x: module.init(key, x, batch_statistics=True, dropout=False), KEY, inputs
    )
    variables = jax.tree.map(
        lambda v: np.cos(np.arange(v.size, dtype=v.dtype)).reshape(v.shape) ** 2, variables
    )

    @partial(jax.jit, static_argnames=("batch_statistics", "dropout"))
    def run(variables, inputs, **flags):
        return apply(module, variables, inputs, **flags)

    outputs = []
    for batch_statistics, dropout in itertools.product([False, True], repeat=2):
        logits, state = run(variables, inputs, batch_statistics=batch_statistics, dropout=dropout)
        assert logits.shape == (5, 3)
        outputs.append(logits)
        before, after = (v["batch_stats"]["BatchNorm_0"]["mean"] for v in (variables, state))
        assert np.allclose(before, after) != batch_statistics
    for a, b in itertools.combinations(outputs, 2):
        assert not jnp.allclose(a, b)


@pytest.mark.parametrize(("dropout", "rates"), [(False, []), (True, [0.3] + [0.4] * 7 + [0.5] * 2)])
def test_c2_dropout_is_the_codes(monkeypatch, dropout, rates):
    seen = []

    def record(module, inputs, **_):
        seen.append(module.rate)
        return inputs

    monkeypatch.setattr("flax.linen.Dropout.__call__", record)
    shapes(c2(10, dropout=dropout), "params")
    assert [rate for rate in seen if rate] == rates


def test_a_cpu_update_holds_no_xla_convolution_and_no_scatter():
    """XLA would run them 10 to 100 times slower inside a compiled loop."""
    module = c1(10)
    inputs, labels = jnp.zeros((2, 32, 32, 3)), jnp.zeros(2, int)
    variables = jax.eval_shape(
        lambda key, x: module.init(key, x, batch_statistics=True, dropout=False), KEY, inputs
    )

    def loss(params, state, inputs, labels):
        logits, _ = apply(
            module, {"params": params, "batch_stats": state}, inputs,
            batch_statistics=True, dropout=True,
        )  # fmt: skip
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(2), labels])

    def product(params, *rest):
        return jax.jvp(lambda p: jax.grad(loss)(p, *rest), (params,), (params,))

    lowered = jax.jit(product).lower(variables["params"], variables["batch_stats"], inputs, labels)
    text = lowered.as_text()
    assert "dot_general" in text
    assert "stablehlo.convolution" not in text
    assert "select_and_scatter" not in text
